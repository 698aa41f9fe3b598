"""What a run will do and cost, before anything is written: a part of it is tried."""

from __future__ import annotations

import copy
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from ..base.errors import RoomError
from ..base.memory import available_memory
from ..base.words import number_of
from ..report.units import UnitsReport
from ..text import Protocol
from ..text.given import TEXTS
from ..text.mixture import counts_of, parts_of
from .coverage import Kind, coverage_of, kinds_of
from .need import block_bytes, checkpoint_bytes, need, writing_bytes
from .prepare import Request, Run, prepare
from .rehearse import REHEARSED, try_units, try_weights
from .room import Need, bytes_of, fit, levers
from .units_run import UnitsRun

ZEROS = "Zeros in a dense checkpoint save no memory and no time."
TWO_OF_FOUR = (
    'prunus.load(sparse="2:4") makes tensors for the sparse units of CUDA GPUs; with torch '
    "2.11 their products took longer than dense ones on an H100, so measure before you rely on it."
)
OTHER_NM = (
    "torch's sparse tensors and the GPUs behind them know 2:4 along stored inputs alone, not {}."
)


@dataclass(frozen=True)
class Plan:
    """The forecast of a run.

    Attributes:
        coverage: share of all parameters that the method is given.
        kinds: the same by kind of tensor.
        sparsity: what is asked for.
        peak_bytes: highest resident memory: that of the rehearsal, with all samples held.
        available_bytes: of memory that the run could have in all.
        fits: whether that is enough, with activations on disk where that is needed.
        advice: what would fit, where it does not.
        disk_bytes: what has to be free: the checkpoint, for small or packed blocks their shards
            beside it, and spilled activations.
        seconds: from the time of what was tried; without loading, search of a residual order,
            verifying.
        blocks: how many the model has.
        rehearsed: seconds of what was tried. Of single weights one block: to record and to advance
            for each sample, to prune, and, where shares are learned, for each step. Of heads and
            neurons the whole model by two samples: each step.
        patterns: of the layers, each once.
        structured: what is left of heads and neurons; None: single weights are pruned.
        exact: whether those are the run's widths; else they depend on text, and the run reads more.
    """

    coverage: float
    kinds: list[Kind]
    sparsity: float
    peak_bytes: int
    available_bytes: int
    fits: bool
    advice: str | None
    disk_bytes: int
    seconds: float
    blocks: int
    rehearsed: dict[str, float]
    patterns: list[str] = field(default_factory=list)
    structured: UnitsReport | None = None
    exact: bool = True

    @property
    def speed(self) -> str:
        """What the zeros, or the smaller widths, are worth."""
        if self.structured is not None:
            faster = self.structured.predicted_speedup
            return f"{faster:.2f} times the dense model's speed by its multiply-adds."
        if self.patterns == ["2:4"]:
            return f"{ZEROS} {TWO_OF_FOUR}"
        others = [name for name in self.patterns if ":" in name and name != "2:4"]
        return f"{ZEROS} {OTHER_NM.format(', '.join(others))}" if others else ZEROS

    def __repr__(self) -> str:
        """Without the kinds of tensors and the blocks."""
        memory, disk = self.peak_bytes / 2**30, self.disk_bytes / 2**30
        needs = f"memory {memory:.2f} GiB, disk {disk:.2f} GiB, time {self.seconds / 60:.1f} min"
        if self.structured is not None:
            before, after = self.structured.parameters
            return f"Plan({before:,} parameters become {after:,}, {needs})"
        return (
            f"Plan(covers {self.coverage:.1%} at sparsity {self.sparsity:g}, {needs}, "
            f"{number_of(self.blocks, 'block')})"
        )

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        found = asdict(self)
        del found["structured"], found["exact"]
        if self.structured is None:
            return found
        blocks = [
            {"block": b.block, "heads": b.heads, "kv_heads": b.kv_heads, "neurons": b.neurons}
            for b in self.structured.blocks
        ]
        return {**found, **self.structured.summary(), "exact": self.exact, "blocks": blocks}


