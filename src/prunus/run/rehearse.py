"""Tries a part of a run and throws it away, for its time, its memory and what comes out."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..maths.shares import Evolve, Slope, learner_of, split_of
from ..model.blocks import Block
from ..model.inspect import first_of
from ..model.weights import InMemory
from ..report.units import UnitsReport
from .candidates import end
from .loop import prune_blocks
from .need import block_bytes
from .observer import LOOK, Silent
from .room import Need
from .search import pieces_of
from .units_gather import MAPS
from .units_run import UnitsRun
from .walk import on
from .weights_run import WeightsRun

REHEARSED = 2  # samples
STEPS = 4  # of learning
EACH_SAMPLE = ("gradients", "record", "advance")  # steps that grow with samples


@dataclass(frozen=True)
class Tried:
    """What a rehearsal found.

    Attributes:
        seconds: that the whole run will take.
        once: seconds of each step that was tried.
        units: what is left of heads and neurons; None: single weights are pruned.
        exact: whether ``units`` are the run's own; else they depend on text of which it reads more.
        beside: bytes that the run will hold beside what the rehearsal did.
    """

    seconds: float
    once: dict[str, float]
    units: UnitsReport | None = None
    exact: bool = True
    beside: int = 0


class Stopwatch(Silent):
    """When each step of a run began."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, float]] = []

    def block(self, index: int, total: int, name: str, step: str) -> None:
        self._steps.append((step.removeprefix(LOOK), time.perf_counter()))

    def done(self) -> None:
        self._steps.append(("end", time.perf_counter()))

    def seconds(self, *steps: str) -> float:
        """How long these steps took together."""
        return sum(
            end - begun
            for (name, begun), (_, end) in zip(self._steps, self._steps[1:], strict=False)
            if name in steps
        )


def try_weights(run: WeightsRun, needed: Need) -> Tried:
    """Prune the largest block by a few samples, and give it its weights back."""
    learns, split = learner_of(run.allocation), split_of(run.allocation)
    units = [x for x in run.planned if learns is None or x.index % learns.span == 0]
    once = _one_block(run, max(units or run.planned, key=block_bytes))
    ordering, planned = run.pruner.ordering, len(run.planned)
    passes = planned  # over all samples
    if run.job.recipe.true_sequential:
        passes = sum(len({x.site for x in block.planned(run.plan)}) for block in run.planned)
    if ordering is not None and ordering.realisation == "fold":
        passes += planned
    if split is not None:
        passes += planned
    before = run.planned[-1].index  # blocks that are advanced, dense ones among them
    seconds = once["record"] * needed.samples * passes + once["prune"] * planned
    seconds += once["advance"] * needed.samples * before
    if isinstance(split, Slope | Evolve):
        once["search"], times = _one_piece(run, split, needed, once["advance"])
        seconds += once["search"] * times
    if learns is not None:
        seconds += once["learn"] * learns.steps_over(needed.samples) * len(units)
    if run.reconstruction is not None:
        seconds += once["reconstruct"] * _forwards(run, needed.samples) * planned
    return Tried(seconds, once, beside=_search_bytes(run))


def _forwards(run: WeightsRun, samples: int) -> int:
    """Return how many forwards of a sample it takes to reconstruct a block."""
    how = run.reconstruction
    assert how is not None
    return (2 if how.span == "half" else 1) * (how.work_over(samples) + samples)


def try_units(run: UnitsRun, needed: Need) -> Tried:
    """Prune the whole model by a few samples, after which it is of no use."""
    ids_ST, watch = run.job.ids_ST, Stopwatch()
    few_ST = None if ids_ST is None else ids_ST[:REHEARSED]
    job = replace(run.job, ids_ST=few_ST, observer=watch, spill=None)
    begun = time.perf_counter()
    units = replace(run, job=job, rehearsal=True).prune()[0].structured
    seconds = time.perf_counter() - begun
    fit = 1.0  # times the samples of recovery
    if few_ST is not None:
        tried, wanted = len(few_ST), needed.samples
        more, maps = wanted / tried, min(wanted, MAPS) / tried
        seconds += (more - 1) * watch.seconds(*EACH_SAMPLE) + (maps - 1) * watch.seconds("compare")
        fit = more
    if run.job.recovery is not None and run.job.recovery[0] is not None:
        fit = needed.recovery / len(run.job.recovery[0])
    seconds += (fit - 1) * watch.seconds("recover")
    known = run.pruner.allocation == "uniform" and run.pruner.threshold is None
    steps = ("gradients", "record", "compare", "recover", "prune", "advance")
    once = {step: watch.seconds(step) for step in steps}
    return Tried(seconds, once, units, needed.samples <= REHEARSED or known)


def _one_piece(
    run: WeightsRun, search: Slope | Evolve, needed: Need, advance: float
) -> tuple[float, int]:
    """Seconds in which one candidate reads a piece of held-out text, and how often one does."""
    job, hidden = run.job, run.job.traced.inputs[0]
    begun = time.perf_counter()
    end(job, first_of(job.ids_ST, job.model), hidden)
    each = (time.perf_counter() - begun) / hidden.shape[1]
    pieces, length = pieces_of(search, needed.samples, needed.length)
    once = length * (each + advance / needed.length * len(job.blocks))
    return once, sum(trials * count for trials, count in search.rounds(pieces))


def _search_bytes(run: WeightsRun) -> int:
    """Size of the scores among which an order of the residual stream is searched."""
    ordering = run.pruner.ordering
    if ordering is None or ordering.realisation != "fold":
        return 0
    return int(3 * 4 * ordering.rows * run.job.traced.inputs[0].shape[-1])


def _one_block(run: WeightsRun, block: Block) -> dict[str, float]:
    """Seconds for each sample to record and to advance, and to prune the block once."""
    watch, job = Stopwatch(), run.job
    recording = replace(job, spill=None).recording(REHEARSED)
    plan = run.alike(block.planned(run.plan))
    watched = replace(run, job=replace(job, observer=watch))
    learner, reconstructor, learns = None, None, learner_of(run.allocation)
    if learns is not None:
        few = replace(learns, epochs=0, steps=STEPS)
        learner = replace(watched, allocation=few).learner(recording)
    if run.reconstruction is not None:
        short = replace(run.reconstruction, steps=STEPS, patience=0)
        watched = replace(watched, reconstruction=short)
        reconstructor = watched.reconstructor(recording)
    with _kept(run, block):
        prune_blocks(
            [block],
            recording,
            run.pruner,
            plan,
            device=job.device,
            observer=watch,
            channels=run.channels(),
            learner=learner,
            reconstructor=reconstructor,
        )
        begun = time.perf_counter()
        if recording is not None:
            with on(job.device, block):
                recording.advance(block.index, block.module, job.device)
        advance = time.perf_counter() - begun
    samples = len(recording.hidden) if recording is not None else 1
    learn = {"learn": watch.seconds("learn") / STEPS} if learner is not None else {}
    if reconstructor is not None:
        learn["reconstruct"] = watch.seconds("reconstruct") / _forwards(watched, samples)
    return {
        "record": watch.seconds("record") / samples,
        "prune": watch.seconds("prune"),
        "advance": advance / samples,
        **learn,
    }


@contextmanager
def _kept(run: WeightsRun, block: Block) -> Iterator[None]:
    """Give a model in memory its weights back; a streamed one's are read anew anyway."""
    held = isinstance(run.job.weights, InMemory)
    before = copy.deepcopy(block.module.state_dict()) if held else None
    try:
        yield
    finally:
        if before is not None:
            block.module.load_state_dict(before)
