"""``prunus.prune`` and ``prunus.plan`` for methods that remove whole heads and neurons."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..base.device import pick_device
from ..base.errors import CalibrationError, InputError
from ..recipe import Recipe
from ..text.given import Given, how_many, source_name
from .finish import Result, carry_out
from .forecast import REHEARSED, make_room
from .observer import Observer
from .prepare import inputs, named
from .smaller import StructuredRun
from .smaller_forecast import SmallerPlan, forecast, need


@dataclass(frozen=True)
class Asked:
    """What ``prune`` and ``plan`` are given.

    Attributes:
        model: a folder, hub id or GGUF; or a model in memory.
        recipe: every choice.
        written: whether a checkpoint is to come of it.
        spill: a folder for activations; None: they stay in memory.
        tokenizer: of a model in memory.
        given: token ids, processed samples or texts that were given in Python.
        trust_remote_code: run code that comes with the checkpoint.
        observer: told of every step.
    """

    model: str | Path | PreTrainedModel
    recipe: Recipe
    written: bool
    spill: str | Path | None
    tokenizer: Any
    given: Given | None
    trust_remote_code: bool
    observer: Observer

    @property
    def samples(self) -> int:
        """How many there are, or will be."""
        return how_many(self.given, self.recipe.samples)


def check_alone(recipe: Recipe, processes: int) -> None:
    """Raise InputError if several processes are to do what one does alone."""
    if processes > 1:
        raise InputError(
            f"{recipe.method} removes heads and neurons, which one process does alone; there are "
            f"{processes}. Start it without torchrun."
        )


def prune_structured(
    asked: Asked, output: Path | None, resume: bool, allow_different: bool = False
) -> Result:
    """Whole heads and neurons: each block becomes smaller, and is on disk then."""
    run, tokenizer = _prepared(asked)
    make_room(run, need(run), output, resume)
    trust = asked.trust_remote_code
    return carry_out(run, asked.model, output, resume, tokenizer, trust, allow_different)


def plan_structured(asked: Asked) -> SmallerPlan:
    """The same on a few samples, for nothing; a model in memory is copied first."""
    held, samples = isinstance(asked.model, PreTrainedModel), asked.samples
    if held:
        asked = replace(asked, model=copy.deepcopy(asked.model))
    few = asked.recipe.model_copy(update={"samples": min(samples, REHEARSED)})
    run, _ = _prepared(replace(asked, recipe=few))
    return forecast(run, held, samples)


def _prepared(asked: Asked) -> tuple[StructuredRun, Any]:
    """All that comes before the first change: a run, and the tokenizer if one is needed."""
    pruner, sparsity = asked.recipe.build_units()
    default = "builtin" if pruner.reads_text else "none"
    source = source_name(asked.recipe.calibration, default, asked.given)
    if pruner.reads_text and source == "none":
        raise CalibrationError(
            f"{asked.recipe.method} so set reads text. Give a calibration source; self, which the "
            "model writes; or use l1, l2 or random without --recovery."
        )
    share = sparsity if asked.recipe.parameters is None else None
    recipe = asked.recipe.model_copy(update={"sparsity": share, "calibration": source})
    device = pick_device(recipe.device)
    weights, tokens, tokenizer = inputs(
        asked.model, recipe, asked.written, asked.tokenizer, asked.given,
        asked.trust_remote_code, asked.observer, pruner.wants("gradients"), asked.spill,
    )  # fmt: skip
    spill = None if asked.spill is None else Path(asked.spill).expanduser()
    name = named(asked.model, weights.model)
    run = StructuredRun.of(weights, name, recipe, pruner, tokens, device, asked.observer, spill)
    return run, tokenizer
