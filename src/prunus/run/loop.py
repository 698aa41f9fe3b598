"""The loop: record, prune, advance, one block after the other. All side effects are here.

For each block, in order (``walk``):
    record   the block, still dense, on the outputs of the pruned ones before it: statistics
    prune    BlockPruner → new weights, written layer by layer, with a report each
    write    the block to the journal, which is half a checkpoint already
    advance  the block again, now pruned → the inputs of the next block
With ``dense_inputs`` it advances as it is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..base.errors import NumericalError, PrunusError
from ..base.team import ALONE, Team
from ..maths.contracts import BlockPruner, Plan, Pruned, Share, parameter_of, requested
from ..maths.orders.orders import Orders, is_order
from ..maths.stats import Statistics, TokenSample
from ..maths.views import LayerView
from ..model.blocks import Block, Layer
from ..model.channels import Channels
from ..model.replay import Recording
from ..model.routing import routed
from ..report.layer import LayerReport
from ..storage import packing
from ..storage.journal import Journal
from .gather import recorded
from .learn import Learner
from .observer import Observer
from .reconstruct import RECONSTRUCTED, Reconstructor
from .walk import align, taken_up, units_of, walk


@torch.no_grad()
def prune_blocks(
    blocks: Sequence[Block],
    recording: Recording | None,
    pruner: BlockPruner,
    plan: Plan,
    *,
    device: torch.device,
    observer: Observer,
    true_sequential: bool = False,
    channels: Channels | None = None,
    learner: Learner | None = None,
    reconstructor: Reconstructor | None = None,
    orders: Orders | None = None,
    journal: Journal | None = None,
    dense_inputs: bool = False,
    team: Team = ALONE,
) -> list[LayerReport]:
    """Prune the planned layers in place, each block on the outputs of the pruned ones before it.

    Args:
        blocks: all blocks of the model, in order.
        recording: the calibration samples at the first block; None prunes by weights alone.
        pruner: what to do with a block.
        plan: sparsity per layer name.
        device: where a block and its statistics live while it is pruned.
        observer: told of every step.
        true_sequential: gather the statistics of every site after the sites before it have been
            pruned, not once from the dense block. (GPTQ's word; the papers here use the dense
            block.)
        channels: where the pruner wants an ordering of them.
        learner: finds the shares of each block's layers in place of the plan's.
        reconstructor: learns new values for the kept weights of each block.
        orders: takes the orders of the layers, and gives them to the journal; None: those of
            ``channels``, where there are any.
        journal: takes every block when it is pruned, and gives those of an earlier run back.
        dense_inputs: each block reads the outputs of the dense ones before it.
        team: the processes that do this together, each with its own recording. The first alone
            has a journal; its weights are everybody's.

    Raises:
        NumericalError: NaN or inf in an activation or in a new weight.
        InputError: from the pruner, before anything is changed.
    """
    if orders is None:
        orders = channels.orders if channels is not None else Orders()
    for block in blocks:
        pruner.check(block, plan)
    reports: list[LayerReport] = []
    last = max((block.index for block in blocks if block.planned(plan)), default=-1)
    together = reconstructor.how.blocks if reconstructor is not None else 1
    units = {x.index: unit for unit in units_of(blocks[: last + 1], together) for x in unit}
    waiting: list[tuple[Block, list[LayerReport], Beside]] = []
    walked = None if dense_inputs else recording
    for block in walk(blocks, last, walked, device, observer, together):
        unit = units[block.index]
        done = bool(team.told(journal is not None and journal.holds(x.index for x in unit)))
        if dense_inputs and recording is not None and (done or not block.planned(plan)):
            recording.advance(block.index, block.module, device, observer.sample)
        shares, rule = learner(block) if learner is not None else (plan, pruner)
        if reconstructor is not None and block is unit[0]:
            reconstructor.aim(unit, plan, done or not any(x.planned(plan) for x in unit))
        before = taken_up(block, journal, team) if done else None
        if before is not None:
            found, noted = before
            orders.take_up(noted)
            if reconstructor is not None:
                reconstructor.curves += noted.get(RECONSTRUCTED, [])
            reports += found
            continue
        found, beside = [], Beside(orders)
        for stage in _stages(block, shares, true_sequential):
            stats = recorded(
                block, len(blocks), recording, pruner.needs, device, observer, team,
                advance=dense_inputs,
            )  # fmt: skip
            observer.block(block.index, len(blocks), block.name, "prune")
            with _arranged(channels, block, stats, stage, pruner) as (stats, notes):
                if reconstructor is not None:
                    reconstructor.look(block.planned(stage), stats)
                found += prune_block(block, stats, rule, stage, observer, notes, beside)
            align(block, team)
        waiting.append((block, found, beside))
        if block is unit[-1]:
            reports += _finished(waiting, plan, reconstructor, orders, journal)
            waiting = []
    observer.done()
    return reports


def _finished(
    unit: Sequence[tuple[Block, list[LayerReport], Beside]],
    plan: Plan,
    reconstructor: Reconstructor | None,
    orders: Orders,
    journal: Journal | None,
) -> list[LayerReport]:
    """Reconstruct a unit of pruned blocks, and put it into the journal; return its reports."""
    curves = reconstructor(plan) if reconstructor is not None else []
    reports: list[LayerReport] = []
    for block, found, beside in unit:
        if reconstructor is not None:
            found = reconstructor.reported(block, found, orders)
        if journal is not None:
            names = {name for layer in block.layers for name in (layer.site, layer.name)}
            learned = {RECONSTRUCTED: curves} if curves and block is unit[-1][0] else {}
            journal.write(block, found, beside.packed, {**orders.noted(names), **learned})
        reports += found
    return reports


@dataclass(frozen=True)
class Beside:
    """What the written weights of a block do not hold.

    Attributes:
        orders: of all layers so far, in which their patterns hold.
        packed: integers of the block's layers, by their names in a packed file.
    """

    orders: Orders
    packed: dict[str, Tensor] = field(default_factory=dict)

    def put(self, layer: Layer, pruned: Pruned) -> dict[str, str]:
        """Keep a layer's integers and its order; return what the report says of the order."""
        if pruned.quantized is not None:
            integers = packing.packed(pruned.quantized)
            self.packed.update({f"{layer.name}.{part}": x for part, x in integers.items()})
        if pruned.order_I is None:
            return {}
        self.orders.free[layer.name] = pruned.order_I.cpu()
        return {"order": "free"}


