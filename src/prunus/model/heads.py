"""The value row and the head behind each input of an attention's output projection.

By looking, not from a config. The first token attends to itself alone: with the rows' own numbers
as its values, the output projection reads those numbers. And with values of 1 at the first token
and 0 at all others it reads the weight that each head gives to the first token: another head,
another weight. What q and k put out is random meanwhile, so that no two heads attend alike, not
even where a model has the same head twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blocks import Block, Layer
from .replay import Call

DIGIT = 256  # a whole number below it, divided by it, is exact in every floating dtype


@dataclass(frozen=True, eq=False)
class Values:
    """The inputs of an output projection.

    Attributes:
        layer: computes the values: v, or a fused qkv.
        row_I: its row for each input; several where query heads share a key/value head.
        heads: how many there are, of equal width, one after the other.
    """

    layer: Layer
    row_I: Tensor
    heads: int


def find_values(block: Block, reader: Layer, call: Call, hidden: Tensor) -> Values | None:
    """Find the values that ``reader`` (role o) reads; None if they are not rows of one layer.

    Args:
        block: with roles.
        reader: its output projection.
        call: a recorded call of it.
        hidden: the hidden states of that call, (1, T, d) with T at least 2.
    """
    makers = [x for x in block.layers if x.feeds == reader.site and x.role in ("v", "qkv")]
    if len(makers) != 1 or makers[0].expert is not None:
        return None
    layer = makers[0]

    def read(change: Callable[[Tensor], None]) -> Tensor:
        return _read(block, reader, layer, call, hidden, change)

    row_I = _rows(layer.shape[0], reader.shape[1], read)
    if row_I is None:
        return None
    rows = row_I.unique()

    def ones_first(values_TO: Tensor) -> None:
        values_TO[:, rows] = 0
        values_TO[0, rows] = 1

    weight_TI = read(ones_first)  # exact copies: each is a sum with one term
    edges = (weight_TI[:, 1:] != weight_TI[:, :-1]).any(0)
    starts = [0, *(edges.nonzero().flatten() + 1).tolist()]
    heads = len(starts)
    width = len(row_I) // heads
    if starts != [head * width for head in range(heads)] or width * heads != len(row_I):
        return None
    return Values(layer, row_I, heads)


def _rows(
    outputs: int, inputs: int, read: Callable[[Callable[[Tensor], None]], Tensor]
) -> Tensor | None:
    """Find the row behind each input, digit by digit; None if an input is no copy of a row."""
    row_I = torch.zeros(inputs, dtype=torch.int64)
    place = 1
    while place < outputs:
        digit_O = torch.arange(outputs) // place % DIGIT / DIGIT

        def numbered(values_TO: Tensor, digit_O: Tensor = digit_O) -> None:
            values_TO[0] = digit_O.to(values_TO)

        seen_I = read(numbered)[0].float().cpu() * DIGIT
        if not bool(((seen_I - seen_I.round()).abs() < 0.02).all()):
            return None
        row_I += seen_I.round().long() * place
        place *= DIGIT
    return row_I if 0 <= int(row_I.min()) and int(row_I.max()) < outputs else None


@torch.no_grad()
def _read(
    block: Block,
    reader: Layer,
    layer: Layer,
    call: Call,
    hidden: Tensor,
    change: Callable[[Tensor], None],
) -> Tensor:
    """Return what ``reader`` receives, (T, I), after ``layer``'s output (T, O) was changed.

    All else that the layers before it put out is random.
    """
    seen: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)

    def changed(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = torch.randn(output.shape, generator=generator).to(output)
        if module is layer.module:
            change(output.view(-1, output.shape[-1]))
        return output

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].flatten(0, -2).clone())

    with ExitStack() as stack:
        for maker in block.layers:
            if maker.feeds == reader.site:
                stack.callback(maker.module.register_forward_hook(changed).remove)
        stack.callback(reader.module.register_forward_pre_hook(note).remove)
        call(block.module, hidden.clone())
    return seen[0]
