"""What a run starts from: a model, calibration tokens, a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .calibration import Protocol
from .calibration.tokens import GIVEN, calibration_tokens, given_samples
from .checkpoint import find, load_tokenizer, load_weights, tokenizer_to_copy
from .errors import InputError, UnknownNameError
from .hub import commit_of
from .kinds import check_model
from .observer import Observer
from .recipe import Recipe
from .samples import Samples
from .weights import InMemory, Weights


def inputs(
    model: str | Path | PreTrainedModel,
    recipe: Recipe,
    written: bool,
    tokenizer: Any,
    tokens_ST: Samples | None,
    trust_remote_code: bool,
    observer: Observer,
    whole: bool = False,
) -> tuple[Weights, tuple[Samples | None, Protocol | None], Any]:
    """Return the weights, the calibration tokens, and the tokenizer that is to be saved.

    None is saved where the source's own files are copied.

    A path is read block by block if a checkpoint is to be ``written``, unless the method wants the
    ``whole`` model in memory.
    """
    weights: Weights
    saved = tokenizer
    if isinstance(model, str | Path):
        observer.say(f"loading {model}")
        carried = find(model).is_folder  # with all other files
        if tokenizer is None and recipe.calibration not in ("none", GIVEN):
            tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
            saved = None if carried else tokenizer
        elif tokenizer is None and written and not carried:
            saved = tokenizer_to_copy(model, trust_remote_code, observer.say)
        # Text that the model writes takes hundreds of forwards: not from disk.
        stream = written and recipe.calibration != "self" and not whole
        weights = load_weights(
            model, dtype=recipe.dtype, trust_remote_code=trust_remote_code, stream=stream
        )
    else:
        in_memory(model, recipe.dtype)
        model.eval()
        weights = InMemory(model)
    tokens: tuple[Samples | None, Protocol | None] = (
        given_samples(tokens_ST, weights.model)
        if tokens_ST is not None
        else _tokens(weights.model, tokenizer, recipe, observer)
    )
    return weights, tokens, saved


def named(model: Any, loaded: PreTrainedModel) -> str:
    """What the report calls the model.

    A path from the root, a hub id with its commit, or that the model was in memory.
    """
    given = isinstance(model, str | Path)
    name = str(model if given else loaded.config.name_or_path or "")
    path = Path(name).expanduser()
    if name and path.exists():
        return commit_of(path) or str(path.absolute())
    return (find(name).hub if given else None) or name or "in memory"


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise UnknownNameError("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnknownNameError("device", name, ["auto", "cpu", "cuda", "cuda:0"]) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch sees no CUDA device. Use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name}: this torch sees {torch.cuda.device_count()} CUDA devices, counted "
            "from 0."
        )
    return device


def in_memory(model: Any, dtype: str) -> None:
    """Raise InputError if this is no model in memory that can be worked on as it is."""
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            "A model in memory is a transformers PreTrainedModel, unwrapped; got "
            f"{type(model).__name__}. Or give a folder, a hub id or a GGUF."
        )
    check_model(model)
    if torch.is_inference_mode_enabled():
        raise InputError(
            "Tensors of torch.inference_mode() have no gradients, which the look at a model needs. "
            "Call prunus outside of it."
        )
    if any(hasattr(module, "input_order") for module in model.modules()):
        raise InputError(
            "This model reads some inputs through indices (prunus.load of a gathered checkpoint); "
            "they would be lost. Give the checkpoint's folder instead."
        )
    if dtype != "auto":
        raise InputError(f"dtype={dtype} is for models that are loaded; convert this one first.")


def _tokens(
    model: PreTrainedModel, tokenizer: Any, recipe: Recipe, observer: Observer
) -> tuple[Tensor | None, Protocol | None]:
    return calibration_tokens(
        model,
        tokenizer,
        source=recipe.calibration or "none",
        samples=recipe.samples,
        length=recipe.length,
        seed=recipe.seed,
        data_dir=recipe.data_dir,
        say=observer.say,
    )