@contextmanager
def _arranged(
    channels: Channels | None,
    block: Block,
    stats: Mapping[str, Statistics],
    plan: Plan,
    pruner: BlockPruner,
) -> Iterator[tuple[Mapping[str, Statistics], Mapping[str, Mapping[str, Any]]]]:
    """Put the block's channels into the orders that the pruner wants, if any."""
    if channels is None or pruner.ordering is None:
        yield stats, {}
        return
    with channels.arranged(block, stats, plan, pruner.ordering) as arranged:
        yield arranged


def _stages(block: Block, plan: Plan, true_sequential: bool) -> list[Plan]:
    """Split the block's plan into stages, each with a gathering of statistics of its own.

    The sites of all experts that read alike count as one.
    """
    layers = block.planned(plan)
    if not true_sequential:
        return [{layer.name: plan[layer.name] for layer in layers}] if layers else []
    stages: dict[str, dict[str, Share]] = {}
    for layer in layers:
        site = parameter_of(layer.site, layer.expert)
        stages.setdefault(site, {})[layer.name] = plan[layer.name]
    return list(stages.values())


def prune_block(
    block: Block,
    stats: Mapping[str, Statistics],
    pruner: BlockPruner,
    plan: Plan,
    observer: Observer,
    notes: Mapping[str, Mapping[str, Any]],
    beside: Beside,
) -> list[LayerReport]:
    """Write every planned layer; what its weights cannot hold goes ``beside``."""
    reports: list[LayerReport] = []
    begun = time.perf_counter()
    for layer, pruned in _named(pruner(block, stats, plan), block, plan):
        error, before, updated = _write(layer, pruned, stats[layer.site])
        own = {**pruned.notes, **beside.put(layer, pruned)}
        weight_OI = layer.weight_OI
        report = LayerReport(
            name=layer.name,
            role=layer.role,
            block=block.index,
            shape=layer.shape,
            transposed=layer.transposed,
            pattern=str(pruner.pattern(layer).at(plan[layer.name])),
            requested=requested(plan[layer.name]),
            sparsity=int((weight_OI == 0).sum()) / weight_OI.numel(),
            relative_output_error=error,
            updated=updated,
            error_before_update=before,
            seconds=time.perf_counter() - begun,
            notes={**own, **routed(layer, stats[layer.site]), **notes.get(layer.name, {})},
            expert=layer.expert,
        )
        reports.append(report)
        observer.layer(report)
        begun = time.perf_counter()
    return reports


