"""What a structured run adds to the report: heads and neurons, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = ("blocks", "heads", "key/value heads", "neurons", "parameters removed")


@dataclass(frozen=True)
class BlockWidths:
    """One block, before and after.

    Attributes:
        block: its index.
        heads: query heads, before and after; None: not known, because nothing of them went.
        kv_heads: key/value heads, likewise.
        neurons: of the MLP, likewise.
        parameters: of the block, before and after.
        kept_heads: the groups of heads that stayed, by their old index; None: all.
        divergence: between query heads, rounded to 4 digits; None: not looked at.
    """

    block: int
    heads: tuple[int, int] | None
    kv_heads: tuple[int, int] | None
    neurons: tuple[int, int] | None
    parameters: tuple[int, int]
    kept_heads: list[int] | None = None
    divergence: list[list[float]] | None = None

    @property
    def removed(self) -> float:
        """Share of the block's parameters that went."""
        return 1 - self.parameters[1] / self.parameters[0]


@dataclass(frozen=True)
class StructuredReport:
    """A model that became smaller.

    Attributes:
        parameters: of the whole model, before and after; tied ones counted once.
        removable: parameters in the heads and neurons of the blocks that were to be pruned.
        removed: of these, how many went.
        multiply_adds: of one token alone, before and after; those of attention to other tokens,
            which grow with the text, are not counted.
        stock: whether plain transformers loads the checkpoint; else prunus.load does.
        blocks: every block of the model.
        auto: the Auto class that makes such a model.
    """

    parameters: tuple[int, int]
    removable: int
    removed: int
    multiply_adds: tuple[int, int]
    stock: bool
    blocks: list[BlockWidths]
    auto: str = "AutoModelForCausalLM"

    @property
    def share(self) -> float:
        """Removed of removable: what the sparsity asks for."""
        return self.removed / self.removable

    @property
    def loads_with(self) -> str:
        """What loads the checkpoint, and why."""
        if self.stock:
            return self.auto
        differ = len(_runs(self.blocks)) > 1
        why = "widths differ by block" if differ else "no config of its family says these widths"
        return f"prunus.load ({why})"

    @property
    def predicted_speedup(self) -> float:
        """What fewer multiply-adds promise; ``prunus bench`` measures what they keep."""
        return self.multiply_adds[0] / self.multiply_adds[1]

    def summary(self) -> dict[str, Any]:
        """For ``prunus prune --json``."""
        return {
            "parameters_before": self.parameters[0],
            "parameters": self.parameters[1],
            "removed_share": self.share,
            "predicted_speedup": self.predicted_speedup,
            "loads_in_transformers": self.stock,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Below ``COLUMNS``: one row for each run of blocks that are alike."""
        rows = []
        for first, last in _runs(self.blocks):
            block = self.blocks[first]
            name = f"{block.block}" if first == last else f"{block.block}–{self.blocks[last].block}"
            cells = [_change(c) for c in (block.heads, block.kv_heads, block.neurons)]
            rows.append((name, *cells, f"{block.removed:.1%}"))
        return rows

    def table(self) -> str:
        """Markdown."""
        lines = [COLUMNS, ["---"] * len(COLUMNS), *self.rows()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _runs(blocks: Sequence[BlockWidths]) -> list[tuple[int, int]]:
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
