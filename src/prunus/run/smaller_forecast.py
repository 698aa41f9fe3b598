"""What a structured run will leave and cost: the whole run on two samples, thrown away."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..maths.moments import Moments
from ..maths.shares.units import removable
from ..model.units import Depth2
from ..report.units import StructuredReport
from .forecast import (
    REHEARSED,
    Room,
    Stopwatch,
    block_bytes,
    checkpoint_bytes,
    journaled_twice,
    needed,
    needs,
    peak_bytes,
    writing_bytes,
)
from .room import Need, bytes_of, statistics_bytes
from .smaller import StructuredRun
from .unit_gather import MAPS

EACH_SAMPLE = ("gradients", "recover", "record", "advance")  # steps that grow with samples


@dataclass(frozen=True)
class SmallerPlan:
    """The forecast of a structured run.

    Attributes:
        structured: what comes out.
        exact: whether the widths are the run's; else they depend on text, and the run reads more.
        peak_bytes: highest resident memory: that of the rehearsal, with all samples held.
        available_bytes: of memory that the run could have in all.
        fits: whether that is enough, with activations on disk where that is needed.
        advice: what would fit, where it does not.
        disk_bytes: what has to be free: the checkpoint, for small blocks their shards beside it,
            and spilled activations.
        seconds: from the time of the rehearsal; without loading and verifying.
    """

    structured: StructuredReport
    exact: bool
    peak_bytes: int
    available_bytes: int
    fits: bool
    advice: str | None
    disk_bytes: int
    seconds: float

    def __repr__(self) -> str:
        """Without the blocks."""
        before, after = self.structured.parameters
        return f"SmallerPlan({before:,} parameters become {after:,}, {needs(self)})"

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        rest = {key: value for key, value in asdict(self).items() if key != "structured"}
        blocks = [
            {"block": b.block, "heads": b.heads, "kv_heads": b.kv_heads, "neurons": b.neurons}
            for b in self.structured.blocks
        ]
        return {**self.structured.summary(), **rest, "blocks": blocks}


def forecast(run: StructuredRun, held: bool, samples: int | None = None) -> SmallerPlan:
    """Prune by a few samples, after which the model is of no use; and reckon.

    ``held`` is a model that is written at the end, not block by block. ``samples`` is how many
    there will be, where the run was given fewer.

    Raises:
        RoomError: there is no memory for one block.
    """
    found = need(run, samples)
    room = Room.of(found, run.spill, run.observer.say)
    run.spill = room.spill
    ids_ST, watch = run.ids_ST, Stopwatch()
    few_ST = None if ids_ST is None else ids_ST[:REHEARSED]
    rehearsal = replace(run, ids_ST=few_ST, observer=watch, spill=None, rehearsal=True)
    begun = time.perf_counter()
    structured = rehearsal.prune()[0].structured
    seconds = time.perf_counter() - begun
    assert structured is not None
    known = run.pruner.allocation == "uniform" and run.threshold is None
    if few_ST is not None:
        tried, wanted = len(few_ST), found.samples
        more, maps = wanted / tried, min(wanted, MAPS) / tried
        seconds += (more - 1) * watch.seconds(*EACH_SAMPLE) + (maps - 1) * watch.seconds("compare")
    left = bytes_of(run.model.parameters())
    disk = left if held else checkpoint_bytes(run.weights, run.blocks)
    shard = 0 if held else max(map(block_bytes, run.blocks))  # which is copied to be written
    end = 0 if held else writing_bytes(run.weights, run.blocks)  # activations are gone by then
    spilled = found.activations if run.spill else 0
    peak = peak_bytes() + found.ids + max(shard + found.activations - spilled, end)
    return SmallerPlan(
        structured=structured,
        exact=found.samples <= REHEARSED or known,
        peak_bytes=peak,
        disk_bytes=disk + spilled,
        seconds=seconds,
        **room.beside(found, peak),
    )


def need(run: StructuredRun, samples: int | None = None) -> Need:
    """What a run surely holds at once, by shapes alone."""
    pruner = run.pruner
    statistics = max(_module_bytes(module, run) for module in run.modules)
    if pruner.before:
        statistics += max(map(block_bytes, run.blocks))  # the dense one beside
    if pruner.wants("gradients"):
        statistics += bytes_of(x.weight_OI for module in run.modules for x in module.layers)
    found = needed(run, run.blocks, statistics, 2 if pruner.before else 1, samples)
    total = bytes_of(run.model.parameters())
    left = int(total - run.share * removable(run.modules) * run.model.dtype.itemsize)
    return replace(
        found, journal=left, written=left * (1 + journaled_twice(run.weights, run.blocks))
    )


def _module_bytes(module: Depth2, run: StructuredRun) -> int:
    """The sums over tokens of one module."""
    if run.ids_ST is None:
        return 0
    pruner, score, meta = run.pruner, run.pruner.score(module.unit), torch.device("meta")
    width = module.reader.shape[1]
    found = statistics_bytes(score.second, width)
    found += statistics_bytes(score.first, module.sources[0][0].shape[1])
    if pruner.after:
        found += 2 * bytes_of([Moments(width, meta).sum_AA])
    return found
