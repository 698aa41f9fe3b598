"""What is left of heads and neurons after a run: widths for the model, numbers for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..maths.shares.units import Counts, Key, Quota, costs, removable, removed
from ..model.cost import OneToken
from ..model.units import Depth2
from ..report.layer import LayerReport
from ..report.units import BlockChange, BlockWidths, UnitsReport
from ..storage.kinds import auto_of
from ..storage.widths import adopt, note_widths, stock_config, widths_of
from .job import Job
from .units_loop import Seen


@dataclass(frozen=True)
class Before:
    """Numbers of the dense model.

    Attributes:
        parameters: of all, tied ones once.
        blocks: of each block.
        removable: in the units of the modules.
        costs: of one unit of each module.
    """

    parameters: int
    blocks: list[int]
    removable: int
    costs: dict[Key, int]

    @classmethod
    def of(cls, job: Job, modules: Sequence[Depth2]) -> Before:
        """Count the model as it is now."""
        blocks = [_count(block.module) for block in job.blocks]
        return cls(_count(job.model), blocks, removable(modules), costs(modules))


def smaller(
    job: Job,
    modules: Sequence[Depth2],
    before: Before,
    quota: Quota,
    reports: Sequence[LayerReport],
    seen: Seen,
    token: OneToken,
) -> UnitsReport:
    """Report what is left, and leave the widths with the model."""
    counts, dear = quota.counts, token.multiply_adds
    widths = _widths(job, modules, counts, seen)
    blocks = _changes(job, modules, before.blocks, widths, reports, seen)
    blocks = [replace(b, below=_below(quota, b.block)) for b in blocks]
    chosen = {module.block for module in modules}
    pairs = [b.parameters for b in blocks if b.block in chosen]
    return UnitsReport(
        parameters=(before.parameters, _count(job.model)),
        removable=before.removable,
        removed=removed(before.costs, counts),
        multiply_adds=(dear, dear - seen.saved),
        stock=_note(job, widths),
        auto=auto_of(job.model),
        blocks=blocks,
        in_range=(sum(was for was, _ in pairs), sum(now for _, now in pairs)),
    )


def _below(quota: Quota, block: int) -> tuple[int, int] | None:
    found = quota.found.get(block)
    return None if found is None else (found, quota.counts[block, "heads"])


def _note(job: Job, widths: list[BlockWidths]) -> bool:
    """Leave the widths with the model: in its config, which then is a stock one, or beside."""
    stock = stock_config(job.model, [block.name for block in job.blocks], widths)
    if stock is not None:
        adopt(job.model.config, stock)
    note_widths(job.model, None if stock is not None else widths)
    return stock is not None


def _widths(job: Job, modules: Sequence[Depth2], counts: Counts, seen: Seen) -> list[BlockWidths]:
    config = job.model.config.get_text_config()
    dense_heads = getattr(config, "num_attention_heads", None)
    dense_kv = getattr(config, "num_key_value_heads", None) or dense_heads
    left = {
        module.block: module.left(module.units - counts[module.block, "heads"])
        for module in modules
        if module.unit == "heads"
    }
    dense = BlockWidths(dense_heads, dense_kv, None)
    before = widths_of(job.model) or [dense] * len(job.blocks)
    widths = []
    for block, was in zip(job.blocks, before, strict=True):
        heads, kv_heads = left.get(block.index, (was.heads, was.kv_heads))
        readers = {layer.role: layer for layer in block.layers}
        o, down = readers.get("o"), readers.get("down")
        if sum(layer.role == "down" for layer in block.layers) > 1:
            down = None  # of experts: no one width
        widths.append(
            BlockWidths(
                heads=heads,
                kv_heads=kv_heads,
                intermediate=down.shape[1] if down else None,
                bias_o=o is not None and o.bias_O is not None,
                bias_down=down is not None and down.bias_O is not None,
                numbers={**was.numbers, **seen.numbers.get(block.index, {})},
            )
        )
    return widths


def _changes(
    job: Job,
    modules: Sequence[Depth2],
    before: Sequence[int],
    widths: Sequence[BlockWidths],
    reports: Sequence[LayerReport],
    seen: Seen,
) -> list[BlockChange]:
    by_key = {(module.block, module.unit): module for module in modules}
    kept = {r.block: r.notes["kept"] for r in reports if (r.block, r.pattern) in by_key
            and r.pattern == "heads"}  # fmt: skip
    found = []
    for block, parameters, width in zip(job.blocks, before, widths, strict=True):
        attention = by_key.get((block.index, "heads"))
        mlp = by_key.get((block.index, "neurons"))
        divergence_HH = seen.divergences.get(block.index)
        was = BlockWidths(
            attention.heads if attention else None,
            attention.kv_heads if attention else None,
            mlp.units if mlp else None,
        )
        found.append(
            BlockChange.of(
                block.index,
                was,
                width,
                (parameters, _count(block.module)),
                kept.get(block.index),
                None if divergence_HH is None else divergence_HH.tolist(),
            )
        )
    return found


def _count(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
