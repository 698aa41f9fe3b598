"""Models whose pruned layers are packed: from a packed checkpoint, or made of one with zeros."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.device import Dtype
from ..base.errors import CheckpointError, InputError, other_shape
from ..maths.packed import Packed, Values
from ..model.blocks import outputs_first
from ..model.zeros import sparse_linears
from ..storage.checkpoint import explained, folder_of, load_model
from ..storage.packed import is_packed, read_packed
from ..storage.widths import fill, in_dtype, read_widths, skeleton
from .packed_linear import PackedLinear


def pack_layers(model: PreTrainedModel, values: Values) -> None:
    """Pack the linear layers of all blocks that are at least 30 % zeros, in place.

    Raises:
        InputError: there are none.
        NumericalError: NaN or inf, which integers cannot hold.
    """
    for name, module in sparse_linears(model).items():
        model.set_submodule(name, PackedLinear.of(module, values))
    model.save_pretrained = _refuse  # type: ignore[method-assign]


@torch.no_grad()
def load_packed(folder: Path, dtype: Dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a packed checkpoint; the weights are mapped from its files, not copied.

    Args:
        folder: with ``packed.json``.
        dtype: of what is not packed; "auto": as stored.
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        CheckpointError: damaged, or of another model than config.json describes.
    """
    files = read_packed(folder)
    tensors = files.read()
    packed = {name: files.take(name, tensors) for name in files.layers}
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    state, widths = in_dtype(tensors.items(), wanted), read_widths(folder)
    with explained(folder):
        model = skeleton(folder, widths, state, trust_remote_code)
    _replace(model, folder, packed, state, narrowed=widths is not None)
    there = {key for name, own in packed.items() for key in own.named(name)}
    fill(folder, model, state, there)
    model.requires_grad_(False)
    model.eval()
    model.save_pretrained = _refuse  # type: ignore[method-assign]
    return model


def load_to_run(
    checkpoint: str | Path, dtype: Dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a model that is only run, its channels as they are stored: packed, or any other."""
    folder = folder_of(checkpoint)
    if is_packed(folder):
        return load_packed(folder, dtype, trust_remote_code)
    return load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)


def _replace(
    model: PreTrainedModel,
    folder: Path,
    packed: Mapping[str, Packed],
    state: Mapping[str, Tensor],
    *,
    narrowed: bool,
) -> None:
    """Put packed layers in place of dense ones, of the same shape unless blocks are narrowed."""
    like = next((x.dtype for x in state.values() if x.is_floating_point()), torch.float32)
    for name, own in packed.items():
        try:
            module: Any = model.get_submodule(name)
            shape = tuple(outputs_first(module).shape)
        except (AttributeError, TypeError):
            raise CheckpointError(
                f"{folder} holds {name}, which is no linear layer of the model that "
                "config.json describes. Export the checkpoint again."
            ) from None
        if shape != own.shape and not narrowed:
            raise CheckpointError(other_shape(name, own.shape, shape))
        bias_O = state.get(f"{name}.bias")
        model.set_submodule(name, PackedLinear(own, bias_O, like))


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise InputError(
        "The layers of this model are packed, which save_pretrained cannot write. Copy the "
        "checkpoint's folder, or use prunus export --to packed."
    )
