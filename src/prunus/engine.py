"""The loop: record, prune, advance, one block after the other. All side effects are here.

For each block, in order:
    record   the block, still dense, on the outputs of the pruned ones before it: statistics
    prune    BlockPruner → new weights, written layer by layer, with a report each
    write    the block to the journal, which is half a checkpoint already
    advance  the block again, now pruned → the inputs of the next block
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from .allocation.owl import OWL
from .blocks import Block, Layer
from .channels import Channels
from .errors import NumericalError, PrunusError
from .journal import Journal
from .observer import Observer
from .permutation.ordering import Ordering, thinned, together
from .replay import Recording
from .routing import fed, routed
from .stats import Statistics, TokenSample
from .types import (
    BlockPruner,
    LayerReport,
    Learner,
    Needs,
    Plan,
    Pruned,
    Share,
    parameter_of,
    requested,
)


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
    journal: Journal | None = None,
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
        journal: takes every block when it is pruned, and gives those of an earlier run back.

    Raises:
        NumericalError: NaN or inf in an activation or in a new weight.
        InputError: from the pruner, before anything is changed.
    """
    for block in blocks:
        pruner.check(block, plan)
    reports: list[LayerReport] = []
    last = max((block.index for block in blocks if block.planned(plan)), default=-1)
    for block in blocks[: last + 1]:
        with on(device, block):
            shares, rule = learner(block) if learner is not None else (plan, pruner)
            done = journal.restore(block, channels) if journal is not None else None
            if done is None:
                done = []
                packed: dict[str, Tensor] = {}
                for stage in _stages(block, shares, true_sequential):
                    stats = _stats(block, len(blocks), recording, pruner.needs, device, observer)
                    observer.block(block.index, len(blocks), block.name, "prune")
                    with _arranged(channels, block, stats, stage, pruner) as (stats, notes):
                        done += _prune(block, stats, rule, stage, observer, notes, packed)
                if journal is not None:
                    journal.write(block, done, channels, packed)
            reports += done
            if recording is not None and block.index < last:
                observer.block(block.index, len(blocks), block.name, "advance")
                recording.advance(block.index, block.module, device, observer.sample)
    observer.done()
    return reports


@contextmanager
def on(device: torch.device, block: Block) -> Iterator[None]:
    """The block's weights at hand and on the device; then back where they were."""
    with block.at_hand():
        home = next(block.module.parameters()).device
        block.module.to(device)
        try:
            yield
        finally:
            block.module.to(home)


def _stats(
    block: Block,
    blocks: int,
    recording: Recording | None,
    needs: Needs,
    device: torch.device,
    observer: Observer,
    step: str = "record",
) -> Mapping[str, Statistics]:
    """Of every site of the block; where there is no text, nothing for every site."""
    observer.block(block.index, blocks, block.name, step)
    if recording is None:
        return _Weightless(device)
    return gathered(block, recording, needs, device, observer, advance=step == "order")


@torch.no_grad()
def dense_pass(
    blocks: Sequence[Block],
    last: int,
    recording: Recording | None,
    needs: Needs,
    *,
    device: torch.device,
    observer: Observer,
) -> Iterator[tuple[Block, Mapping[str, Statistics]]]:
    """Every block up to ``last``, dense and at hand, with its statistics.

    Consumes the recording.
    """
    for block in blocks[: last + 1]:
        with on(device, block):
            yield (
                block,
                _stats(block, len(blocks), recording, needs, device, observer, "order"),
            )


@torch.no_grad()
def outliers(
    blocks: Sequence[Block],
    recording: Recording | None,
    owl: OWL,
    plan: Plan,
    *,
    device: torch.device,
    observer: Observer,
) -> dict[int, float]:
    """The share of outliers in each block that has a plan, by index. Consumes the recording."""
    found = {}
    last = max((block.index for block in blocks if block.planned(plan)), default=-1)
    for block, stats in dense_pass(
        blocks, last, recording, owl.needs, device=device, observer=observer
    ):
        layers = block.planned(plan)
        if layers:
            scores = [owl.score(layer.weight_OI, stats[layer.site]) for layer in layers]
            found[block.index] = owl.outliers(scores)
    return found


