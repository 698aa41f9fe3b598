"""``prunus.prune`` for methods that remove whole heads and neurons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.tokens import GIVEN
from ..errors import CalibrationError, InputError
from ..inputs import inputs, named, pick_device
from ..observer import Observer
from ..permutation.orders import Orders
from ..recipe import Recipe
from ..result import Result, write
from .run import Request, StructuredRun


def check_alone(recipe: Recipe, processes: int, staged: bool) -> None:
    """Raise InputError for what a run with the whole model in one memory cannot do."""
    if staged:
        raise InputError(
            f"{recipe.method} changes the widths of a model that is in memory as a whole, so "
            "there is nothing to resume or spill. Leave --resume and --spill out."
        )
    if processes > 1:
        raise InputError(
            f"{recipe.method} removes heads and neurons, which one process does alone; there are "
            f"{processes}. Start it without torchrun."
        )


def prune_structured(
    model: str | Path | PreTrainedModel,
    recipe: Recipe,
    output: Path | None,
    tokenizer: Any,
    tokens_ST: Tensor | None,
    trust_remote_code: bool,
    observer: Observer,
) -> Result:
    """Whole heads and neurons: the model is in memory, and becomes smaller there."""
    pruner, sparsity = recipe.build_units()
    source = recipe.calibration or ("builtin" if pruner.reads_text else "none")
    if tokens_ST is not None:
        source = GIVEN
    if pruner.reads_text and source == "none":
        raise CalibrationError(
            f"{recipe.method} so set reads text. Give a calibration source; self, which the model "
            "writes; or use l1, l2 or random without --recovery."
        )
    share = sparsity if recipe.parameters is None else None
    recipe = recipe.model_copy(update={"sparsity": share, "calibration": source})
    device = pick_device(recipe.device)
    weights, tokens, tokenizer = inputs(
        model, recipe, output is not None, tokenizer, tokens_ST, trust_remote_code, observer
    )
    request = Request(
        named(model, weights.model), recipe.method, pruner, sparsity, recipe.parameters,
        recipe.blocks, recipe.seed,
    )  # fmt: skip
    report = StructuredRun.of(weights.model, request, tokens, device, observer).prune()
    result = Result(report, Orders(), output, held=weights.model)
    if output is None:
        return result
    verification = write(result, tokenizer, recipe, observer, trust_remote_code)
    return replace(result, verification=verification)
