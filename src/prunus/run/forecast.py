"""What a run will do and cost, before anything is written: one block is pruned and thrown away."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from ..base.errors import RoomError
from ..base.memory import available_memory
from ..maths.shares import BESA, OWL
from ..model.blocks import Block
from ..model.weights import InMemory, Weights
from ..storage.assembly import SMALL
from ..storage.resuming import blocks_done
from ..storage.streamed import Streamed
from .gather import on
from .loop import prune_blocks
from .observer import LOOK, Silent
from .room import Need, fit, levers, statistics_bytes
from .run import Run

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
        available_bytes: of memory that the run could have in all.
        fits: whether that is enough, with activations on disk where that is needed.
        advice: what would fit, where it does not.
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
    available_bytes: int
    fits: bool
    advice: str | None
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

    def __repr__(self) -> str:
        """Without the kinds of tensors."""
        return (
            f"Plan(covers {self.coverage:.1%} at sparsity {self.sparsity:g}, {needs(self)}, "
            f"{self.blocks} blocks)"
        )

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def needs(plan: Any) -> str:
    """Memory, disk and time of a forecast, in a few words."""
    memory, disk = plan.peak_bytes / 2**30, plan.disk_bytes / 2**30
    return f"memory {memory:.2f} GiB, disk {disk:.2f} GiB, time {plan.seconds / 60:.1f} min"


def forecast(run: Run, samples: int | None = None) -> Plan:
    """Prune one block of ``run`` for nothing, and reckon.

    ``samples`` is how many there will be, where the run was given fewer.

    Raises:
        RoomError: there is no memory for one block.
    """
    planned = [block for block in run.blocks if block.planned(run.plan)]
    learns = run.allocation if isinstance(run.allocation, BESA) else None
    units = [block for block in planned if learns is None or block.index % learns.span == 0]
    needed = need(run, samples)
    room = Room.of(needed, run.spill, run.observer.say)
    run.spill = room.spill
    largest = max(units or planned, key=block_bytes)
    times = _rehearse(run, largest)
    ordering = run.pruner.ordering
    passes = len(planned)  # over all samples
    if run.recipe.true_sequential:
        passes = sum(len({x.site for x in block.planned(run.plan)}) for block in planned)
    search, shard = _search_bytes(run), block_bytes(largest)  # which is copied to be written
    end = writing_bytes(run.weights, run.blocks, run.recipe.pack)  # activations are gone by then
    if ordering is not None and ordering.realisation == "fold":
        passes += len(planned)
    if isinstance(run.allocation, OWL):
        passes += len(planned)
    seconds = times["record"] * needed.samples * passes
    before = planned[-1].index  # blocks that are advanced, dense ones among them
    seconds += times["advance"] * needed.samples * before + times["prune"] * len(planned)
    if learns is not None:
        seconds += times["learn"] * learns.steps * len(units)
    held = 0 if run.spill else needed.activations
    peak = peak_bytes() + needed.ids + max(held + search + shard, end)
    hidden = needed.activations - held
    return Plan(
        coverage=run.coverage.share,
        kinds=_kinds(run),
        sparsity=float(run.recipe.sparsity or 0),
        peak_bytes=peak,
        disk_bytes=checkpoint_bytes(run.weights, run.blocks, run.recipe.pack) + hidden,
        seconds=seconds,
        blocks=len(run.blocks),
        rehearsed=times,
        patterns=sorted({str(run.pruner.pattern(x)) for b in planned for x in b.planned(run.plan)}),
        **room.beside(needed, peak),
    )


def need(run: Run, samples: int | None = None) -> Need:
    """What a run surely holds at once, by shapes alone."""
    planned = [block for block in run.blocks if block.planned(run.plan)]
    kinds = run.pruner.needs
    statistics = max(
        sum(statistics_bytes(kinds, layer.shape[1]) for layer in block.sites.values())
        for block in planned
    )
    streams = 2 if isinstance(run.allocation, BESA) else 1
    found = needed(run, run.blocks, statistics, streams, samples)
    total = _total(run.weights)
    twice = not run.recipe.pack and journaled_twice(run.weights, run.blocks)
    return replace(found, journal=total, written=total * (2 if twice else 1))


def needed(
    run: Any, blocks: Sequence[Block], statistics: int, streams: int, samples: int | None
) -> Need:
    """The same of any run, whose ``statistics`` of a block are known.

    With ``samples`` there will be that many.
    """
    ids_ST, hidden, team = run.ids_ST, run.traced.inputs[0], run.team
    count = 0 if ids_ST is None else len(ids_ST) if samples is None else samples
    length = 0 if ids_ST is None else -(-ids_ST.numel() // len(ids_ST))  # in the mean
    own = team.share(count)
    block, elsewhere = max(map(block_bytes, blocks)), run.device.type != "cpu"
    read = block if isinstance(run.weights, Streamed) or elsewhere else 0
    return Need(
        samples=count,
        length=length,
        activations=streams * (own.stop - own.start) * length * hidden.shape[-1] * hidden.itemsize,
        held=read + (0 if elsewhere else statistics),
        ids=0 if samples is None or ids_ST is None else 8 * (count - len(ids_ST)) * length,
        on_device=block + statistics if elsewhere else 0,
        home=hidden.device,
        device=run.device,
        wide=hidden.itemsize > 2,
        beside=team.beside,
    )


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
        """Before anything is rehearsed.

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
        """What there is beside what is needed, for the fields of a plan."""
        problem, spills = self.problem, self.spill is None and needed.activations > 0
        if problem is None and peak > self.available:
            cure = levers(needed, self.available, spills, peak)
            problem = f"The peak is above what is available. {cure}"
        return {"available_bytes": self.available, "fits": problem is None, "advice": problem}


def _search_bytes(run: Run) -> int:
    """Of the scores among which an order of the residual stream is searched."""
    ordering = run.pruner.ordering
    if ordering is None or ordering.realisation != "fold":
        return 0
    return int(3 * 4 * ordering.rows * run.traced.inputs[0].shape[-1])


def checkpoint_bytes(weights: Weights, blocks: Sequence[Block], packed: bool = False) -> int:
    """Of a checkpoint while it is put together from the blocks' shards."""
    total, converted = _total(weights), _converted(weights)
    return total * (2 if packed or _copied(weights, blocks) else 1) + 2 * converted


def writing_bytes(weights: Weights, blocks: Sequence[Block], packed: bool = False) -> int:
    """Of memory at the end: a shard, or those that become one file."""
    largest = max(map(block_bytes, blocks))
    joined = packed or _copied(weights, blocks)
    return max(largest, min(SMALL, _total(weights))) if joined else largest


def journaled_twice(weights: Weights, blocks: Sequence[Block]) -> bool:
    """Whether a model that is read block by block is on disk twice at the end."""
    return isinstance(weights, Streamed) and _copied(weights, blocks)


def make_room(run: Any, needed: Need, output: Path | None, resume: bool) -> None:
    """Have the run's activations where there is room for them.

    Raises:
        RoomError: there is none.
    """
    if resume and output is not None and set(run.touched) <= blocks_done(output):
        needed = replace(needed, activations=0)
    with run.team.agreed():
        writes = output if run.team.first else None
        run.spill = fit(needed, run.spill, writes, run.observer.say)


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
    """Size of the block's tensors."""
    return sum(p.numel() * p.itemsize for p in block.module.parameters())


def peak_bytes() -> int:
    """Highest resident memory of this process so far; Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
