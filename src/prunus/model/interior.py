"""The inputs of o and down: the rows that make them, and which may change places.

Every neuron of an MLP keeps to itself from its first layer to its last: any order is free. Every
value channel keeps to its head, and heads that share a key/value head read the very same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..maths.contracts import Permutation
from ..maths.patterns import NM
from .blocks import Block, Layer
from .heads import find_values
from .nonzero import without_zeros
from .replay import Call


@dataclass(frozen=True, eq=False)
class Interior:
    """The input channels of one layer, and the rows that make them.

    Attributes:
        reader: the o or down projection; nobody else reads these channels.
        sources: the layers that make them, each with its row for every channel.
        groups: channels (heads, n): those of one row may change places, and all rows of a group
            change alike. For an MLP one group (1, I).
    """

    reader: Layer
    sources: tuple[tuple[Layer, Tensor], ...]
    groups: tuple[Tensor, ...]

    def fits(self, pattern: NM) -> bool:
        """Return whether the pattern's groups of M lie within the heads."""
        return all(columns_HN.shape[1] % pattern.of == 0 for columns_HN in self.groups)

    def search(self, score_OI: Tensor, pattern: NM, permutation: Permutation) -> Tensor:
        """Search the order of the channels, each group by the scores of all its heads."""
        order_I = torch.arange(score_OI.shape[1], device=score_OI.device)
        for columns_HN in self.groups:
            columns_HN = columns_HN.to(order_I.device)
            stacked = torch.cat([score_OI[:, columns_N] for columns_N in columns_HN])
            order_I[columns_HN] = columns_HN[:, permutation(stacked, pattern, pattern.sparsity)]
        return order_I

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """Return a random order that is allowed."""
        order_I = torch.arange(self.reader.shape[1])
        for columns_HN in self.groups:
            order_N = torch.randperm(columns_HN.shape[1], generator=generator)
            order_I[columns_HN] = columns_HN[:, order_N]
        return order_I

    def fold(self, order_I: Tensor) -> None:
        """Reorder the reader's columns and its sources' rows; the block computes the same."""
        self.reader.write(self.reader.weight_OI[:, order_I])
        for layer, row_I in self.sources:
            row_I = row_I.to(order_I.device)
            rows_O = torch.arange(layer.shape[0], device=order_I.device)
            rows_O[row_I] = row_I[order_I]
            layer.write(layer.weight_OI[rows_O])
            if layer.bias_O is not None:
                layer.bias_O.copy_(layer.bias_O[rows_O])


def find_interiors(block: Block, call: Call, hidden: Tensor) -> dict[str, Interior]:
    """Find the interiors of every o and down projection that reads plain rows, by site.

    Args:
        block: with roles.
        call: a recorded call of it.
        hidden: the hidden states of that call, (1, T, d) with T at least 2.
    """
    found = {}
    for reader in block.layers:
        if reader.role == "down":
            made = [layer for layer in block.layers if layer.feeds == reader.site]
            found[reader.site] = neurons(reader, made)
        elif reader.role == "o" and reader.expert is None:
            with without_zeros(block.module, but=[layer.module for layer in block.layers]):
                values = find_values(block, reader, call, hidden)
            if values is not None:
                groups = _shared(values.row_I, values.heads)
                found[reader.site] = Interior(reader, ((values.layer, values.row_I),), groups)
    return found


def neurons(reader: Layer, made: list[Layer]) -> Interior:
    """Return the interior of an MLP: neuron i is row i of every part of the layers before."""
    sources = tuple(
        (layer, torch.arange(layer.shape[0])[rows]) for layer in made for rows in layer.parts
    )
    return Interior(reader, sources, (torch.arange(reader.shape[1])[None],))


def _shared(row_I: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Group the heads' channels: those that read the same rows belong together."""
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for columns_N in torch.arange(len(row_I)).view(heads, -1):
        groups.setdefault(tuple(row_I[columns_N].tolist()), []).append(columns_N)
    return tuple(torch.stack(columns) for columns in groups.values())
