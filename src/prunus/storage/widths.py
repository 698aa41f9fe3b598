"""Checkpoints whose blocks have different widths: ``widths.json``, and the model built from it.

A family's config has one width for all blocks. Where all blocks are equally wide still, the stock
config gets the new numbers and nothing else is needed. Where they are not, or where a block has a
bias that the family does not have, config.json stays that of the dense model, so that plain
transformers stops at the first shape that differs; and ``widths.json`` says what each block has.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..base.errors import CheckpointError
from ..base.words import a_few
from ..model.blocks import find_blocks
from ..model.surgery import put
from ..report.units import BlockWidths
from .kinds import class_at

FILE = "widths.json"
FORMAT = 1
INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_inner")
_WIDTHS = "_prunus_widths"
_BLOCKS = TypeAdapter(list[BlockWidths])


def stock_config(
    model: PreTrainedModel, blocks: Sequence[str], widths: Sequence[BlockWidths]
) -> Any:
    """Return the family's own config with the new widths; None if it cannot express them.

    The proof is by construction: a model that is built from the config has the same parameters with
    the same shapes, and its modules hold the same numbers.
    """
    config, first = copy.deepcopy(model.config), widths[0]
    if any(width != first for width in widths):
        return None
    text = config.get_text_config()  # the config itself, but for a model with towers beside
    names = [name for name in INTERMEDIATE if hasattr(text, name)]
    try:
        if first.heads is not None and first.heads != text.num_attention_heads:
            text.head_dim = _head_dim(text)
            text.num_attention_heads = first.heads
            if getattr(text, "num_key_value_heads", None) is not None:
                text.num_key_value_heads = first.kv_heads
        if _says(config, model, blocks, widths):  # the neurons are as many as they were
            return config
        if not names or first.intermediate is None:
            return None
        setattr(text, names[0], first.intermediate)
        return config if _says(config, model, blocks, widths) else None
    except Exception:  # a family's own checks, of any kind: it cannot say these widths
        return None


def adopt(config: Any, stock: Any) -> None:
    """Give the model's own config, which its modules share, the numbers of the stock config."""
    own = config.to_dict()
    for name, value in stock.to_dict().items():
        if isinstance(getattr(config, name, None), PreTrainedConfig):  # of the text, or a tower
            adopt(getattr(config, name), getattr(stock, name))
        elif name not in own or own[name] != value:
            setattr(config, name, value)


def _says(
    config: Any, model: PreTrainedModel, blocks: Sequence[str], widths: Sequence[BlockWidths]
) -> bool:
    """Whether a model that is built from the config has this one's shapes and numbers."""
    with init_empty_weights():
        made = type(model)(type(config).from_dict(config.to_dict()))
    return _shapes(made) == _shapes(model) and all(
        _number(made.get_submodule(block), path) == number
        for block, width in zip(blocks, widths, strict=True)
        for path, number in width.numbers.items()
    )


