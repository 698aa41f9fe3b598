"""What a run starts from: a model, calibration tokens, a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..base.errors import InputError
from ..base.team import ALONE, Team
from ..methods.answering import LENGTH
from ..model.weights import InMemory, Weights
from ..recipe import Recipe
from ..storage.checkpoint import find, load_tokenizer, load_weights, tokenizer_to_copy
from ..storage.hub import commit_of
from ..storage.kinds import check_model
from ..text.given import IDS, Given
from ..text.tokens import window_length
from .job import Text
from .observer import Observer
from .reading import Journaled, Reading, Source, model_writes, read, unjournaled
from .room import Need, fit
from .whole import check_whole


def inputs(
    model: str | Path | PreTrainedModel,
    recipe: Recipe,
    written: bool,
    tokenizer: Any,
    given: Given | None,
    trust_remote_code: bool,
    observer: Observer,
    whole: bool = False,
    spill: str | Path | None = None,
    team: Team = ALONE,
    journaled: Journaled = unjournaled,
) -> tuple[Weights, Text, Text | None, Any]:
    """Return the weights, the calibration tokens, those of recovery, and the tokenizer to save.

    None is saved where the source's own files are copied. Recovery has tokens of its own, or None.

    A path is read block by block if a checkpoint is to be ``written``, unless the method wants the
    ``whole`` model in memory. Text is read first: a file that cannot be used costs no loading.

    Raises:
        RoomError: a model, or text, that takes more memory than there is.
    """
    weights: Weights
    saved, fit = tokenizer, _recovery(recipe)
    texts = [r for r in (recipe, fit) if r is not None and r.calibration not in ("none", IDS)]
    if isinstance(model, str | Path):
        observer.say(f"loading {model}")
        carried = find(model).is_folder  # with all other files
        if tokenizer is None and texts:
            tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
            saved = None if carried else tokenizer
        elif tokenizer is None and written:
            found = tokenizer_to_copy(model, trust_remote_code, observer.say)
            saved = None if carried else found
        sources = _all_read(recipe, fit, tokenizer, given, observer)
        # Text that the model writes takes hundreds of forwards: not from disk.
        stream = written and not any(map(model_writes, texts)) and not whole
        check_whole(model, recipe.dtype, stream, team.beside)
        weights = load_weights(
            model, dtype=recipe.dtype, trust_remote_code=trust_remote_code, stream=stream
        )
    else:
        in_memory(model, recipe.dtype)
        check_stored(model)
        sources = _all_read(recipe, fit, tokenizer, given, observer)
        model.eval()
        weights = InMemory(model)
    if texts:
        samples = sum(r.samples for r in texts)
        _check_text(weights.model, recipe, samples, None if spill is None else Path(spill), team)
    reader = Reading(weights.model, tokenizer, observer, journaled)
    tokens = reader.tokens(recipe, sources[0], given)
    if fit is None:
        return weights, tokens, None, saved
    return weights, tokens, reader.tokens(fit, sources[1], None, "recovery"), saved


def _recovery(recipe: Recipe) -> Recipe | None:
    """Return the recipe whose calibration text is that of recovery; None: it is the same.

    Raises:
        InputError: it is no text.
    """
    fit = recipe.text_of_recovery()
    if fit is not None and fit.calibration in ("none", IDS):
        if recipe.recovery_text is None:
            raise InputError(
                "--recovery-samples draws windows from the calibration text, and there is none. "
                "Give --recovery-text SOURCE."
            )
        raise InputError(
            f"--recovery-text is a SOURCE of text; got {recipe.recovery_text}. Leave it out to "
            "recover on the calibration text."
        )
    return fit


def _all_read(
    recipe: Recipe, fit: Recipe | None, tokenizer: Any, given: Given | None, observer: Observer
) -> tuple[list[Source], list[Source]]:
    """Return the calibration text and that of recovery, which may be the same."""
    own = read(recipe, tokenizer, given, observer)
    if fit is None or recipe.recovery_text is None:
        return own, own
    return own, read(fit, tokenizer, None, observer)


def named(model: Any, loaded: PreTrainedModel) -> str:
    """Return the name that the report gives the model.

    A path from the root, a hub id with its commit, or that the model was in memory.
    """
    given = isinstance(model, str | Path)
    name = str(model if given else loaded.config.name_or_path or "")
    path = Path(name).expanduser()
    if name and path.exists():
        return commit_of(path) or str(path.absolute())
    return (find(name).hub if given else None) or name or "in memory"


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
    if dtype != "auto":
        raise InputError(f"dtype={dtype} is for models that are loaded; convert this one first.")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    check_place({name: x.device for name, x in tensors}, getattr(model, "hf_device_map", {}))


def check_stored(model: PreTrainedModel) -> None:
    """Raise InputError if a layer reads its inputs through indices, which pruning would lose."""
    if any(hasattr(module, "input_order") for module in model.modules()):
        raise InputError(
            "This model reads some inputs through indices (prunus.load of a gathered checkpoint); "
            "they would be lost. Give the checkpoint's folder instead."
        )


def check_place(devices: Mapping[str, torch.device], device_map: Mapping[str, Any]) -> None:
    """Raise InputError unless all of a model is there, and on one device.

    Args:
        devices: of its parameters and buffers.
        device_map: where accelerate has put its modules, by their names.
    """
    cure = (
        "Give the folder, which prunus reads block by block, or load the model without device_map"
    )
    first = next(iter(devices.values()), torch.device("cpu"))
    for name, device in devices.items():
        if device.type == "meta":
            owners = [x for x in device_map if not x or f"{name}.".startswith(f"{x}.")]
            home = device_map[max(owners, key=len)] if owners else None
            kept = {"disk": "on disk", "cpu": "in the CPU's memory"}.get(str(home), "")
            where = f"accelerate keeps it {kept} (device_map)" if kept else "it has no values"
            raise InputError(f"{name} is on the meta device: {where}. {cure}.")
        if device != first:
            other = next(iter(devices))
            raise InputError(
                f"{name} is on {device}, {other} on {first}: prunus works on one device. {cure}."
            )


def _check_text(
    model: PreTrainedModel, recipe: Recipe, samples: int, spill: Path | None, team: Team
) -> None:
    """Raise RoomError for text that cannot fit, before it is drawn: by what is known by now."""
    length = window_length(model, recipe.length)
    if recipe.answers:
        length = min(length, recipe.answer_length or LENGTH)  # conversations may be as short
    features = getattr(model.config.get_text_config(), "hidden_size", 0)
    own = team.share(samples)
    need = Need(
        samples=samples,
        length=length,
        activations=(own.stop - own.start) * length * features * model.dtype.itemsize,
        ids=8 * samples * length,
        wide=model.dtype.itemsize > 2,
        beside=team.beside,
    )
    fit(need, spill, None)
