"""``prunus.prune`` and ``prunus.plan`` for methods that remove whole heads and neurons."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration import Protocol
from ..calibration.tokens import GIVEN
from ..errors import CalibrationError, InputError
from ..inputs import inputs, named, pick_device
from ..observer import Observer
from ..permutation.orders import Orders
from ..recipe import Recipe
from ..result import Result, write
from .planning import SmallerPlan, forecast
from .run import Request, StructuredRun


@dataclass(frozen=True)
class Asked:
    """What ``prune`` and ``plan`` are given.

    Attributes:
        model: a folder, hub id or GGUF; or a model in memory.
        recipe: every choice.
        written: whether a checkpoint is to come of it.
        spill: a folder for activations; None: they stay in memory.
        tokenizer: of a model in memory.
        tokens_ST: token ids instead of text.
        trust_remote_code: run code that comes with the checkpoint.
        observer: told of every step.
    """

    model: str | Path | PreTrainedModel
    recipe: Recipe
    written: bool
    spill: str | Path | None
    tokenizer: Any
    tokens_ST: Tensor | None
    trust_remote_code: bool
    observer: Observer


@dataclass(frozen=True)
class _Prepared:
    """All that comes before the look at the model."""

    model: PreTrainedModel
    request: Request
    recipe: Recipe
    tokens: tuple[Tensor | None, Protocol | None]
    tokenizer: Any
    device: torch.device
    spill: Path | None


def check_alone(recipe: Recipe, processes: int, resume: bool) -> None:
    """Raise InputError for what a run with the whole model in one memory cannot do."""
    if resume:
        raise InputError(
            f"{recipe.method} changes the widths of a model that is in memory as a whole, and "
            "writes it at the end: there is nothing to resume. Leave --resume out."
        )
    if processes > 1:
        raise InputError(
            f"{recipe.method} removes heads and neurons, which one process does alone; there are "
            f"{processes}. Start it without torchrun."
        )


def prune_structured(asked: Asked, output: Path | None) -> Result:
    """Whole heads and neurons: the model is in memory, and becomes smaller there."""
    ready, observer = _prepared(asked), asked.observer
    run = StructuredRun.of(
        ready.model, ready.request, ready.tokens, ready.device, observer, ready.spill
    )
    result = Result(run.prune(), Orders(), output, held=ready.model)
    if output is None:
        return result
    proof = write(result, ready.tokenizer, ready.recipe, observer, asked.trust_remote_code)
    return replace(result, verification=proof)


def plan_structured(asked: Asked) -> SmallerPlan:
    """The same on a few samples, for nothing; a model in memory is copied first."""
    ready = _prepared(asked)
    held = isinstance(asked.model, PreTrainedModel)
    model = copy.deepcopy(ready.model) if held else ready.model
    return forecast(model, ready.request, ready.tokens, ready.device, ready.spill)


def _prepared(asked: Asked) -> _Prepared:
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
        asked.trust_remote_code, asked.observer,
    )  # fmt: skip
    request = Request(
        named(asked.model, weights.model), recipe.method, pruner, sparsity, recipe.parameters,
        recipe.blocks, recipe.seed,
    )  # fmt: skip
    spill = None if asked.spill is None else Path(asked.spill).expanduser()
    return _Prepared(weights.model, request, recipe, tokens, tokenizer, device, spill)
