"""What a run will do and cost, before anything is written: one block is pruned and thrown away."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .allocation import BESA, OWL
from .assembly import SMALL
from .blocks import Block
from .engine import prune_blocks
from .gathering import on
from .observer import LOOK, Silent
from .replay import Trace
from .run import Run
from .samples import Samples
from .weights import InMemory, Streamed, Weights

REHEARSED = 2  # samples
STEPS = 4  # of learning
ZEROS = "Zeros in a dense checkpoint save no memory and no time."
TWO_OF_FOUR = (
    'prunus.load(sparse="2:4") makes tensors for the sparse units of CUDA GPUs; this has not been '
    "run yet, so what it gains is not known."
)
OTHER_NM = "torch's sparse tensors and the GPUs behind them know 2:4 alone, not {}."


@dataclass(frozen=True)
class Kind:
    """Tensors of one kind.

    Attributes:
        kind: a role such as q or down; or norms and biases, embeddings, head, other.
        tensors: how many.
        parameters: in all of them.
        pruned: of those, in tensors that the method is given.
    """

    kind: str
    tensors: int
    parameters: int
    pruned: int


@dataclass(frozen=True)
class Plan:
    """The forecast of a run.

    Attributes:
        coverage: share of all parameters that the method is given.
        kinds: the same by kind of tensor.
        sparsity: what is asked for.
        peak_bytes: highest resident memory: that of the rehearsal, with all samples held.
        disk_bytes: what has to be free: the checkpoint, for small or packed blocks their shards
            beside it, and spilled activations.
        seconds: from the time of one block; without loading, search of a residual order, verifying.
        blocks: of the model.
        rehearsed: seconds that the rehearsed block took to record and to advance, for each sample,
            to prune, and, where shares are learned, for each step.
        patterns: of the layers, each once.
    """

    coverage: float
    kinds: list[Kind]
    sparsity: float
    peak_bytes: int
    disk_bytes: int
    seconds: float
    blocks: int
    rehearsed: dict[str, float]
    patterns: list[str] = field(default_factory=list)

    @property
    def speed(self) -> str:
        """What the zeros are worth."""
        if self.patterns == ["2:4"]:
            return f"{ZEROS} {TWO_OF_FOUR}"
        others = [name for name in self.patterns if ":" in name and name != "2:4"]
        return f"{ZEROS} {OTHER_NM.format(', '.join(others))}" if others else ZEROS

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def forecast(run: Run) -> Plan:
    """Prune one block of ``run`` for nothing, and reckon."""
    planned = [block for block in run.blocks if block.planned(run.plan)]
    learns = run.allocation if isinstance(run.allocation, BESA) else None
    units = [block for block in planned if learns is None or block.index % learns.span == 0]
    largest = max(units or planned, key=block_bytes)
    times = _rehearse(run, largest)
    samples = 0 if run.ids_ST is None else len(run.ids_ST)
    ordering = run.pruner.ordering
    passes = len(planned)  # over all samples
    if run.recipe.true_sequential:
        passes = sum(len({x.site for x in block.planned(run.plan)}) for block in planned)
    search, shard = 0, block_bytes(largest)  # which is copied to be written
    end = writing_bytes(run.weights, run.blocks, run.recipe.pack)  # activations are gone by then
    if ordering is not None and ordering.realisation == "fold":
        passes += len(planned)
        search = 3 * 4 * ordering.rows * run.traced.inputs[0].shape[-1]
    if isinstance(run.allocation, OWL):
        passes += len(planned)
    seconds = times["record"] * samples * passes
    before = planned[-1].index  # blocks that are advanced, dense ones among them
    seconds += times["advance"] * samples * before + times["prune"] * len(planned)
    if learns is not None:
        seconds += times["learn"] * learns.steps * len(units)
    streams = 2 if learns is not None else 1
    hidden = streams * hidden_bytes(run.ids_ST, run.traced)
    held = 0 if run.spill else hidden
    return Plan(
        coverage=run.coverage.share,
        kinds=_kinds(run),
        sparsity=float(run.recipe.sparsity or 0),
        peak_bytes=peak_bytes() + max(held + search + shard, end),
        disk_bytes=checkpoint_bytes(run.weights, run.blocks, run.recipe.pack) + hidden - held,
        seconds=seconds,
        blocks=len(run.blocks),
        rehearsed=times,
        patterns=sorted({str(run.pruner.pattern(x)) for b in planned for x in b.planned(run.plan)}),
    )


def checkpoint_bytes(weights: Weights, blocks: Sequence[Block], packed: bool = False) -> int:
    """Of a checkpoint while it is put together from the blocks' shards."""
    total, converted = _total(weights), _converted(weights)
    return total * (2 if packed or _copied(weights, blocks) else 1) + 2 * converted