def _named(
    pruning: Iterator[tuple[LayerView, Pruned]], block: Block, plan: Plan
) -> Iterator[tuple[Layer, Pruned]]:
    """Pass the layers on, with their names in the message when numbers go wrong."""
    layers = {layer.name: layer for layer in block.planned(plan)}
    left = dict(layers)
    try:
        for view, pruned in pruning:
            left.pop(view.name, None)
            yield layers[view.name], pruned
        if left:
            raise PrunusError(f"{next(iter(left))}: the pruner left this layer out.")
    except NumericalError as error:
        where = next(iter(left), block.name)
        raise NumericalError(f"{where}: {error}") from error


def _write(
    layer: Layer,
    pruned: Pruned,
    stats: Statistics,
) -> tuple[float | None, float | None, bool]:
    """Store the new weight if it is sound.

    Returns how far the layer's output moves on the sampled tokens, how far it would with the dense
    values of the kept weights, and whether any of those changed.
    """
    _check_returned(layer, pruned)
    new_OI = pruned.weight_OI.to(layer.weight_OI.dtype)
    if not bool(new_OI.isfinite().all()):
        raise NumericalError(f"{layer.name}: its new weights hold NaN or inf.")
    if bool(new_OI[~pruned.mask_OI].any()):
        raise PrunusError(
            f"{layer.name}: the pruner left values on pruned weights; they must be 0."
        )
    old_OI = layer.weight_OI
    updated = bool((new_OI != old_OI)[pruned.mask_OI].any())
    error = before = None
    if TokenSample in stats:
        error = before = stats[TokenSample].error(old_OI, new_OI)
        if updated:
            before = stats[TokenSample].error(old_OI, old_OI.masked_fill(~pruned.mask_OI, 0))
    layer.write(new_OI)
    return error, before, updated


def _check_returned(layer: Layer, pruned: object) -> None:
    """Raise PrunusError for anything but a Pruned of the layer's shape."""
    if not isinstance(pruned, Pruned):
        found: object = type(pruned).__name__
    else:
        mask_OI, weight_OI, order_I = pruned.mask_OI, pruned.weight_OI, pruned.order_I
        if order_I is not None and not is_order(order_I, layer.shape[1]):
            raise PrunusError(
                f"{layer.name}: the pruner's order does not name each of the {layer.shape[1]} "
                "inputs once."
            )
        if weight_OI.shape == mask_OI.shape == layer.shape and mask_OI.dtype == torch.bool:
            return
        found = f"{tuple(weight_OI.shape)} and {tuple(mask_OI.shape)} of {mask_OI.dtype}"
    raise PrunusError(
        f"{layer.name}: a pruner returns Pruned(weight_OI, mask_OI), both {layer.shape}, the mask "
        f"of bools; this one returned {found}."
    )
