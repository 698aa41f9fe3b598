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
        kept_heads: old indices of the groups of heads that were kept, or of the query heads where
            those were removed alone, which the number of key/value heads shows; None: all.
        divergence: distances between query heads, rounded to 4 digits; None: not measured.
        below: groups of heads below ``heads.threshold``, and how many of them were removed; None:
            no threshold said how many were to be.
    """

    block: int
    heads: tuple[int, int] | None
    kv_heads: tuple[int, int] | None
    neurons: tuple[int, int] | None
    parameters: tuple[int, int]
    kept_heads: list[int] | None = None
    divergence: list[list[float]] | None = None
    below: tuple[int, int] | None = None

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
        in_range: parameters of all blocks that were to be pruned, before and after; None: an
            earlier version did not write them.
    """

    parameters: tuple[int, int]
    removable: int
    removed: int
    multiply_adds: tuple[int, int]
    stock: bool
    blocks: list[BlockChange]
    auto: str = "AutoModelForCausalLM"
    in_range: tuple[int, int] | None = None

    @property
    def share(self) -> float:
        """Removed parameters over removable ones, which the sparsity asks for."""
        return self.removed / self.removable

    @property
    def share_of_blocks(self) -> float:
        """Share of all parameters of the blocks that were to be pruned; new biases count."""
        if self.in_range is not None:
            return 1 - self.in_range[1] / self.in_range[0]
        pairs = [b.parameters for b in self.blocks if b.heads or b.neurons]
        return 1 - sum(after for _, after in pairs) / max(sum(before for before, _ in pairs), 1)

    @property
    def share_of_model(self) -> float:
        """Share of all parameters of the model, embeddings included."""
        return 1 - self.parameters[1] / self.parameters[0]

    @property
    def shares(self) -> str:
        """What was removed as a share of what: of the units, of their blocks, of the model."""
        kinds = [("heads", any(b.heads for b in self.blocks))]
        kinds.append(("neurons", any(b.neurons for b in self.blocks)))
        units = " and ".join(name for name, there in kinds if there) or "units"
        return (
            f"{self.share:.1%} of the parameters in {units} of the chosen blocks, "
            f"{self.share_of_blocks:.1%} of all parameters in these blocks, "
            f"{self.share_of_model:.1%} of the whole model"
        )

    @property
    def bound(self) -> str | None:
        """Which of a threshold and a share said how many heads go; None: there was no threshold."""
        found = [(b.block, *b.below) for b in self.blocks if b.below is not None]
        if not found:
            return None
        below, gone = (sum(row[i] for row in found) for i in (1, 2))
        short = [block for block, alike, went in found if went < alike]
        if not below:
            return "no two heads are closer than heads.threshold: no heads were removed"
        if not short:
            return f"heads.threshold decided: {gone} groups of heads are below it and were removed"
        where = f"block{'s' * (len(short) > 1)} {', '.join(map(str, short))}"
        rest = ", heads.threshold in the others"
        if len(short) == len(found):
            where, rest = "every block", ""
        return (
            f"the share decided in {where}{rest}: of {below} groups of heads below heads.threshold "
            f"{gone} were removed"
        )

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
            "removed_share_of_blocks": self.share_of_blocks,
            "removed_share_of_model": self.share_of_model,
            **({} if self.bound is None else {"bound": self.bound}),
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
