"""One module of one block: recover, choose, remove, repair."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..maths.held_out import last_quarter
from ..maths.scores.units import Gathered
from ..maths.stats import TokenSample
from ..maths.updates.ridge import Regression, Solved, joined, solve
from ..model.blocks import Block, Layer
from ..model.replay import Call, Recording
from ..model.surgery import put, shrink
from ..model.units import Depth2
from ..model.watch import Watcher, watch
from ..report.layer import LayerReport
from .gather import samples_at
from .units_gather import Context, Halves


@dataclass
class DenseStream:
    """The calibration samples on their way through the dense blocks."""

    recording: Recording
    block: nn.Module

    @classmethod
    def beside(cls, recording: Recording) -> DenseStream:
        """At the block where ``recording`` is."""
        return cls(recording.copy(), nn.Module())

    def come_to(self, block: Block) -> None:
        """Keep a copy of the block as it is: dense, at hand."""
        self.block = copy.deepcopy(block.module)

    def go_through(self, block: Block, device: torch.device) -> None:
        """Replace the inputs of the block by the outputs of its dense copy."""
        self.recording.advance(block.index, self.block, device)


@dataclass
class Streams:
    """The samples on their way through the blocks that become smaller, and dense ones beside them.

    Attributes:
        scores: what the scores read; None: nothing is to be measured.
        fit: what recovery is solved on, which may be the same; None: there is no recovery.
        dense: the samples of ``fit`` in the dense model; None: recovery does not look at it.
    """

    scores: Recording | None = None
    fit: Recording | None = None
    dense: DenseStream | None = None

    @classmethod
    def of(cls, scores: Recording | None, fit: Recording | None, beside: bool) -> Streams:
        """Start at the block where the recordings are, with a dense stream if one is asked for."""
        dense = DenseStream.beside(fit) if fit is not None and beside else None
        return cls(scores, fit, dense)

    @property
    def apart(self) -> bool:
        """Whether recovery has a text of its own."""
        return self.fit is not None and self.fit is not self.scores

    def come_to(self, block: Block) -> None:
        """Keep a copy of the block as it is, if it is to be looked at."""
        if self.dense is not None:
            self.dense.come_to(block)

    def leave(self, block: Block, context: Context) -> None:
        """Send the samples of recovery, but not those of the scores, on to the next block."""
        if self.dense is None and not self.apart:
            return
        context.announce(block, "recover")
        if self.dense is not None:
            self.dense.go_through(block, context.device)
        if self.fit is not None and self.apart:
            self.fit.advance(block.index, block.module, context.device, context.observer.sample)


@dataclass(frozen=True)
class Step:
    """A module, in its block, with the samples that have come there."""

    context: Context
    block: Block
    module: Depth2
    streams: Streams

    def recover(self) -> dict[str, Any]:
        """Algorithms 3 and 4: the first level; then, on what that gives, the second.

        Returns what the report should say.
        """
        facts: dict[str, Any] = {}
        for level in ([layer for layer, _ in self.module.sources], [self.module.reader]):
            for biased in (True, False):  # the inputs of the one have a column of ones more
                layers = [layer for layer in level if (layer.bias_O is not None) == biased]
                if layers:
                    facts |= _facts(self._aim(layers), [layer.role for layer in layers])
        return facts

    def _aim(self, layers: list[Layer]) -> list[Solved]:
        """Fit the layers' weights to the dense stream's outputs on the pruned stream's inputs."""
        halves = self._sums(layers)
        self.context.announce(self.block, "prune")
        weights = [joined(layer.weight_OI, layer.bias_O) for layer in layers]
        solved = solve(weights, *halves)
        for layer, new in zip(layers, solved, strict=True):
            _write(layer, new.weight_OA)
        return solved

    def _sums(self, layers: list[Layer]) -> list[list[Regression]]:
        """Sum up pruned inputs against what the layers should put out: train, and held out."""
        context, recording = self.context, self.streams.fit
        assert recording is not None
        held = frozenset(last_quarter(recording.samples, recording.groups))
        halves = [Regression.several(layers, context.device) for _ in range(2)]
        context.announce(self.block, "recover")
        with context.team.agreed():
            for position, hidden, call in samples_at(
                self.block, recording, context.device, context.observer
            ):
                inputs_TI, targets = self._compare(layers, position, hidden, call)
                half = halves[recording.first + position in held]
                for layer, part in zip(layers, half, strict=True):
                    part.update(inputs_TI, targets[layer], gram=part is half[0])
        for half in halves:
            for part in half:
                part.merge(context.team, gram=part is half[0])
        return halves

    def _compare(
        self, layers: list[Layer], position: int, hidden: Tensor, call: Call
    ) -> tuple[Tensor, dict[Layer, Tensor]]:
        """Return what the layers read in one sample, (T, I), and what each should put out."""
        dense = self.streams.dense
        assert dense is not None
        whole = layers == [self.module.reader] and self.context.pruner.to_stream
        stop = not (whole and self.module.unit == "neurons")
        inputs: list[Tensor] = []
        now: dict[Layer, Tensor] = {}
        then: dict[Layer, Tensor] = {}
        ends = {} if stop else {layers[0].module: _put(now, layers[0])}
        end = watch(
            self.block, call, hidden, [(layers[0].module, [inputs.append])], ends, stop=stop
        )
        beside = dense.recording.hidden[position].to(self.context.device)
        inside = dense.block.get_submodule
        aims = {inside(self._inside(layer)): _put(then, layer) for layer in layers}
        dense_end = watch(self.block, call, beside, outputs=aims, module=dense.block, stop=stop)
        if whole and stop:  # attention adds its output to the block's input
            then[layers[0]] = then[layers[0]].float() + _tokens(beside) - _tokens(hidden)
        elif whole:  # the block's output is that of the MLP and all else
            assert end is not None
            assert dense_end is not None
            then[layers[0]] = now[layers[0]].float() + _tokens(dense_end) - _tokens(end)
        return inputs[0], then

    def halves(self) -> Halves | None:
        """Return empty moments for ``repair``; None: it needs none."""
        pruner, recording = self.context.pruner, self.streams.fit
        if recording is None or not pruner.after or pruner.to_stream:
            return None
        held = last_quarter(recording.samples, recording.groups)
        return Halves(self.module.reader.shape[1], held, self.context.device)

    def gather(self, halves: Halves | None) -> Gathered:
        """Gather what the score reads, and the moments, in one pass if their text is the same."""
        context, streams = self.context, self.streams
        also = None if streams.apart else halves
        gathered = context.gather(self.block, self.module, streams.scores, also)
        if halves is not None and streams.apart:
            assert streams.fit is not None
            context.fill(halves, self.block, self.module, streams.fit)
        if halves is not None:
            halves.merge(context.team)
        return gathered

    def repair(self, keep_U: Tensor, halves: Halves | None) -> dict[str, Any]:
        """Fit the second level's remaining weights to what it put out with all its inputs.

        Without ``halves`` to what brings the residual stream to the dense one.
        """
        reader = self.module.reader
        old_OA = joined(reader.weight_OI, reader.bias_O)
        columns = self.module.columns_UN[keep_U].flatten().sort().values
        if reader.bias_O is not None:
            columns = torch.cat([columns, columns.new_tensor([reader.shape[1]])])
        used = old_OA.shape[1]
        if halves is None:
            train, held = (parts[0].only(columns) for parts in self._sums([reader]))
            self.context.announce(self.block, "prune")
        else:
            train, held = (
                Regression.onto_itself(half.sum_AA[:used, :used], old_OA).only(columns)
                for half in (halves.train, halves.held)
            )
        (solved,) = solve([old_OA[:, columns]], [train], [held])
        new_OA = old_OA.clone()
        new_OA[:, columns] = solved.weight_OA
        _write(reader, new_OA)
        return _facts([solved], ["second_level"])["second_level"]  # type: ignore[no-any-return]

    def compensate(self, keep_U: Tensor, mean_I: Tensor) -> None:
        """``b += W[:, removed] · mean[removed]``; a bias comes into being where there was none."""
        reader = self.module.reader
        removed = self.module.columns_UN[~keep_U].flatten()
        lost_O = reader.weight_OI[:, removed].double() @ mean_I[removed]
        old_O = torch.zeros_like(lost_O) if reader.bias_O is None else reader.bias_O
        put(reader.module, reader.weight_OI, (old_O + lost_O).to(reader.weight_OI.dtype), [])

    def error(self, gathered: Gathered, keep_U: Tensor, old_OA: Tensor) -> float | None:
        """How far the second level's output moves on sampled tokens, relative to its size."""
        if TokenSample not in gathered.second:
            return None
        inputs_TI = gathered.second[TokenSample].inputs_TI
        reader = self.module.reader
        width = inputs_TI.shape[1]
        before_TO = inputs_TI @ old_OA[:, :width].T + old_OA[:, width:].sum(1)
        kept_TI = inputs_TI.clone()
        kept_TI[:, self.module.columns_UN[~keep_U].flatten()] = 0
        after_TO = kept_TI @ reader.weight_OI.float().T
        if reader.bias_O is not None:
            after_TO = after_TO + reader.bias_O.float()
        size = before_TO.norm()
        return float((after_TO - before_TO).norm() / size) if size > 0 else None

    def remove(self, keep_U: Tensor) -> dict[str, int]:
        """Shrink; returns the numbers about widths that changed, by their path in the block."""
        undo = shrink(self.block.module, self.block.name, self.module, keep_U)
        paths = {id(module): path for path, module in self.block.module.named_modules()}
        linears = {id(layer.module) for layer in self.module.layers}
        return {
            f"{paths[id(owner)]}.{name}": getattr(owner, name)
            for owner, name, _ in undo
            if id(owner) not in linears
        }

    def reports(
        self,
        before: Sequence[tuple[int, int]],
        keep_U: Tensor,
        error: float | None,
        updated: bool,
        begun: float,
        notes: dict[str, Any],
    ) -> list[LayerReport]:
        """Return reports of the module's layers, whose shapes were ``before``."""
        module = self.module
        notes = {**notes, "units_kept": int(keep_U.sum()), "units": module.units}
        if module.unit == "heads":
            notes["kept"] = module.kept(keep_U)
        return [
            LayerReport(
                name=layer.name,
                role=layer.role,
                block=module.block,
                shape=shape,
                transposed=layer.transposed,
                pattern=module.unit,
                requested=1 - int(keep_U.sum()) / module.units,
                sparsity=1 - layer.weight_OI.numel() / (shape[0] * shape[1]),
                relative_output_error=error if layer is module.reader else None,
                updated=(updated and layer is module.reader) or "recovery" in notes,
                error_before_update=None,
                seconds=(time.perf_counter() - begun) / len(module.layers),
                notes={**notes, "shape": list(layer.shape)},
            )
            for layer, shape in zip(module.layers, before, strict=True)
        ]

    def _inside(self, layer: Layer) -> str:
        """Return the layer's name within the block."""
        return layer.name.removeprefix(f"{self.block.name}.")


def _facts(solved: Sequence[Solved], names: Sequence[str]) -> dict[str, Any]:
    """Errors on the text that was held out; a ridge of None: the old weights stayed."""
    return {
        name: {"ridge": s.ridge, "held_out_before": s.before, "held_out_after": s.after}
        for name, s in zip(names, solved, strict=True)
    }


def _put(outputs: dict[Layer, Tensor], layer: Layer) -> Watcher:
    """Return what notes the layer's output."""
    return lambda output: outputs.update({layer: output})


def _tokens(hidden: Tensor) -> Tensor:
    """Return hidden states of any batch as (T, d), in float32."""
    return hidden.flatten(0, -2).float()


def _write(layer: Layer, new_OA: Tensor) -> None:
    width = layer.shape[1]
    layer.write(new_OA[:, :width])
    if layer.bias_O is not None:
        layer.bias_O.copy_(new_OA[:, width])
