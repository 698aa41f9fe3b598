"""Cycles of a pruned checkpoint as in BESA's Table 4: a mean over blocks for each kind of layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.arguments import typed
from ..report.report import read_report
from ..storage.pruned import read_layers
from .vitcod import Cycles, ViTCoD


@typed
def simulate(folder: str | Path, as_published: bool = False) -> list[dict[str, Any]]:
    """Return a row for each kind of layer: dense and mean cycles, mean sparsity, speed-up, count.

    Raises:
        CheckpointError: not a checkpoint that prunus wrote.
    """
    folder = Path(folder)
    model = ViTCoD(as_published=as_published)
    found: dict[str, list[Cycles]] = {}
    for _, _, layers in read_layers(folder, read_report(folder)):
        for layer, weight_OI in layers:
            found.setdefault(layer.kind, []).append(model(weight_OI != 0))
    return [_row(kind, cycles) for kind, cycles in found.items()]


def _row(kind: str, cycles: list[Cycles]) -> dict[str, Any]:
    count = len(cycles)
    dense = sum(x.dense for x in cycles) / count
    mean = sum(x.cycles for x in cycles) / count
    return {
        "layer": kind,
        "dense": round(dense, 2),
        "cycles": mean,
        "sparsity": sum(x.sparsity for x in cycles) / count,
        "speedup": dense / max(mean, 1),
        "count": count,
    }
