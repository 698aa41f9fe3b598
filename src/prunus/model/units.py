"""The depth-2 modules of a block, and the rows and columns of each unit.

By looking, not from a config. Random numbers take the place of what q, k and v (or a fused qkv) put
out, so that every head attends to something else; the gradient of one head's output then says which
rows the head reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..base.errors import UnsupportedModelError
from ..maths.views import Unit
from .blocks import Block, Layer
from .heads import find_values
from .interior import neurons
from .nonzero import without_zeros
from .replay import Call

ONLY = "Use --set target={other} to prune the {other} alone."


@dataclass(frozen=True, eq=False)
class Depth2:
    """One depth-2 module of a block, cut into units. Valid until the first unit is removed.

    Attributes:
        unit: what the units are.
        block: index of the block.
        reader: the second-level layer.
        columns_UN: the reader's inputs that belong to each unit.
        sources: the first-level layers, each with the rows (U, M) of every unit.
        heads: query heads; 0 in an MLP.
        kv_heads: key/value heads; 0 in an MLP.
        value_row_I: in attention the row of ``values`` that each input of the reader is.
        values: in attention the layer that computes the values.
    """

    unit: Unit
    block: int
    reader: Layer
    columns_UN: Tensor
    sources: tuple[tuple[Layer, Tensor], ...]
    heads: int = 0
    kv_heads: int = 0
    value_row_I: Tensor | None = None
    values: Layer | None = None

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.columns_UN)

    @property
    def site(self) -> str:
        """The site that the first level reads."""
        return self.sources[0][0].site

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The first level's layers, then the second level's."""
        return (*(layer for layer, _ in self.sources), self.reader)

    @property
    def parameters(self) -> int:
        """Parameters of one unit: its rows with their biases, and its columns."""
        count = self.columns_UN.shape[1] * self.reader.shape[0]
        for layer, rows_UM in self.sources:
            count += rows_UM.shape[1] * (layer.shape[1] + (layer.bias_O is not None))
        return count

    @property
    def shared(self) -> bool:
        """Whether all query heads share one key/value head; then query heads are removed alone."""
        return self.kv_heads == 1 and self.units > 1

    @property
    def heads_per_unit(self) -> int:
        """The number of query heads in a unit."""
        return self.heads // self.units

    def left(self, kept: int) -> tuple[int, int]:
        """Return the numbers of query and key/value heads when ``kept`` units stay."""
        return kept * self.heads_per_unit, 1 if self.shared else kept * self.kv_heads // self.units


@torch.no_grad()
def find_modules(
    block: Block, call: Call, hidden: Tensor, wanted: Sequence[Unit] = ("heads", "neurons")
) -> list[Depth2]:
    """Find the block's depth-2 modules, attention first.

    Args:
        block: with roles, its weights at hand.
        call: a recorded call of it.
        hidden: the hidden states of that call, (1, T, d) with T at least 3.
        wanted: the kinds of units that are to be found.

    Raises:
        UnsupportedModelError: a wanted kind that the block does not have in a form that is known.
    """
    found = []
    for unit, role in (("heads", "o"), ("neurons", "down")):
        if unit not in wanted:
            continue
        readers = [layer for layer in block.layers if layer.role == role]
        if len(readers) != 1:
            raise UnsupportedModelError(
                f"{block.name} has {len(readers)} layers that could be the second level of its "
                f"{unit}; structured pruning needs exactly one. "
                + ONLY.format(other="neurons" if unit == "heads" else "heads")
            )
        with without_zeros(block.module, but=[layer.module for layer in block.layers]):
            found.append((_attention if unit == "heads" else _mlp)(block, readers[0], call, hidden))
    return found


def _mlp(block: Block, reader: Layer, call: Call, hidden: Tensor) -> Depth2:
    made = [layer for layer in block.layers if layer.feeds == reader.site]
    found = neurons(reader, made)
    rows: dict[Layer, list[Tensor]] = {}
    for layer, row_I in found.sources:
        rows.setdefault(layer, []).append(row_I)
    sources = tuple((layer, torch.stack(parts, 1)) for layer, parts in rows.items())
    return Depth2("neurons", block.index, reader, found.groups[0].T, sources)