def writing_bytes(weights: Weights, blocks: Sequence[Block], packed: bool = False) -> int:
    """Of memory at the end: a shard, or those that become one file."""
    largest = max(map(block_bytes, blocks))
    joined = packed or _copied(weights, blocks)
    return max(largest, min(SMALL, _total(weights))) if joined else largest


def _total(weights: Weights) -> int:
    return int(sum(p.numel() * p.itemsize for p in weights.model.parameters()))


def _converted(weights: Weights) -> int:
    return weights.converted_bytes if isinstance(weights, Streamed) else 0


def _copied(weights: Weights, blocks: Sequence[Block]) -> bool:
    """Shards are copied into larger ones, or because their names on disk are others."""
    return _converted(weights) > 0 or min(map(block_bytes, blocks)) * 2 <= SMALL


class Stopwatch(Silent):
    """When each step of a run began."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, float]] = []

    def block(self, index: int, total: int, name: str, step: str) -> None:
        self._steps.append((step.removeprefix(LOOK), time.perf_counter()))

    def done(self) -> None:
        self._steps.append(("end", time.perf_counter()))

    def seconds(self, *steps: str) -> float:
        """Of all that these steps took."""
        return sum(
            end - begun
            for (name, begun), (_, end) in zip(self._steps, self._steps[1:], strict=False)
            if name in steps
        )


def _rehearse(run: Run, block: Block) -> dict[str, float]:
    """Seconds for each sample to record and to advance, and to prune the block once."""
    watch, recording = Stopwatch(), replace(run, spill=None).recording(REHEARSED)
    plan = run.alike(block.planned(run.plan))
    few = replace(run.allocation, steps=STEPS) if isinstance(run.allocation, BESA) else None
    learner = replace(run, allocation=few, observer=watch).learner(recording) if few else None
    with _kept(run, block):
        prune_blocks(
            [block],
            recording,
            run.pruner,
            plan,
            device=run.device,
            observer=watch,
            channels=run.channels(),
            learner=learner,
        )
        begun = time.perf_counter()
        if recording is not None:
            with on(run.device, block):
                recording.advance(block.index, block.module, run.device)
        advance = time.perf_counter() - begun
    samples = len(recording.hidden) if recording is not None else 1
    record = watch.seconds("record")
    learn = {"learn": watch.seconds("learn") / STEPS} if learner is not None else {}
    return {
        "record": record / samples,
        "prune": watch.seconds("prune"),
        "advance": advance / samples,
        **learn,
    }


@contextmanager
def _kept(run: Run, block: Block) -> Iterator[None]:
    """A model in memory gets its weights back; a streamed one's are read anew anyway."""
    held = isinstance(run.weights, InMemory)
    before = copy.deepcopy(block.module.state_dict()) if held else None
    try:
        yield
    finally:
        if before is not None:
            block.module.load_state_dict(before)


def _kinds(run: Run) -> list[Kind]:
    """Every parameter once, counted by what it is for."""
    layers = {x.parameter: x for block in run.blocks for x in block.layers}
    ends = [run.weights.model.get_input_embeddings(), run.weights.model.get_output_embeddings()]
    tables = {
        id(p): kind
        for module, kind in zip(reversed(ends), ("head", "embeddings"), strict=True)
        if module is not None
        for p in module.parameters()
    }
    inside = tuple(f"{block.name}." for block in run.blocks)
    counts: dict[str, list[int]] = {}
    kind: str
    for name, parameter in run.weights.model.named_parameters():
        layer = layers.get(name)
        if layer is not None:
            kind = layer.role if layer.role != "other" else "other layers of blocks"
            kind = kind if layer.expert is None else f"{kind} of experts"
        elif name.startswith(inside):
            matrix = parameter.ndim > 1 and not name.endswith("bias")
            kind = f"{'routers and other matrices' if matrix else 'norms and biases'} of blocks"
        else:
            kind = tables.get(id(parameter), "others outside of blocks")
        count = counts.setdefault(kind, [0, 0, 0])
        count[0] += 1
        count[1] += parameter.numel()
        count[2] += parameter.numel() if layer is not None and layer.name in run.plan else 0
    return [Kind(kind, *count) for kind, count in counts.items()]


def block_bytes(block: Block) -> int:
    """Of its tensors."""
    return sum(p.numel() * p.itemsize for p in block.module.parameters())


def hidden_bytes(ids_ST: Samples | None, traced: Trace) -> int:
    """The inputs of a block for all samples."""
    hidden = traced.inputs[0]
    return 0 if ids_ST is None else ids_ST.numel() * hidden.shape[-1] * hidden.itemsize


def peak_bytes() -> int:
    """Highest resident memory of this process so far; Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
