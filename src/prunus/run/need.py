"""What a run surely holds at once, in memory and on disk, by the shapes of its model alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..maths.likeliest import LIKELIEST
from ..maths.moments import Moments
from ..maths.shares import Evolve, Slope, learner_of, split_of
from ..maths.shares.units import removable
from ..model.blocks import Block, Layer
from ..model.units import Depth2
from ..model.weights import Weights
from ..storage.assembly import SMALL
from ..storage.resuming import blocks_done
from ..storage.streamed import Streamed
from .job import Job
from .prepare import Request, Run
from .room import Need, bytes_of, fit, statistics_bytes
from .search import pieces_of
from .units_run import UnitsRun
from .walk import units_of
from .weights_run import WeightsRun


def make_room(run: Run, request: Request) -> None:
    """Have the run's activations where there is room for them.

    Raises:
        RoomError: there is none.
    """
    job, needed = run.job, need(run)
    if request.resume and request.output is not None:
        if set(run.touched) <= blocks_done(request.output):
            needed = replace(needed, activations=0)
    with job.team.agreed():
        writes = request.output if job.team.first else None
        job.spill = fit(needed, job.spill, writes, job.observer.say)


def need(run: Run, samples: int | None = None, recovery: int | None = None) -> Need:
    """Reckon what the run holds.

    ``samples`` is how many there will be, and ``recovery`` how many of recovery's own text, if it
    was given fewer.
    """
    if isinstance(run, UnitsRun):
        return _of_units(run, samples, recovery)
    return _of_weights(run, samples)


def _of_weights(run: WeightsRun, samples: int | None) -> Need:
    job, kinds = run.job, run.pruner.needs
    statistics = max(
        sum(statistics_bytes(kinds, layer.shape[1]) for layer in block.sites.values())
        for block in run.planned
    )
    found = _of(job, statistics + _descent_bytes(run), _streams(run), samples)
    split = split_of(run.allocation)
    if isinstance(split, Slope | Evolve):
        found = _with_search(found, run, split)
    total = bytes_of(job.model.parameters())
    twice = not job.recipe.pack and _journaled_twice(job.weights, job.blocks)
    most = total + _state_bytes(run)  # when the last block is reconstructed
    return replace(found, journal=most, written=max(total * (2 if twice else 1), most))


def _state_bytes(run: WeightsRun) -> int:
    """Size of the state of a block's reconstruction on disk: see ``maths.reconstruction.State``."""
    if run.reconstruction is None:
        return 0
    return max(16 * sum(x.weight_OI.numel() for x in some) for some in _learning(run))


def _learning(run: WeightsRun) -> list[list[Layer]]:
    """Return the layers of each unit of blocks that learn together, or of each block."""
    how = run.reconstruction
    units = units_of(run.job.blocks, 1 if how is None else how.blocks)
    return [[x for block in unit for x in block.planned(run.plan)] for unit in units]


def _streams(run: WeightsRun) -> int:
    """Return how many activations of each sample are held at once."""
    learns = learner_of(run.allocation)
    beside = 1 if learns is not None and learns.reference == "dense" else 0
    how = run.reconstruction
    aims = 0 if how is None else 2 if how.span == "half" or how.blocks > 1 else 1
    return 1 + max(beside + aims, learns is not None)


def _descent_bytes(run: WeightsRun) -> int:
    """Size of a unit's dense weights, and of what its reconstruction holds, in float32.

    That is the weights and the best of them, two moments, and the gradients of a sample and of all.
    All blocks of a unit are at hand; the first is counted elsewhere.
    """
    how = run.reconstruction
    if how is None:
        return 0
    planned = [[x.weight_OI for x in some] for some in _learning(run)]
    blocks = run.job.blocks
    beside = (min(how.blocks, len(blocks)) - 1) * max(map(block_bytes, blocks))
    return beside + max(bytes_of(some) + 24 * sum(x.numel() for x in some) for some in planned)


