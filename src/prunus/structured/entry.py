"""``prunus.prune`` and ``prunus.plan`` for methods that remove whole heads and neurons."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..calibration.tokens import GIVEN
from ..errors import CalibrationError, InputError
from ..inputs import inputs, named, pick_device
from ..observer import Observer
from ..recipe import Recipe
from ..result import Result, carry_out
from ..samples import Samples
from .planning import SmallerPlan, forecast
from .run import StructuredRun


@dataclass(frozen=True)
class Asked:
    """What ``prune`` and ``plan`` are given.

    Attributes:
        model: a folder, hub id or GGUF; or a model in memory.
        recipe: every choice.
        written: whether a checkpoint is to come of it.
        spill: a folder for activations; None: they stay in memory.
        tokenizer: of a model in memory.
        tokens_ST: token ids or processed samples instead of text.
        trust_remote_code: run code that comes with the checkpoint.
        observer: told of every step.
    """

    model: str | Path | PreTrainedModel
    recipe: Recipe
    written: bool
    spill: str | Path | None
    tokenizer: Any
    tokens_ST: Samples | None
    trust_remote_code: bool
    observer: Observer


def check_alone(recipe: Recipe, processes: int) -> None:
    """Raise InputError if several processes are to do what one does alone."""
    if processes > 1:
        raise InputError(
            f"{recipe.method} removes heads and neurons, which one process does alone; there are "
            f"{processes}. Start it without torchrun."
        )


def prune_structured(asked: Asked, output: Path | None, resume: bool) -> Result:
    """Whole heads and neurons: each block becomes smaller, and is on disk then."""
    run, tokenizer = _prepared(asked)
    return carry_out(run, asked.model, output, resume, tokenizer, asked.trust_remote_code)


def plan_structured(asked: Asked) -> SmallerPlan:
    """The same on a few samples, for nothing; a model in memory is copied first."""
    held = isinstance(asked.model, PreTrainedModel)
    run, _ = _prepared(replace(asked, model=copy.deepcopy(asked.model)) if held else asked)
    return forecast(run, held)


def _prepared(asked: Asked) -> tuple[StructuredRun, Any]:
    """All that comes before the first change: a run, and the tokenizer if one is needed."""
    pruner, sparsity = asked.recipe.build_units()
    source = asked.recipe.calibration or ("builtin" if pruner.reads_text else "none")
    if asked.tokens_ST is not None:
        source = GIVEN
    if pruner.reads_text and source == "none":
        raise CalibrationError(
            f"{asked.recipe.method} so set reads text. Give a calibration source; self, which the "
            "model writes; or use l1, l2 or random without --recovery."
        )
    share = sparsity if asked.recipe.parameters is None else None
    recipe = asked.recipe.model_copy(update={"sparsity": share, "calibration": source})
    device = pick_device(recipe.device)
    weights, tokens, tokenizer = inputs(
        asked.model, recipe, asked.written, asked.tokenizer, asked.tokens_ST,
        asked.trust_remote_code, asked.observer, whole=pruner.wants("gradients"),
    )  # fmt: skip
    spill = None if asked.spill is None else Path(asked.spill).expanduser()
    name = named(asked.model, weights.model)
    run = StructuredRun.of(weights, name, recipe, pruner, tokens, device, asked.observer, spill)
    return run, tokenizer