def _head_dim(config: Any) -> int:
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _number(block: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(block.get_submodule(owner), name, None)


def to_json(widths: Sequence[BlockWidths]) -> str:
    """Return the text of ``widths.json``."""
    lines = ",\n  ".join(json.dumps(asdict(width)) for width in widths)
    return f'{{"format": {FORMAT}, "blocks": [\n  {lines}\n]}}\n'


def widths_of(model: PreTrainedModel) -> list[BlockWidths] | None:
    """Return the widths of a model in memory if its config cannot express them, else None."""
    return getattr(model, _WIDTHS, None)


def note_widths(model: PreTrainedModel, widths: list[BlockWidths] | None) -> None:
    """Attach the widths to the model, so that they are written wherever it is saved next."""
    setattr(model, _WIDTHS, widths)


def read_widths(folder: str | Path) -> list[BlockWidths] | None:
    """Return the widths of all blocks; None if the folder has no ``widths.json``.

    Raises:
        CheckpointError: the file is damaged, or of a later format.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        form, blocks = content["format"], json.dumps(content["blocks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from None
    if form != FORMAT:
        raise CheckpointError(f"{path} has format {form!r}; this prunus reads {FORMAT}.")
    try:
        return _BLOCKS.validate_json(blocks, strict=True)  # a word is no number
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"blocks.{where}: {first['msg'].lower()}") from None


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({reason}). Copy the checkpoint again.")


def rebuilt(
    folder: Path,
    widths: list[BlockWidths],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: Any,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Return the model of a folder with ``widths.json``, with its tensors loaded.

    Args:
        folder: where config.json of the dense model is.
        widths: widths of all blocks, from ``read_widths``.
        tensors: all tensors of the checkpoint with their names.
        dtype: dtype of the weights; "auto": as they are stored.
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        CheckpointError: the tensors do not fit the widths.
    """
    state = in_dtype(tensors, dtype)
    model = skeleton(folder, widths, state, trust_remote_code)
    fill(folder, model, state)
    return model


def in_dtype(tensors: Iterable[tuple[str, Tensor]], dtype: Any) -> dict[str, Tensor]:
    """Return tensors by name, floating ones in a dtype; "auto": as they are."""
    return {
        name: tensor.to(dtype) if dtype != "auto" and tensor.is_floating_point() else tensor
        for name, tensor in tensors
    }


def skeleton(
    folder: Path,
    widths: list[BlockWidths] | None,
    state: Mapping[str, Tensor],
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Return the model that config.json and widths describe, without weights: on meta.

    Args:
        folder: where config.json is.
        widths: of all blocks; None: those of config.json.
        state: tensors whose shapes the linear layers of blocks get where there are widths.
        trust_remote_code: run code that the checkpoint brings.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with init_empty_weights():
        made = class_at(folder).from_config(config, trust_remote_code=trust_remote_code)
    model: PreTrainedModel = made
    if widths is not None:
        _narrow(folder, model, widths, state)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _narrow(
    folder: Path, model: PreTrainedModel, widths: list[BlockWidths], state: Mapping[str, Tensor]
) -> None:
    blocks = find_blocks(model)
    if len(blocks) != len(widths):
        raise CheckpointError(
            f"{folder / FILE} has {len(widths)} blocks, but config.json has {len(blocks)}."
        )
    with torch.no_grad():
        for name, block in blocks.items():
            resize(name, block, state)
        for block, width in zip(blocks.values(), widths, strict=True):
            renumbered(block, width.numbers)
    note_widths(model, widths)


def renumbered(block: nn.Module, numbers: Mapping[str, int]) -> None:
    """Set the attributes that surgery changed beside tensors, by their path in the block."""
    for path, number in numbers.items():
        owner, _, attribute = path.rpartition(".")
        setattr(block.get_submodule(owner), attribute, number)


def resize(name: str, block: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every linear layer the shape, and the bias, that its tensors have.

    Args:
        name: name of the block.
        block: the block of the dense model.
        state: the tensors of the checkpoint by full name.
    """
    for path, module in block.named_modules():
        weight = state.get(f"{name}.{path}.weight")
        if isinstance(module, nn.Linear | Conv1D) and weight is not None:
            weight_OI = weight.T if isinstance(module, Conv1D) else weight
            bias_O = state.get(f"{name}.{path}.bias")
            old: Any = module.bias
            if weight_OI.shape != _outputs_first(module) or (bias_O is None) != (old is None):
                module.weight = nn.Parameter(weight, module.weight.requires_grad)
                put(module, weight_OI, bias_O, [])


def _outputs_first(module: nn.Module) -> torch.Size:
    weight: Any = module.weight
    return torch.Size(reversed(weight.shape)) if isinstance(module, Conv1D) else weight.shape


def fill(
    folder: Path,
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    there: Collection[str] = (),
) -> None:
    """Load tensors by name; ``there``: what the model has already.

    Raises:
        CheckpointError: some are missing, unexpected, or of another shape.
    """
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    try:
        loading = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()
        raise CheckpointError(f"{folder}: {' '.join(first[1:2] or first).strip()}") from None
    missing = [key for key in loading.missing_keys if key not in tied and key not in there]
    if missing or loading.unexpected_keys:
        raise CheckpointError(
            f"{folder} does not hold the tensors that its config requires: missing: "
            f"{a_few(missing) or 'none'}; unexpected: "
            f"{a_few(loading.unexpected_keys) or 'none'}."
        )
    model.tie_weights()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