def _with_search(found: Need, run: WeightsRun, search: Slope | Evolve) -> Need:
    """Add the depth of every weight, which may be on disk, and what candidates are in between."""
    job, hidden = run.job, run.job.traced.inputs[0]
    weights = sum(x.weight_OI.numel() for block in run.planned for x in block.planned(run.plan))
    pieces, length = pieces_of(search, found.samples, found.length)
    states = max(trials * count for trials, count in search.rounds(pieces)) + pieces
    each = states * hidden.shape[-1] * hidden.itemsize + pieces * LIKELIEST * 8
    own = -(-length * each // job.team.size)
    return replace(found, activations=found.activations + 2 * weights, held=found.held + own)


def _of_units(run: UnitsRun, samples: int | None, recovery: int | None) -> Need:
    job, pruner = run.job, run.pruner
    statistics = max(_module_bytes(module, run) for module in run.modules)
    if pruner.reads_dense:
        statistics += max(map(block_bytes, job.blocks))  # the dense one beside
    if pruner.wants("gradients"):
        layers = [layer.weight_OI for module in run.modules for layer in module.layers]
        statistics += bytes_of(layers)
        if pruner.curved:  # the mean and the mean square, in float32
            statistics += 8 * sum(x.numel() for x in layers) - bytes_of(layers)
    streams = 2 if pruner.reads_dense else 1
    apart = job.recovery is not None
    found = _of(job, statistics, 1 if apart else streams, samples)
    if apart:
        found = _with_recovery(found, job, streams, recovery)
    total = bytes_of(job.model.parameters())
    left = int(total - run.sure * removable(run.modules) * job.model.dtype.itemsize)
    twice = _journaled_twice(job.weights, job.blocks)
    return replace(found, journal=left, written=left * (1 + twice))


def _of(job: Job, statistics: int, streams: int, samples: int | None) -> Need:
    """Reckon the same for any run whose ``statistics`` of a block are known."""
    ids_ST, hidden, team = job.ids_ST, job.traced.inputs[0], job.team
    count = 0 if ids_ST is None else len(ids_ST) if samples is None else samples
    length = 0 if ids_ST is None else -(-ids_ST.numel() // len(ids_ST))  # in the mean
    own = team.share(count)
    block, elsewhere = max(map(block_bytes, job.blocks)), job.device.type != "cpu"
    read = block if isinstance(job.weights, Streamed) or elsewhere else 0
    return Need(
        samples=count,
        length=length,
        activations=streams * (own.stop - own.start) * length * hidden.shape[-1] * hidden.itemsize,
        held=read + (0 if elsewhere else statistics),
        ids=0 if samples is None or ids_ST is None else 8 * (count - len(ids_ST)) * length,
        on_device=block + statistics if elsewhere else 0,
        home=hidden.device,
        device=job.device,
        wide=hidden.itemsize > 2,
        beside=team.beside,
    )


def _with_recovery(found: Need, job: Job, streams: int, recovery: int | None) -> Need:
    """Add the text that recovery alone reads; ``recovery`` samples of it, if there will be more."""
    assert job.recovery is not None
    ids_ST, hidden = job.recovery[0], job.traced.inputs[0]
    assert ids_ST is not None
    drawn, length = len(ids_ST), -(-ids_ST.numel() // len(ids_ST))
    count = drawn if recovery is None else recovery
    own = job.team.share(count)
    each = length * hidden.shape[-1] * hidden.itemsize
    return replace(
        found,
        recovery=count,
        length=max(found.length, length),
        activations=found.activations + streams * (own.stop - own.start) * each,
        ids=found.ids + 8 * (count - drawn) * length,
    )


def _module_bytes(module: Depth2, run: UnitsRun) -> int:
    """Return the size of one module's sums over tokens."""
    if run.job.ids_ST is None:
        return 0
    pruner, score, meta = run.pruner, run.pruner.score(module.unit), torch.device("meta")
    width = module.reader.shape[1]
    found = statistics_bytes(score.second, width)
    found += statistics_bytes(score.first, module.sources[0][0].shape[1])
    if pruner.after:
        found += 2 * bytes_of([Moments(width, meta).sum_AA])
    return found


def block_bytes(block: Block) -> int:
    """Size of the block's tensors in bytes."""
    return bytes_of(block.module.parameters())


def checkpoint_bytes(weights: Weights, blocks: Sequence[Block], packed: bool = False) -> int:
    """Disk that a checkpoint takes while it is put together from the blocks' shards."""
    total, converted = bytes_of(weights.model.parameters()), _converted(weights)
    return total * (2 if packed or _copied(weights, blocks) else 1) + 2 * converted


def writing_bytes(weights: Weights, blocks: Sequence[Block], packed: bool = False) -> int:
    """Memory that writing takes at the end: a shard, or those that become one file."""
    largest = max(map(block_bytes, blocks))
    joined = packed or _copied(weights, blocks)
    return max(largest, min(SMALL, bytes_of(weights.model.parameters()))) if joined else largest


def _journaled_twice(weights: Weights, blocks: Sequence[Block]) -> bool:
    """Whether a model that is read block by block is on disk twice at the end."""
    return isinstance(weights, Streamed) and _copied(weights, blocks)


def _converted(weights: Weights) -> int:
    return weights.converted_bytes if isinstance(weights, Streamed) else 0


def _copied(weights: Weights, blocks: Sequence[Block]) -> bool:
    """Whether shards are copied: into larger ones, or because their names on disk are others."""
    return _converted(weights) > 0 or min(map(block_bytes, blocks)) * 2 <= SMALL
