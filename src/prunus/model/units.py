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
        each: where query heads are removed alone, the same with every query head a unit; a unit is
            then one head of every key/value group.
        heads_UG: these heads, of every unit.
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
    each: Depth2 | None = None
    heads_UG: Tensor | None = None

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
    def scored(self) -> Depth2:
        """What a score is taken of: query heads one by one where units are made of those."""
        return self.each or self

    @property
    def heads_per_unit(self) -> int:
        """The number of query heads in a unit."""
        return self.heads // self.units

    def left(self, kept: int) -> tuple[int, int]:
        """Return the numbers of query and key/value heads when ``kept`` units stay."""
        alone = self.heads_UG is not None
        kv_heads = self.kv_heads if alone else kept * self.kv_heads // self.units
        return kept * self.heads_per_unit, kv_heads

    def kept(self, keep_U: Tensor) -> list[int]:
        """Return what stays: groups of heads by their number; query heads where those go alone."""
        if self.heads_UG is None:
            return keep_U.nonzero().flatten().tolist()
        return sorted(self.heads_UG[keep_U.to(self.heads_UG.device)].flatten().tolist())

    def weakest_first(self, score_HN: Tensor) -> tuple[Depth2, Tensor]:
        """Return the module with the lowest query head of every group as its first unit, and so on.

        As many heads go from each group then, and in each those with the lowest scores. With the
        scores (U, G · N) of these units; and both as they are where units are no query heads.
        """
        if self.each is None or self.heads_UG is None:
            return self, score_HN
        worth_GU = score_HN.double().sum(1).cpu()[self.heads_UG.T.cpu()]
        order_GU = worth_GU.argsort(dim=1, stable=True).to(self.heads_UG.device)
        heads_UG = self.heads_UG.T.gather(1, order_GU).T
        return self.each.together(heads_UG), score_HN[heads_UG.to(score_HN.device)].flatten(1)

    def together(self, heads_UG: Tensor) -> Depth2:
        """Return the module whose units are these heads together, where every head is a unit."""
        sources = tuple((layer, rows_HM[heads_UG].flatten(1)) for layer, rows_HM in self.sources)
        columns_UN = self.columns_UN[heads_UG].flatten(1)
        return replace(self, columns_UN=columns_UN, sources=sources, each=self, heads_UG=heads_UG)


@torch.no_grad()
def find_modules(
    block: Block,
    call: Call,
    hidden: Tensor,
    wanted: Sequence[Unit] = ("heads", "neurons"),
    query_heads: bool = False,
) -> list[Depth2]:
    """Find the block's depth-2 modules, attention first.

    Args:
        block: with roles, its weights at hand.
        call: a recorded call of it.
        hidden: the hidden states of that call, (1, T, d) with T at least 3.
        wanted: the kinds of units that are to be found.
        query_heads: whether query heads go alone, as many from each key/value group.

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
            if unit == "heads":
                found.append(_attention(block, readers[0], call, hidden, query_heads))
            else:
                found.append(_mlp(block, readers[0], call, hidden))
    return found


def _mlp(block: Block, reader: Layer, call: Call, hidden: Tensor) -> Depth2:
    made = [layer for layer in block.layers if layer.feeds == reader.site]
    found = neurons(reader, made)
    rows: dict[Layer, list[Tensor]] = {}
    for layer, row_I in found.sources:
        rows.setdefault(layer, []).append(row_I)
    sources = tuple((layer, torch.stack(parts, 1)) for layer, parts in rows.items())
    return Depth2("neurons", block.index, reader, found.groups[0].T, sources)


def _attention(
    block: Block, reader: Layer, call: Call, hidden: Tensor, query_heads: bool
) -> Depth2:
    values = find_values(block, reader, call, hidden)
    if values is None:
        raise UnsupportedModelError(
            f"{reader.name} does not read plain heads of values, so prunus cannot tell which rows "
            "belong to a head. " + ONLY.format(other="neurons")
        )
    makers = [layer for layer in block.layers if layer.feeds == reader.site]
    reach = _reach(block, reader, makers, values.heads, call, hidden)
    reach = {layer: read_HO for layer, read_HO in reach.items() if bool(read_HO.any())}
    columns_HN = torch.arange(len(values.row_I)).view(values.heads, -1)
    found: dict[tuple[int, ...], list[int]] = {}
    for head, columns_N in enumerate(columns_HN):
        found.setdefault(tuple(values.row_I[columns_N].tolist()), []).append(head)
    groups = list(found.values())
    alone = query_heads or (len(groups) == 1 and values.heads > 1)
    if alone:
        _check_groups(reader, groups)
        reach = {layer: _unshared(read_HO, groups) for layer, read_HO in reach.items()}
    units = [[head] for head in range(values.heads)] if alone else groups
    sources = tuple((layer, _rows(layer, read_HO, units)) for layer, read_HO in reach.items())
    columns_UN = torch.stack([columns_HN[heads].flatten() for heads in units])
    module = Depth2(
        "heads", block.index, reader, columns_UN, sources, values.heads, len(groups),
        values.row_I, values.layer,
    )  # fmt: skip
    return module.together(torch.tensor(groups).T) if alone else module


def _check_groups(reader: Layer, groups: list[list[int]]) -> None:
    """Raise UnsupportedModelError unless as many query heads can go from each group."""
    sizes = sorted({len(heads) for heads in groups})
    if sizes[0] == 1:
        raise UnsupportedModelError(
            f"{reader.name}: query_heads=true removes query heads within key/value groups, and "
            f"here a group has one query head only ({len(groups)} key/value heads). Leave it out: "
            "then whole heads are removed."
        )
    if len(sizes) > 1:
        raise UnsupportedModelError(
            f"{reader.name}: query_heads=true removes as many query heads from each key/value "
            f"group, and here groups have {sizes[0]} to {sizes[-1]}. Leave it out."
        )


def _unshared(read_HO: Tensor, groups: list[list[int]]) -> Tensor:
    """Leave out the rows that all query heads of one group read: of a key or a value."""
    shared_O = torch.zeros(read_HO.shape[1], dtype=torch.bool)
    for heads in groups:
        others = [head for head in range(len(read_HO)) if head not in heads]
        shared_O |= read_HO[heads].all(0) & ~read_HO[others].any(0)
    return read_HO & ~shared_O


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
    return replace(
        module,
        columns_UN=module.columns_UN.to(device),
        sources=sources,
        each=module.each and moved(module.each, device),
        heads_UG=None if module.heads_UG is None else module.heads_UG.to(device),
    )
