"""Forwards of one block that stop as soon as they have shown what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import NumericalError, UnsupportedModelError
from .blocks import Block, Layer
from .replay import Call

Watcher = Callable[[Tensor], None]


class _Enough(Exception):  # noqa: N818 - a signal, not an error; never leaves this file
    pass


def watch(
    block: Block,
    call: Call,
    hidden: Tensor,
    inputs: Sequence[tuple[nn.Module, Sequence[Watcher]]] = (),
    outputs: Mapping[nn.Module, Watcher] | None = None,
    module: nn.Module | None = None,
    stop: bool = True,
) -> Tensor | None:
    """Run the block and hand over what these modules read and return, as (T, ·).

    Args:
        block: whose call it is.
        call: a recorded one.
        hidden: its hidden states.
        inputs: modules whose inputs are wanted, each with those who want them.
        outputs: modules whose outputs are wanted, by whom.
        module: runs in place of the block's own.
        stop: leave the forward as soon as each of them has run once; what is handed over must be
            finite then.

    Returns:
        What the block puts out; None if it was left before.

    Raises:
        NumericalError: NaN or inf in what is handed over.
    """
    left = len(inputs) + len(outputs or {})

    def hand(watchers: Sequence[Watcher], tensor: Tensor) -> None:
        nonlocal left
        if stop and not bool(tensor.isfinite().all()):
            raise NumericalError(
                f"{block.name}: NaN or inf in an activation. Use a wider dtype (--dtype float32)."
            )
        for see in watchers:
            see(tensor.flatten(0, -2))
        left -= 1
        if stop and not left:
            raise _Enough

    def before(watchers: Sequence[Watcher]) -> Callable[..., None]:
        return lambda _, args: hand(watchers, args[0])

    def after(see: Watcher) -> Callable[..., None]:
        return lambda _, args, output: hand([see], output)

    with ExitStack() as stack:
        for reader, watchers in inputs:
            stack.callback(reader.register_forward_pre_hook(before(watchers)).remove)
        for writer, see in (outputs or {}).items():
            stack.callback(writer.register_forward_hook(after(see)).remove)
        try:
            return call(module or block.module, hidden)
        except _Enough:
            return None


@contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """Switch attention to transformers' plain code, which returns its maps; then switch back."""
    config: Any = model.config
    own = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = own


@torch.no_grad()
def attention_maps(block: Block, reader: Layer, call: Call, hidden: Tensor, heads: int) -> Tensor:
    """Return each head's attention (B, H, T, T); within ``eager``, with a call recorded there.

    Raises:
        UnsupportedModelError: the attention module does not return them.
    """
    seen: list[Any] = []
    inside = reader.name.removeprefix(f"{block.name}.").rpartition(".")[0]
    owner = block.module.get_submodule(inside)
    handle = owner.register_forward_hook(lambda _, args, output: seen.append(output))
    try:
        call(block.module, hidden)
    finally:
        handle.remove()
    maps = seen[0][1] if seen and isinstance(seen[0], tuple) and len(seen[0]) > 1 else None
    if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[1] != heads:
        raise UnsupportedModelError(
            f"{block.name}.{inside} does not return attention maps, even in eager mode, so heads "
            "cannot be compared by what they attend to. Use flap or wanda-sp, or goa with --set "
            "target=neurons."
        )
    if not bool(maps.isfinite().all()):
        raise NumericalError(f"{block.name}: attention maps hold NaN or inf.")
    return maps
