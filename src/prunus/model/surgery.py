"""Removal of units: tensors become smaller, by one mechanism for all methods and families."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..base.errors import UnsupportedModelError, first_line
from .blocks import Block, Layer
from .nonzero import filled, without_zeros
from .replay import Call
from .units import Depth2

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_query_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
GROUPS = ("num_key_value_groups",)
WIDTH = ("split_size", "embed_dim", "hidden_size", "inner_dim", "all_head_size")
NEURONS = ("intermediate_size", "ffn_dim", "inner_dim", "n_inner", "ffn_hidden_size")

Undo = list[tuple[Any, str, Any]]


def shrink(block: nn.Module, name: str, module: Depth2, keep_U: Tensor) -> Undo:
    """Remove the units where ``keep_U`` is False; the rest computes as if they wrote zeros.

    Weights, biases and the numbers that the modules keep about their widths change; head_dim and
    the ratio of query to key/value heads stay.

    Args:
        block: the decoder layer.
        name: its full name, which the layers' names begin with.
        module: of it.
        keep_U: bool, True = stays. At least one.

    Returns:
        What was there before, for ``restore``.
    """
    undo: Undo = []
    keep_U = keep_U.cpu()
    for layer, rows_UM in module.sources:
        keep_O = torch.ones(layer.shape[0], dtype=torch.bool)
        keep_O[rows_UM.cpu()[~keep_U].flatten()] = False
        bias_O = layer.bias_O
        bias_O = None if bias_O is None else bias_O[keep_O.to(bias_O.device)]
        put(layer.module, layer.weight_OI[keep_O.to(layer.weight_OI.device)], bias_O, undo)
    keep_I = torch.ones(module.reader.shape[1], dtype=torch.bool)
    keep_I[module.columns_UN.cpu()[~keep_U].flatten()] = False
    reader = module.reader
    weight_OI = reader.weight_OI[:, keep_I.to(reader.weight_OI.device)]
    put(reader.module, weight_OI, reader.bias_O, undo)
    heads, kv_heads = module.left(int(keep_U.sum()))
    width = len(keep_I), int(keep_I.sum())
    owner = _owner(block, name, reader)
    if module.unit == "heads":
        if owner is not block:
            renumber(owner, HEADS, module.heads, heads, undo)
            renumber(owner, KV_HEADS, module.kv_heads, kv_heads, undo)
            ratios = module.heads // module.kv_heads, heads // kv_heads
            renumber(owner, GROUPS, *ratios, undo)
            renumber(owner, WIDTH, *width, undo)
    else:
        renumber(owner, NEURONS, *width, undo)
    return undo


def restore(undo: Undo) -> None:
    """Put the tensors back."""
    for owner, name, value in reversed(undo):
        setattr(owner, name, value)


def put(module: nn.Module, weight_OI: Tensor, bias_O: Tensor | None, undo: Undo) -> None:
    """Give a Linear or Conv1D another weight and bias, of any shape."""
    stored = weight_OI.T if isinstance(module, Conv1D) else weight_OI
    outputs, inputs = weight_OI.shape
    _set(module, "weight", _parameter(stored, module.weight), undo)
    if bias_O is not None:
        _set(module, "bias", _parameter(bias_O, module.weight), undo)
    pairs = {"out_features": outputs, "in_features": inputs, "nf": outputs, "nx": inputs}
    for name, number in pairs.items():
        if hasattr(module, name):
            _set(module, name, number, undo)


def renumber(owner: nn.Module, names: tuple[str, ...], old: int, new: int, undo: Undo) -> None:
    """Change those attributes that hold the old number."""
    for name in names:
        if type(value := getattr(owner, name, None)) is int and value == old:
            _set(owner, name, new, undo)


@torch.no_grad()
def rehearse(block: Block, module: Depth2, call: Call, hidden: Tensor) -> None:
    """Remove every other unit, check that the block computes the right thing, restore it.

    Raises:
        UnsupportedModelError: it fails, or gives something else than with those units silenced.
    """
    if module.units < 2:
        raise UnsupportedModelError(
            f"{module.reader.name}: there is one unit of {module.unit} only, and one must stay. "
            f"Leave this block out (--blocks), or use --set target="
            f"{'neurons' if module.unit == 'heads' else 'heads'}."
        )
    with without_zeros(block.module):  # where a unit writes zeros, a wrong one would not show
        _compare(block, module, call, filled(hidden))


def _compare(block: Block, module: Depth2, call: Call, hidden: Tensor) -> None:
    """Compare half of the units removed with half of the units silenced."""
    keep_U = torch.arange(module.units) % 2 == 0
    with _silenced(module, keep_U):
        expected = call(block.module, hidden.clone()).float()
    undo = shrink(block.module, block.name, module, keep_U)
    try:
        found = call(block.module, hidden.clone()).float()
        added = (expected - hidden.float()).abs().max().clamp_min(1e-12)
        off = float((found - expected).abs().max() / added)
    except (RuntimeError, ValueError) as error:
        raise _cannot(module, first_line(error)) from None
    finally:
        restore(undo)
    if not off <= (1e-3 if hidden.dtype == torch.float32 else 5e-2):
        raise _cannot(module, f"its output is off by {off:.2g} of what it adds")


@contextmanager
def _silenced(module: Depth2, keep_U: Tensor) -> Iterator[None]:
    """Give the reader zeros where the removed units write."""
    columns = module.columns_UN[~keep_U].flatten()

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        inputs = args[0].clone()
        inputs[..., columns.to(inputs.device)] = 0
        return (inputs, *args[1:])

    handle = module.reader.module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _cannot(module: Depth2, why: str) -> UnsupportedModelError:
    other = "neurons" if module.unit == "heads" else "heads"
    return UnsupportedModelError(
        f"{module.reader.name}: with fewer {module.unit} this block does not compute what it "
        f"should ({why}). Its code counts on widths that prunus does not know. "
        f"Use --set target={other} to prune the {other} alone."
    )


def _owner(block: nn.Module, name: str, reader: Layer) -> nn.Module:
    """Return the module that the reader is a part of."""
    inside = reader.name.removeprefix(f"{name}.")
    return block.get_submodule(inside.rpartition(".")[0])


def _parameter(tensor: Tensor, like: Any) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous().to(like), requires_grad=like.requires_grad)


def _set(owner: Any, name: str, value: Any, undo: Undo) -> None:
    undo.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)
