"""The loop of structured runs: one module after the other, attention before the MLP that reads it.

It is not the engine's. That one prunes weights within widths that stay; here a block has two
steps, some methods see the dense model as a whole first, and recovery runs a dense stream beside
the pruned one. The recording, the statistics, the layers and the journal are shared.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..maths.moments import ChannelMoments
from ..maths.scores.units import Gathered, lowest
from ..maths.shares.units import Key, Quota
from ..maths.updates.ridge import joined
from ..model.blocks import Block
from ..model.replay import Recording
from ..model.units import Depth2, moved
from ..report.layer import LayerReport
from ..storage.journal import Journal
from .diary import noted, restored
from .gather import on
from .unit_gather import Context
from .unit_step import DenseStream, Step


@dataclass
class Seen:
    """What a look at the model gave.

    Attributes:
        scores: (U, N) of every module.
        means: of the second level's inputs, where a bias is to compensate.
        divergences: between heads, by block.
        numbers: what surgery changed beside tensors, by block: attributes by their path in it.
        saved: multiply-adds of one token that went.
    """

    scores: dict[Key, Tensor] = field(default_factory=dict)
    means: dict[Key, Tensor] = field(default_factory=dict)
    divergences: dict[int, Tensor] = field(default_factory=dict)
    numbers: dict[int, dict[str, int]] = field(default_factory=dict)
    saved: int = 0

    def look(self, step: Step) -> None:
        """Score the module as it is now."""
        gathered = step.context.gather(step.block, step.module, step.recording)[0]
        step.context.announce(step.block, "prune")
        self.note(step, gathered)

    def note(self, step: Step, gathered: Gathered) -> None:
        """The same, of what was gathered."""
        key = step.module.block, step.module.unit
        self.scores[key] = step.context.scored(step.block, step.module, gathered)
        if gathered.divergence_HH is not None:
            self.divergences[step.module.block] = gathered.divergence_HH
        if step.context.pruner.compensation:
            self.means[key] = gathered.second[ChannelMoments].mean_I


@torch.no_grad()
def look(
    context: Context,
    blocks: Sequence[Block],
    modules: Sequence[Depth2],
    recording: Recording | None,
) -> Seen:
    """Scores of every module of the dense model. Consumes the recording."""
    seen, context = Seen(), replace(context, looking=True)
    for block, mine in _through(context, blocks, modules, recording):
        for module in mine:
            seen.look(Step(context, block, module, recording))
    return seen


@torch.no_grad()
def prune_units(
    context: Context,
    blocks: Sequence[Block],
    modules: Sequence[Depth2],
    quota: Quota,
    recording: Recording | None,
    dense: Seen | None,
    journal: Journal | None = None,
) -> tuple[list[LayerReport], Seen]:
    """Remove the least worthy units of each module, in place.

    Args:
        context: of the run.
        blocks: all blocks of the model.
        modules: those to prune, in order; of no use afterwards.
        quota: how many units of each go.
        recording: the samples at the first block, consumed; None: nothing is to be measured.
        dense: what a look at the dense model gave; None: scores are taken on the way.
        journal: takes every block that became smaller, and gives those of an earlier run back.

    Returns:
        A report for each layer, and what was seen.
    """
    pruner = context.pruner
    seen = Seen() if dense is None else dense
    beside = DenseStream.beside(recording) if recording is not None and pruner.before else None
    reports: list[LayerReport] = []
    for block, mine in _through(context, blocks, modules, recording, beside):
        if not mine:
            continue
        before = context.token.of(block, context.device)
        done = restored(block, seen, quota, journal, context.device)
        if done is None:
            done = []
            for module in mine:
                aims = beside if reports or done else None
                found = _prune(
                    Step(context, block, module, recording), quota, seen, dense is None, aims
                )
                for report in found:
                    context.observer.layer(report)
                done += found
            if journal is not None:
                journal.write(block, done, None, {}, **noted(block, seen, quota))
        reports += done
        seen.saved += before - context.token.of(block, context.device)
    context.observer.done()
    return reports, seen


def _prune(
    step: Step, quota: Quota, seen: Seen, anew: bool, dense: DenseStream | None
) -> list[LayerReport]:
    """``dense`` is None before anything has been removed: there is nothing to recover then."""
    begun, module, context = time.perf_counter(), step.module, step.context
    key = module.block, module.unit
    shapes = [layer.shape for layer in module.layers]
    notes = {} if dense is None else {"recovery": step.recover(dense)}
    old_OA = joined(module.reader.weight_OI, module.reader.bias_O)
    gathered, halves = context.gather(step.block, module, step.recording)
    context.announce(step.block, "prune")
    if anew:
        seen.note(step, gathered)
    count = quota.of(module, seen.scores[key])
    keep_U = lowest(seen.scores[key], count).to(context.device)
    updated = count > 0 and (context.pruner.after or context.pruner.compensation)
    if updated and context.pruner.after:
        notes["repair"] = step.repair(keep_U, halves)
    elif updated:
        step.compensate(keep_U, seen.means[key].to(context.device))
    error = step.error(gathered, keep_U, old_OA)
    seen.numbers.setdefault(module.block, {}).update(step.remove(keep_U))
    return step.reports(shapes, keep_U.cpu(), error, updated, begun, notes)


def _through(
    context: Context,
    blocks: Sequence[Block],
    modules: Sequence[Depth2],
    recording: Recording | None,
    beside: DenseStream | None = None,
) -> Iterator[tuple[Block, list[Depth2]]]:
    """Every block up to the last with a module, at hand; then the samples go through it."""
    last = max(module.block for module in modules)
    for block in blocks[: last + 1]:
        with on(context.device, block):
            if beside is not None:
                beside.block = copy.deepcopy(block.module)
            yield block, [moved(m, context.device) for m in modules if m.block == block.index]
            if recording is not None and block.index < last:
                context.announce(block, "advance")
                observed = context.observer.sample
                recording.advance(block.index, block.module, context.device, observed)
                if beside is not None:
                    beside.recording.advance(block.index, beside.block, context.device)