def _attention(block: Block, reader: Layer, call: Call, hidden: Tensor) -> Depth2:
    values = find_values(block, reader, call, hidden)
    if values is None:
        raise UnsupportedModelError(
            f"{reader.name} does not read plain heads of values, so prunus cannot tell which rows "
            "belong to a head. " + ONLY.format(other="neurons")
        )
    makers = [layer for layer in block.layers if layer.feeds == reader.site]
    reach = _reach(block, reader, makers, values.heads, call, hidden)
    columns_HN = torch.arange(len(values.row_I)).view(values.heads, -1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for head, columns_N in enumerate(columns_HN):
        groups.setdefault(tuple(values.row_I[columns_N].tolist()), []).append(head)
    kv_heads = len(groups)
    if kv_heads == 1 and values.heads > 1:
        units = [[head] for head in range(values.heads)]
        reach = {layer: read_HO & ~read_HO.all(0) for layer, read_HO in reach.items()}
    else:
        units = list(groups.values())
    sources = tuple(
        (layer, _rows(layer, read_HO, units))
        for layer, read_HO in reach.items()
        if bool(read_HO.any())
    )
    columns_UN = torch.stack([columns_HN[heads].flatten() for heads in units])
    return Depth2(
        "heads", block.index, reader, columns_UN, sources, values.heads, kv_heads,
        values.row_I, values.layer,
    )  # fmt: skip


def _rows(layer: Layer, read_HO: Tensor, units: list[list[int]]) -> Tensor:
    """Return the layer's rows of each unit (U, M): no row in two units, equally many in each."""
    read_UO = torch.stack([read_HO[heads].any(0) for heads in units])
    counts = read_UO.sum(1)
    if bool((read_UO.sum(0) > 1).any()) or int(counts.min()) != int(counts.max()):
        raise UnsupportedModelError(
            f"{layer.name}: the heads of its attention do not read rows of their own (a norm across"
            " heads, or a layout that prunus does not know). " + ONLY.format(other="neurons")
        )
    return torch.stack([read_O.nonzero().flatten() for read_O in read_UO])


def _reach(
    block: Block, reader: Layer, makers: list[Layer], heads: int, call: Call, hidden: Tensor
) -> dict[Layer, Tensor]:
    """Tell for each maker which of its rows each head reads: bool (H, O)."""
    generator = torch.Generator().manual_seed(0)
    leaves: dict[Layer, Tensor] = {}
    seen: list[Tensor] = []

    def replaced(layer: Layer) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            leaf = torch.randn(output.shape, generator=generator).to(output).requires_grad_()
            leaves[layer] = leaf
            return leaf.clone()

        return hook

    with ExitStack() as stack, torch.enable_grad():
        for layer in makers:
            handle = layer.module.register_forward_hook(replaced(layer))  # type: ignore[arg-type]
            stack.callback(handle.remove)
        note = reader.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        stack.callback(note.remove)
        call(block.module, hidden.clone())
    with torch.enable_grad():
        target_THN = seen[0].flatten(0, -2).unflatten(-1, (heads, -1))
        direction = torch.randn(target_THN.shape, generator=generator).to(target_THN)
        each_H = (target_THN * direction).sum((0, 2)).unbind()
    reach: dict[Layer, list[Tensor]] = {layer: [] for layer in makers}
    for head in each_H:
        gradients = torch.autograd.grad(
            head, list(leaves.values()), retain_graph=True, allow_unused=True
        )
        for layer, gradient in zip(leaves, gradients, strict=True):
            width = layer.shape[0]
            empty = torch.zeros(width, dtype=torch.bool)
            read_O = empty if gradient is None else (gradient != 0).view(-1, width).any(0).cpu()
            reach[layer].append(read_O)
    return {layer: torch.stack(rows) for layer, rows in reach.items()}


def moved(module: Depth2, device: torch.device) -> Depth2:
    """Return the same with its indices on a device."""
    sources = tuple((layer, rows_UM.to(device)) for layer, rows_UM in module.sources)
    return replace(module, columns_UN=module.columns_UN.to(device), sources=sources)