@torch.no_grad()
def residual_order(
    blocks: Sequence[Block],
    recording: Recording | None,
    ordering: Ordering,
    plan: Plan,
    *,
    device: torch.device,
    observer: Observer,
) -> Tensor:
    """The one order of the residual stream, from a pass over the dense blocks.

    Of the scores of all planned layers that read the stream ``ordering.rows`` rows are held.
    Consumes the recording.
    """
    readers = {
        block.index: [x for x in block.planned(plan) if x.site not in block.interior]
        for block in blocks
    }
    last = max((index for index, layers in readers.items() if layers), default=-1)
    share = max(ordering.rows // max(sum(map(len, readers.values())), 1), 1)
    scores: list[Tensor] = []
    for block, stats in dense_pass(
        blocks, last, recording, ordering.score.needs, device=device, observer=observer
    ):
        for layer in readers[block.index]:
            score_OI = ordering.score(layer.weight_OI, stats[layer.site])
            scores.append(thinned(together([score_OI]), share))
    return ordering.permutation(torch.cat(scores), ordering.pattern, ordering.pattern.sparsity)


@contextmanager
def _arranged(
    channels: Channels | None,
    block: Block,
    stats: Mapping[str, Statistics],
    plan: Plan,
    pruner: BlockPruner,
) -> Iterator[tuple[Mapping[str, Statistics], Mapping[str, Mapping[str, Any]]]]:
    """The block's channels in the orders that the pruner wants, if it wants any."""
    if channels is None or pruner.ordering is None:
        yield stats, {}
        return
    with channels.arranged(block, stats, plan, pruner.ordering) as arranged:
        yield arranged


def _stages(block: Block, plan: Plan, true_sequential: bool) -> list[Plan]:
    """The plan of the block's layers, whole or site by site: one gathering of statistics each.

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


class _Weightless(dict[str, Statistics]):
    """Empty statistics for every site: reading one says that this run had no text."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __missing__(self, site: str) -> Statistics:
        return Statistics((), 0, self.device)


def gathered(
    block: Block,
    recording: Recording,
    needs: Needs,
    device: torch.device,
    observer: Observer,
    advance: bool = False,
) -> Mapping[str, Statistics]:
    """Run the recorded calls through the block; summarise each site's input once.

    With ``advance`` the outputs become the inputs of the next block.
    """
    kinds = tuple(dict.fromkeys((*needs, TokenSample)))
    stats = {site: Statistics(kinds, layer.shape[1], device) for site, layer in block.sites.items()}

    def into(statistics: Statistics) -> Any:
        return lambda _, args: statistics.update(args[0])

    with ExitStack() as stack:
        for site, layer in block.sites.items():
            handle = layer.module.register_forward_pre_hook(into(stats[site]))
            stack.callback(handle.remove)
        stack.enter_context(block.watched())
        for sample, call in enumerate(recording.calls[block.index]):
            output = call(block.module, recording.hidden[sample].to(device))
            if not bool(output.isfinite().all()):
                raise NumericalError(
                    f"{block.name} puts out NaN or inf on calibration sample {sample}. "
                    "Use a wider dtype (--dtype float32), or check the checkpoint."
                )
            if advance:
                recording.hidden[sample] = output.to(recording.hidden[sample].device)
            observer.sample(sample + 1, len(recording.hidden))
    return fed(block, stats, needs, recording.min_tokens)


def _prune(
    block: Block,
    stats: Mapping[str, Statistics],
    pruner: BlockPruner,
    plan: Plan,
    observer: Observer,
    notes: Mapping[str, Mapping[str, Any]],
    packed: dict[str, Tensor],
) -> list[LayerReport]:
    """Write every planned layer; what a packed file holds of it goes into ``packed``."""
    reports: list[LayerReport] = []
    begun = time.perf_counter()
    for layer, pruned in _named(pruner(block, stats, plan), block, plan):
        error, before, updated = _write(layer, pruned, stats[layer.site])
        packed.update({f"{layer.name}.{part}": tensor for part, tensor in pruned.packed.items()})
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
            notes={**pruned.notes, **routed(layer, stats[layer.site]), **notes.get(layer.name, {})},
            expert=layer.expert,
        )
        reports.append(report)
        observer.layer(report)
        begun = time.perf_counter()
    return reports


def _named(
    pruning: Iterator[tuple[Layer, Pruned]], block: Block, plan: Plan
) -> Iterator[tuple[Layer, Pruned]]:
    """The same, with the layer's name in the message when its numbers go wrong."""
    left = {layer.name: layer for layer in block.planned(plan)}
    try:
        for layer, pruned in pruning:
            left.pop(layer.name, None)
            yield layer, pruned
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
    new_OI = pruned.weight_OI.to(layer.weight_OI.dtype)
    if not bool(new_OI.isfinite().all()):
        raise NumericalError(f"{layer.name}: pruning made NaN or inf of its weights.")
    if bool(new_OI[~pruned.mask_OI].any()):
        raise PrunusError(
            f"{layer.name}: the pruner left values on pruned weights; they must be 0."
        )
    old_OI = layer.weight_OI
    updated = bool((new_OI != old_OI)[pruned.mask_OI].any())
    error = before = None
    if TokenSample in stats:
        inputs_TI = stats[TokenSample].inputs_TI
        error = before = _output_error(inputs_TI, old_OI, new_OI)
        if updated:
            before = _output_error(inputs_TI, old_OI, old_OI.masked_fill(~pruned.mask_OI, 0))
    layer.write(new_OI)
    return error, before, updated


def _output_error(inputs_TI: Tensor, old_OI: Tensor, new_OI: Tensor) -> float | None:
    """‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖; None where the layer puts out nothing."""
    old_OI = old_OI.float()
    size = (inputs_TI @ old_OI.T).norm()
    moved = (inputs_TI @ (old_OI - new_OI.float()).T).norm()
    return float(moved / size) if size > 0 else None
