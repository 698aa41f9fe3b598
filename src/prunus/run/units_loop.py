"""The loop for heads and neurons: one module after the other, attention before the MLP after it.

``loop`` prunes weights within widths that stay. Here a block has two steps, some methods look at
the dense model as a whole first, and recovery runs a dense stream beside the pruned one. Both walk
through the blocks, gather statistics and keep the journal in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
from ..storage.widths import renumbered, resize
from .observer import Looking
from .units_gather import Context
from .units_notes import noted, take_up
from .units_step import Step, Streams
from .walk import align, taken_up, walk


@dataclass
class Seen:
    """What a look at the model gave.

    Attributes:
        scores: (U, N) of every module.
        modules: those whose units came to be by their scores: query heads of each group.
        means: of the second level's inputs, where a bias is to compensate.
        divergences: between heads, by block.
        numbers: what surgery changed beside tensors, by block: attributes by their path in it.
        saved: multiply-adds of one token that went.
    """

    scores: dict[Key, Tensor] = field(default_factory=dict)
    modules: dict[Key, Depth2] = field(default_factory=dict)
    means: dict[Key, Tensor] = field(default_factory=dict)
    divergences: dict[int, Tensor] = field(default_factory=dict)
    numbers: dict[int, dict[str, int]] = field(default_factory=dict)
    saved: int = 0

    def look(self, step: Step) -> None:
        """Score the module as it is now."""
        gathered = step.gather(None)
        step.context.announce(step.block, "prune")
        self.note(step, gathered)

    def note(self, step: Step, gathered: Gathered) -> None:
        """Score the module from what was gathered."""
        key = step.module.block, step.module.unit
        scored = step.context.scored(step.block, step.module, gathered)
        self.modules[key], self.scores[key] = step.module.weakest_first(scored)
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
    """Score every module of the dense model. Consume the recording."""
    seen, context = Seen(), replace(context, observer=Looking(context.observer))
    for block in walk(blocks, _last(modules), recording, context.device, context.observer):
        for module in _of(block, modules, context):
            seen.look(Step(context, block, module, Streams(recording)))
    return seen


@torch.no_grad()
def prune_units(
    context: Context,
    blocks: Sequence[Block],
    modules: Sequence[Depth2],
    quota: Quota,
    streams: Streams,
    dense: Seen | None,
    journal: Journal | None = None,
) -> tuple[list[LayerReport], Seen]:
    """Remove the least worthy units of each module, in place.

    Args:
        context: of the run.
        blocks: all blocks of the model.
        modules: those to prune, in order, then those that are recovered alone; of no use
            afterwards.
        quota: how many units of each go.
        streams: the samples at the first block, consumed.
        dense: what a look at the dense model gave; None: scores are taken on the way.
        journal: takes every block that became smaller, and gives those of an earlier run back.

    Returns:
        A report for each layer, and what was seen.
    """
    seen = Seen() if dense is None else dense
    reports: list[LayerReport] = []
    last = _last(modules)
    for block in walk(blocks, last, streams.scores, context.device, context.observer):
        streams.come_to(block)
        mine = _of(block, modules, context)
        if mine:
            dear = context.token.of(block, context.device)
            done = _taken_up(block, seen, quota, journal, context)
            if done is None:
                done = []
                for module in mine:
                    step = Step(context, block, module, streams)
                    done += _changed(step, quota, seen, dense is None, bool(reports or done))
                align(block, context.team)
                if journal is not None:
                    journal.write(block, done, {}, noted(block, seen, quota))
            reports += done
            seen.saved += dear - context.token.of(block, context.device)
        if block.index < last:
            streams.leave(block, context)
    context.observer.done()
    return reports, seen


def _last(modules: Sequence[Depth2]) -> int:
    return max(module.block for module in modules)


def _of(block: Block, modules: Sequence[Depth2], context: Context) -> list[Depth2]:
    """Return the block's modules, with their indices on the device."""
    return [moved(module, context.device) for module in modules if module.block == block.index]


def _taken_up(
    block: Block, seen: Seen, quota: Quota, journal: Journal | None, context: Context
) -> list[LayerReport] | None:
    """Put an earlier run's tensors into the block and return its reports; None: still to do."""

    def fit(block: Block, noted: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        resize(block.name, block.module, tensors)
        renumbered(block.module, noted["numbers"])
        block.module.to(context.device)

    found = taken_up(block, journal, context.team, fit)
    if found is None:
        return None
    reports, noted = found
    take_up(block, noted, seen, quota)
    return reports


def _changed(step: Step, quota: Quota, seen: Seen, anew: bool, drifted: bool) -> list[LayerReport]:
    """Remove units of one module, or recover it alone if it is behind the last that loses some.

    ``drifted`` is False before anything has been removed: there is nothing to recover then.
    """
    behind = step.context.behind
    if behind is not None and step.module.block >= behind:
        reports = _recovered(step)
    else:
        reports = _prune(step, quota, seen, anew, drifted and step.context.pruner.before)
    for report in reports:
        step.context.observer.layer(report)
    return reports


def _recovered(step: Step) -> list[LayerReport]:
    """Recover a module that keeps all its units."""
    begun, shapes = time.perf_counter(), [layer.shape for layer in step.module.layers]
    notes = {"recovery": step.recover()}
    keep_U = torch.ones(step.module.units, dtype=torch.bool)
    return step.reports(shapes, keep_U, None, False, begun, notes)


def _prune(step: Step, quota: Quota, seen: Seen, anew: bool, recover: bool) -> list[LayerReport]:
    """Remove units of one module, recovered before if ``recover`` says so."""
    begun, module, context = time.perf_counter(), step.module, step.context
    key = module.block, module.unit
    shapes = [layer.shape for layer in module.layers]
    notes = {"recovery": step.recover()} if recover else {}
    old_OA = joined(module.reader.weight_OI, module.reader.bias_O)
    halves = step.halves()
    gathered = step.gather(halves)
    context.announce(step.block, "prune")
    if anew:
        seen.note(step, gathered)
    step = replace(step, module=seen.modules[key])
    count = quota.of(module, seen.scores[key])
    keep_U = lowest(seen.scores[key], count).to(context.device)
    context.team.broadcast_(keep_U)
    repaired = context.pruner.after and (count > 0 or context.pruner.to_stream)
    compensated = count > 0 and context.pruner.compensation
    if repaired:
        notes["repair"] = step.repair(keep_U, halves)
    elif compensated:
        step.compensate(keep_U, seen.means[key].to(context.device))
    error = step.error(gathered, keep_U, old_OA)
    seen.numbers.setdefault(module.block, {}).update(step.remove(keep_U))
    return step.reports(shapes, keep_U.cpu(), error, repaired or compensated, begun, notes)
