"""The proof that a module adds its output to the residual stream as it is.

Recovery that aims at the dense stream counts on it. A norm behind the output projection, or a
multiplier, would make its target wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..base.errors import UnsupportedModelError
from .blocks import Block
from .replay import Call
from .units import Depth2


@torch.no_grad()
def check_adds(block: Block, module: Depth2, call: Call, hidden: Tensor) -> None:
    """Check that the block's output is the stream before the module and what its reader puts out.

    Behind attention, while the MLP puts out zeros: the block's input and the output of o. Behind
    the MLP: what the block gives with zeros in place of the output of down, and that output.

    Args:
        block: with roles, its weights at hand.
        module: of it.
        call: a recorded call of the block.
        hidden: the hidden states of that call.

    Raises:
        UnsupportedModelError: it is something else.
    """
    size = float(hidden.float().std().clamp_min(1e-3))
    added = _uneven(hidden, size)
    zeros = {x.module: None for x in block.layers if x.role == "down"}
    if module.unit == "heads":
        before = hidden
        found = _run(block, call, hidden, {**zeros, module.reader.module: added})
    else:
        before = _run(block, call, hidden, zeros)
        found = _run(block, call, hidden, {**zeros, module.reader.module: added})
    if not _is_sum(found, (before, added, hidden), size):
        raise UnsupportedModelError(
            f"{module.reader.name}: this block does not add its output to the residual stream as "
            "it is (a norm or a factor comes between), so recovery cannot aim at the stream. "
            "Leave --set recovery_target=stream out."
        )


def _uneven(hidden: Tensor, size: float) -> Tensor:
    """Return a random output of that size in the mean, 16 times as large at some tokens as others.

    A norm behind it makes all tokens alike, so its result is far from this, whatever its weights.
    """
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(hidden.shape, generator=generator).to(hidden.device)
    tokens = torch.arange(hidden.shape[-2], device=hidden.device) % 3
    return (random * (size * 4.0 ** (tokens - 1.0))[:, None]).to(hidden)


def _is_sum(found: Tensor, parts: tuple[Tensor, Tensor, Tensor], size: float) -> bool:
    """Whether it is the first two parts' sum, but for a few roundings at the size of any of them.

    Entry by entry: some channels of a stream are so large that their rounding alone is a token's
    size.
    """
    before, added, hidden = (part.float() for part in parts)
    rounding = 4 * torch.finfo(found.dtype).eps
    allowed = rounding * (before.abs() + added.abs() + hidden.abs() + size)
    return bool(((found.float() - before - added).abs() <= allowed.clamp_min(1e-3 * size)).all())


def _run(
    block: Block, call: Call, hidden: Tensor, outputs: Mapping[nn.Module, Tensor | None]
) -> Tensor:
    """Run the block with these outputs in place of some layers' own; None stands for zeros."""
    with ExitStack() as stack:
        for layer, output in outputs.items():

            def put(
                _: nn.Module, args: tuple[Tensor, ...], own: Tensor, new: Tensor | None = output
            ) -> Tensor:
                return torch.zeros_like(own) if new is None else new.view(own.shape)

            stack.callback(layer.register_forward_hook(put).remove)
        return call(block.module, hidden.clone())
