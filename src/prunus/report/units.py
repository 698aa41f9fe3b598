"""Heads and neurons in a report: how wide every block was, and how wide it became."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import NonNegativeInt

COLUMNS = ("blocks", "heads", "key/value heads", "neurons", "parameters removed")


@dataclass(frozen=True)
class BlockWidths:
    """Widths of one block; ``widths.json`` has one such object for each.

    Attributes:
        heads: number of query heads; None: not known.
        kv_heads: number of key/value heads, a divisor of ``heads``; None: not known.
        intermediate: number of neurons of the MLP; None: experts have no one width.
        bias_o: whether the output of attention has a bias.
        bias_down: whether the output of the MLP has one.
        numbers: attributes of modules that hold a width, by their path within the block.
    """

    heads: NonNegativeInt | None
    kv_heads: NonNegativeInt | None
    intermediate: NonNegativeInt | None
    bias_o: bool = False
    bias_down: bool = False
    numbers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockChange:
    """Widths of one block before and after.

    Attributes:
        block: its index.
        heads: query heads, before and after; None: none were to be removed.
        kv_heads: key/value heads, likewise.
        neurons: neurons of the MLP, likewise.
        parameters: parameters of the block, before and after.
        kept_heads: old indices of the groups of heads that were kept; None: all.
        divergence: distances between query heads, rounded to 4 digits; None: not measured.
    """

    block: int
    heads: tuple[int, int] | None
    kv_heads: tuple[int, int] | None
    neurons: tuple[int, int] | None
    parameters: tuple[int, int]
    kept_heads: list[int] | None = None
    divergence: list[list[float]] | None = None

    @classmethod
    def of(
        cls,
        block: int,
        before: BlockWidths,
        after: BlockWidths,
        parameters: tuple[int, int],
        kept_heads: list[int] | None,
        divergence: Sequence[Sequence[float]] | None,
    ) -> BlockChange:
        """Set widths beside each other; what ``before`` leaves open was not to be pruned."""
        rounded = None
        if divergence is not None:
            rounded = [[round(x, 4) for x in row] for row in divergence]
        return cls(
            block=block,
            heads=_pair(before.heads, after.heads),
            kv_heads=_pair(before.kv_heads, after.kv_heads),
            neurons=_pair(before.intermediate, after.intermediate),
            parameters=parameters,
            kept_heads=kept_heads,
            divergence=rounded,
        )

    @property
    def removed(self) -> float:
        """Share of the block's parameters that were removed."""
        return 1 - self.parameters[1] / self.parameters[0]

    def became(self, widths: BlockWidths) -> bool:
        """Whether a block of these widths is what this one became."""
        after = (self.heads, widths.heads), (self.kv_heads, widths.kv_heads)
        pairs = (*after, (self.neurons, widths.intermediate))
        return all(change is None or change[1] == width for change, width in pairs)


@dataclass(frozen=True)
class UnitsReport:
    """Report on a model that lost heads and neurons.

    Attributes:
        parameters: parameters of the whole model, before and after; tied ones counted once.
        removable: parameters in the heads and neurons of the blocks that were to be pruned.
        removed: how many of these were removed.
        multiply_adds: multiply-adds of one token alone, before and after; those of attention to
            other tokens, which grow with the text, are not counted.
        stock: whether plain transformers loads the checkpoint; otherwise prunus.load does.
        blocks: every block of the model.
        auto: name of the Auto class that loads such a model.
    """

    parameters: tuple[int, int]
    removable: int
    removed: int
    multiply_adds: tuple[int, int]
    stock: bool
    blocks: list[BlockChange]
    auto: str = "AutoModelForCausalLM"

    @property
    def share(self) -> float:
        """Removed parameters over removable ones, which the sparsity asks for."""
        return self.removed / self.removable

    @property
    def loads_with(self) -> str:
        """Name of what loads the checkpoint, and why."""
        if self.stock:
            return self.auto
        differ = len(_runs(self.blocks)) > 1
        why = "widths differ by block" if differ else "no config of its family says these widths"
        return f"prunus.load ({why})"

    @property
    def predicted_speedup(self) -> float:
        """Speed-up that fewer multiply-adds promise; ``prunus bench`` measures the real one."""
        return self.multiply_adds[0] / self.multiply_adds[1]

    def summary(self) -> dict[str, Any]:
        """Return the numbers that ``prunus prune --json`` prints."""
        return {
            "parameters_before": self.parameters[0],
            "parameters": self.parameters[1],
            "removed_share": self.share,
            "predicted_speedup": self.predicted_speedup,
            "loads_in_transformers": self.stock,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows below ``COLUMNS``: one for each run of blocks that are alike."""
        rows = []
        for first, last in _runs(self.blocks):
            block = self.blocks[first]
            name = f"{block.block}" if first == last else f"{block.block}–{self.blocks[last].block}"
            cells = [_change(c) for c in (block.heads, block.kv_heads, block.neurons)]
            rows.append((name, *cells, f"{block.removed:.1%}"))
        return rows


def _pair(before: int | None, after: int | None) -> tuple[int, int] | None:
    return None if before is None or after is None else (before, after)


def _runs(blocks: Sequence[BlockChange]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for i, block in enumerate(blocks):
        old = blocks[i - 1]
        alike = i > 0 and (block.heads, block.kv_heads, block.neurons, block.parameters) == (
            old.heads, old.kv_heads, old.neurons, old.parameters,
        )  # fmt: skip
        if alike:
            runs[-1] = (runs[-1][0], i)
        else:
            runs.append((i, i))
    return runs


def _change(pair: tuple[int, int] | None) -> str:
    if pair is None:
        return "as before"
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]} → {pair[1]}"
