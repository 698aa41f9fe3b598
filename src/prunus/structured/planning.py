"""What a structured run will leave and cost: the whole run on two samples, thrown away."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..planning import (
    REHEARSED,
    Stopwatch,
    block_bytes,
    checkpoint_bytes,
    hidden_bytes,
    peak_bytes,
    writing_bytes,
)
from ..report.structured_report import StructuredReport
from .gathering import MAPS
from .run import StructuredRun

EACH_SAMPLE = ("gradients", "recover", "record", "advance")  # steps that grow with samples


@dataclass(frozen=True)
class SmallerPlan:
    """The forecast of a structured run.

    Attributes:
        structured: what comes out.
        exact: whether the widths are the run's; else they depend on text, and the run reads more.
        peak_bytes: highest resident memory: that of the rehearsal, with all samples held.
        disk_bytes: what has to be free: the checkpoint, for small blocks their shards beside it,
            and spilled activations.
        seconds: from the time of the rehearsal; without loading and verifying.
    """

    structured: StructuredReport
    exact: bool
    peak_bytes: int
    disk_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        rest = {key: value for key, value in asdict(self).items() if key != "structured"}
        blocks = [
            {"block": b.block, "heads": b.heads, "kv_heads": b.kv_heads, "neurons": b.neurons}
            for b in self.structured.blocks
        ]
        return {**self.structured.summary(), **rest, "blocks": blocks}


def forecast(run: StructuredRun, held: bool) -> SmallerPlan:
    """Prune by a few samples, after which the model is of no use; and reckon.

    ``held`` is a model that is written at the end, not block by block.
    """
    ids_ST, watch = run.ids_ST, Stopwatch()
    few_ST = None if ids_ST is None else ids_ST[:REHEARSED]
    rehearsal = replace(run, ids_ST=few_ST, observer=watch, spill=None, rehearsal=True)
    begun = time.perf_counter()
    structured = rehearsal.prune()[0].structured
    seconds = time.perf_counter() - begun
    assert structured is not None
    pruner, hidden = run.pruner, hidden_bytes(ids_ST, run.traced)
    known = pruner.allocation == "uniform" and run.threshold is None
    if ids_ST is not None and few_ST is not None:
        samples = len(few_ST)
        more, maps = len(ids_ST) / samples, min(len(ids_ST), MAPS) / samples
        seconds += (more - 1) * watch.seconds(*EACH_SAMPLE) + (maps - 1) * watch.seconds("compare")
    hidden *= 2 if pruner.before else 1  # a dense stream beside
    left = sum(p.numel() * p.itemsize for p in run.model.parameters())
    disk = left if held else checkpoint_bytes(run.weights, run.blocks)
    shard = 0 if held else max(map(block_bytes, run.blocks))  # which is copied to be written
    end = 0 if held else writing_bytes(run.weights, run.blocks)  # activations are gone by then
    return SmallerPlan(
        structured=structured,
        exact=ids_ST is None or len(ids_ST) <= REHEARSED or known,
        peak_bytes=peak_bytes() + max(shard + (0 if run.spill else hidden), end),
        disk_bytes=disk + (hidden if run.spill else 0),
        seconds=seconds,
    )
