"""Several runs on one walk: statistics of the dense model, gathered once for all of them.

Each run has a journal of its own, which ``prune(…, resume=True)`` takes up: that finds every block
done, and finishes the checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..base.atomic import check_output
from ..base.errors import InputError
from ..maths.contracts import Plan
from ..maths.orders.orders import Orders
from ..maths.stats import Statistics, TokenSample
from ..model.blocks import Block
from ..model.routing import fed
from ..recipe import Recipe
from ..storage.journal import Journal
from .fingerprint import defaults
from .gather import gather
from .job import Job
from .loop import Beside, prune_block
from .need import make_room
from .observer import Observer
from .prepare import Request, filled, prepare
from .walk import walk
from .weights_run import WeightsRun

TEXT = ("calibration", "field", "data_dir", "samples", "length", "seed", "bos", "answers")
ALIKE = (*TEXT, "dtype", "device", "mlp_only", "skip_blocks", "statistics")


def reads_alike(recipe: Recipe) -> tuple[object, ...] | None:
    """Return what all runs on one walk have in common; None for a recipe that needs its own.

    Its own walk has whatever reads statistics of pruned blocks, puts channels in order, packs
    integers, or reads no text at all.
    """
    if recipe.statistics != "dense" or recipe.structured or recipe.pack:
        return None
    built = recipe.build()
    if built.weights.ordering is not None or not built.reads_text:
        return None
    return (*(getattr(recipe, name) for name in ALIKE), recipe.answering())


@dataclass(frozen=True)
class _Own:
    """What one of the runs has for itself."""

    run: WeightsRun
    plan: Plan
    journal: Journal

    def lacks(self, block: Block) -> bool:
        return block.index in self.run.touched and not self.journal.holds([block.index])


@torch.no_grad()
def prune_together(
    model: str | Path,
    recipes: Mapping[Path, Recipe],
    *,
    trust_remote_code: bool,
    observer: Observer,
) -> None:
    """Prune up to the checkpoints, which ``prune(…, resume=True)`` then finishes.

    Args:
        model: a folder, hub id or GGUF.
        recipes: by the output of each; all of them ``reads_alike``.
        trust_remote_code: run code that comes with the checkpoint.
        observer: told of every step.

    Raises:
        InputError: anything that cannot be used, with the cure.
    """
    if len({reads_alike(recipe) for recipe in recipes.values()} - {None}) != 1:
        raise InputError("Runs on one walk read the same text, and statistics of the dense model.")
    for output in recipes:
        check_output(output)
    first, recipe = next(iter(recipes.items()))
    request = Request(
        model, recipe, True, first, trust_remote_code=trust_remote_code, observer=observer
    )
    base, _ = prepare(replace(request, resume=True))
    assert isinstance(base, WeightsRun)
    make_room(base, request)
    with ExitStack() as stack:
        runs = {
            output: _own(base.job, model, output, recipe, stack)
            for output, recipe in recipes.items()
        }
        _walked(base.job, runs)


def _own(job: Job, model: str | Path, output: Path, recipe: Recipe, stack: ExitStack) -> _Own:
    recipe, built = filled(recipe, None)
    job = replace(job, recipe=recipe)
    run = WeightsRun.of(lambda further: job, built.weights, built.allocation)
    journal = Journal.open(
        output, job.fingerprint(model), True, job.observer.say, defaults=defaults()
    )
    stack.callback(journal.close)
    return _Own(run, run.allocated(journal)[0], journal)


def _walked(job: Job, runs: Mapping[Path, _Own]) -> None:
    """Take every block through all runs that lack it.

    The time of each, for its journal, is its own and its share of the walk.
    """
    spent = dict.fromkeys(runs, 0.0)
    blocks = job.blocks
    lacking = [block.index for block in blocks for own in runs.values() if own.lacks(block)]
    if not lacking:
        return
    recording = job.recording()
    assert recording is not None  # whatever reads statistics was given text
    for block in walk(blocks, max(lacking), None, job.device, job.observer):
        begun = time.perf_counter()
        todo = {output: own for output, own in runs.items() if own.lacks(block)}
        needs = [kind for own in todo.values() for kind in own.run.pruner.needs]
        kinds = tuple(dict.fromkeys((*needs, TokenSample))) if todo else ()
        wanted = {site: (layer, kinds) for site, layer in block.sites.items()}
        job.observer.block(block.index, len(blocks), block.name, "record")
        stats = gather(block, recording, wanted, job.device, job.observer, then="advance")
        share = (time.perf_counter() - begun) / len(runs)
        for output, own in runs.items():
            spent[output] += share
            own.journal.begun = time.perf_counter() - spent[output]
            if output in todo:
                _prune(block, len(blocks), own, stats)
            spent[output] = time.perf_counter() - own.journal.begun
    job.observer.done()


def _prune(block: Block, blocks: int, own: _Own, stats: Mapping[str, Statistics]) -> None:
    """Prune the block by one of the recipes, write it to its journal, and have it dense again."""
    run, pruner = own.run, own.run.pruner
    observer = run.job.observer
    observer.block(block.index, blocks, block.name, "prune")
    beside = Beside(Orders())
    plan = {layer.name: own.plan[layer.name] for layer in block.planned(own.plan)}
    stats = fed(block, stats, pruner.needs, run.job.recipe.min_tokens)
    with _dense_again(block):
        done = prune_block(block, stats, pruner, plan, observer, {}, beside) if plan else []
        names = {name for layer in block.layers for name in (layer.site, layer.name)}
        own.journal.write(block, done, beside.packed, beside.orders.noted(names))


@contextmanager
def _dense_again(block: Block) -> Iterator[None]:
    """Give the block its values back."""
    before = {name: tensor.clone() for name, tensor in block.module.state_dict().items()}
    try:
        yield
    finally:
        for name, tensor in block.module.state_dict().items():
            tensor.copy_(before[name])


def grouped(recipes: Sequence[Recipe], most: int) -> list[list[int]]:
    """Return which recipes go on one walk, by their numbers, at most so many at once.

    A recipe that needs a walk of its own is in no group, nor is one that is alone.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, recipe in enumerate(recipes):
        common = reads_alike(recipe)
        if common is not None:
            groups.setdefault(common, []).append(number)
    parts = [
        group[start : start + most]
        for group in groups.values()
        for start in range(0, len(group), most)
    ]
    return [part for part in parts if len(part) > 1]