def forecast(request: Request) -> Plan:
    """Prune a part of the model for nothing, and reckon.

    One block, which has its weights afterwards; where heads and neurons are removed the whole model
    by two samples (of a model in memory, a copy).

    Raises:
        RoomError: there is no memory for one block.
    """
    samples, recovery = request.samples, request.recovery_samples
    if request.recipe.structured and request.path is None:
        request = replace(request, model=copy.deepcopy(request.model))
    run, _ = prepare(request.few(REHEARSED))
    job = run.job
    if job.protocol is not None and job.protocol.answers is not None:
        samples = min(samples, job.protocol.documents)  # every prompt is answered once
    needed = need(run, samples, recovery or None)
    room = Room.of(needed, job.spill, job.observer.say)
    job.spill = room.spill
    answering, each = _answering(job.protocol, request)
    covered, kinds, patterns = _covered(run)
    if isinstance(run, UnitsRun):
        tried = try_units(run, needed)
        asked = run.share if tried.units is None else run.requested(tried.units)
    else:
        tried, asked = try_weights(run, needed), run.share
    spilled = needed.activations if job.spill else 0
    held, end = needed.activations - spilled + tried.beside, 0
    if request.path is not None or tried.units is None:
        held += max(map(block_bytes, job.blocks))  # a shard is copied to be written
        end = writing_bytes(job.weights, job.blocks, job.recipe.pack)  # activations are gone then
    peak = peak_bytes() + needed.ids + max(held, end)
    return Plan(
        coverage=covered,
        kinds=kinds,
        sparsity=asked,
        peak_bytes=peak,
        disk_bytes=_disk(run, request) + spilled,
        seconds=tried.seconds + answering,
        blocks=len(job.blocks),
        rehearsed={**tried.once, **each},
        patterns=patterns,
        structured=tried.units,
        exact=tried.exact,
        **room.beside(needed, peak),
    )


def _answering(protocol: Protocol | None, request: Request) -> tuple[float, dict[str, float]]:
    """Reckon the seconds of all answers by those of the few that were tried, and of one."""
    if protocol is None or not protocol.answered:
        return 0.0, {}
    counts = counts_of(parts_of(request.recipe.calibration or TEXTS), request.samples)
    own = protocol.parts or (protocol,)
    pairs = [(x, x.answers, n) for x, n in zip(own, counts, strict=True) if x.answers is not None]
    total = sum(done.seconds / done.prompts * min(n, x.documents) for x, done, n in pairs)
    return total, {"answer": total / sum(min(n, x.documents) for x, _, n in pairs)}


def _covered(run: Run) -> tuple[float, list[Kind], list[str]]:
    """Share of the parameters, tensors by kind, and patterns, while the model is whole."""
    job = run.job
    if isinstance(run, UnitsRun):
        names = {layer.name for module in run.modules for layer in module.layers}
        return coverage_of(job.model, job.blocks, names).share, kinds_of(job, names), []
    layers = [layer for block in run.planned for layer in block.planned(run.plan)]
    free = " in a free order" if job.recipe.permutation == "free" else ""
    patterns = sorted({f"{run.pruner.pattern(layer)}{free}" for layer in layers})
    return run.coverage.share, kinds_of(job, set(run.plan)), patterns


def _disk(run: Run, request: Request) -> int:
    """Bytes of the checkpoint while it is made; a smaller model in memory is written at once."""
    job = run.job
    if isinstance(run, UnitsRun) and request.path is None:
        return bytes_of(job.model.parameters())
    return checkpoint_bytes(job.weights, job.blocks, job.recipe.pack)


@dataclass(frozen=True)
class Room:
    """What a plan says of memory.

    Attributes:
        spill: where activations will be; None: in memory.
        available: bytes that this process could have, those that it has included.
        problem: why the run does not fit, and what would; None: it does.
    """

    spill: Path | None
    available: int
    problem: str | None

    @classmethod
    def of(cls, needed: Need, spill: Path | None, say: Callable[[str], None]) -> Room:
        """Judge before anything is rehearsed.

        Raises:
            RoomError: even a rehearsal would not fit.
        """
        available = available_memory() + psutil.Process().memory_info().rss
        try:
            return cls(fit(needed, spill, None, say), available, None)
        except RoomError as error:
            fit(replace(needed, activations=0, ids=0), None, None)
            return cls(spill, available, str(error))

    def beside(self, needed: Need, peak: int) -> dict[str, Any]:
        """Compare what is needed with what there is, for the fields of a plan."""
        problem, spills = self.problem, self.spill is None and needed.activations > 0
        if problem is None and peak > self.available:
            cure = levers(needed, self.available, spills, peak)
            problem = f"The peak is above what is available. {cure}"
        return {"available_bytes": self.available, "fits": problem is None, "advice": problem}


def peak_bytes() -> int:
    """Highest resident memory of this process so far; Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
