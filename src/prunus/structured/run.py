"""A structured run, from the look at the model to the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from ..allocation.select import block_range
from ..blocks import Block, Layer
from ..calibration import Protocol
from ..errors import InputError, UnsupportedModelError
from ..experts import one_by_one
from ..observer import Observer
from ..replay import Recording, Trace
from ..report.pruning_report import Coverage, PruningReport
from ..report.structured_report import BlockWidths, StructuredReport
from ..spill import Spilled
from ..survey import any_tokens, inspect, start
from ..types import LayerReport
from .allocation import (
    Counts,
    Quota,
    adaptive,
    check,
    costs,
    removable,
    removed,
    share_of,
    uniform,
)
from .gathering import Context
from .gradients import loss_gradients
from .loop import Seen, look, prune_units
from .modules import Depth2, find_modules
from .pruner import UnitPruner
from .scores import Redundancy
from .surgery import rehearse
from .watching import eager
from .widths import Widths, note_widths, stock_config, widths_of

DEFAULT = 0.2  # of the parameters in heads and neurons: the paper's first table


@dataclass(frozen=True)
class Request:
    """What is asked of a structured run.

    Attributes:
        name: of the model, for the report.
        method: row of the table.
        pruner: what that spells.
        sparsity: share of the parameters in heads and neurons to remove.
        parameters: how many instead.
        blocks: "A:B", the blocks A to B − 1; None: all.
        seed: of the run.
    """

    name: str
    method: str
    pruner: UnitPruner
    sparsity: float = DEFAULT
    parameters: int | None = None
    blocks: str | None = None
    seed: int = 0


@dataclass
class StructuredRun:
    """A model in memory that has been looked at, and what is to be removed from it."""

    model: PreTrainedModel
    request: Request
    ids_ST: Tensor | None
    protocol: Protocol | None
    device: torch.device
    observer: Observer
    blocks: list[Block]
    traced: Trace
    modules: list[Depth2]
    spill: Path | None = None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        request: Request,
        tokens: tuple[Tensor | None, Protocol | None],
        device: torch.device,
        observer: Observer,
        spill: Path | None = None,
    ) -> StructuredRun:
        """Look at the model; rehearse the surgery on every block. Nothing is changed.

        Raises:
            UnsupportedModelError: a block that cannot be made smaller, with the reason.
            InputError: a range outside of the model, too little text.
        """
        ids_ST, protocol = tokens
        if request.pruner.recovery != "none" and (ids_ST is None or len(ids_ST) < 2):
            raise InputError(
                f"--recovery {request.pruner.recovery} holds a quarter of the calibration samples "
                "out, so it needs at least two. Give more --samples."
            )
        blocks, traced = inspect(model, ids_ST if ids_ST is not None else any_tokens(model))
        modules = []
        chosen = range(len(blocks))
        if request.blocks is not None:
            chosen = block_range("--blocks", request.blocks, len(blocks))
        for index in chosen:
            call, hidden = traced.calls[index], traced.inputs[index]
            _check_alive(blocks[index])
            found = find_modules(blocks[index], call, hidden, request.pruner.units)
            for module in found:
                rehearse(blocks[index], module, call, hidden)
            modules += found
        run = cls(
            model, request, ids_ST, protocol, device, observer, blocks, traced, modules, spill
        )
        run._check()
        return run

    def _check(self) -> None:
        """What can be refused before any look at text is."""
        share = self.share
        if self.request.pruner.allocation == "uniform" and not self.threshold:
            check(self.modules, uniform(self.modules, share), share)
        elif self.request.pruner.allocation == "adaptive" and self.threshold:
            raise InputError(
                "heads.threshold says how many heads go, and so does --allocation adaptive. "
                "Leave one of them out."
            )

    @cached_property
    def share(self) -> float:
        """Of the parameters in the modules' units: what is to go."""
        asked = self.request.parameters
        return self.request.sparsity if asked is None else share_of(self.modules, asked)

    @property
    def threshold(self) -> Redundancy | None:
        """The score of heads, if it is that which says how many go."""
        pruner = self.request.pruner
        if isinstance(pruner.heads, Redundancy) and pruner.heads.threshold > 0:
            return pruner.heads if "heads" in pruner.units else None
        return None

    def prune(self) -> PruningReport:
        """Do it, in place."""
        begun, pruner = time.perf_counter(), self.request.pruner
        layers = [layer for module in self.modules for layer in module.layers]
        coverage = Coverage.of(self.model, self.blocks, {layer.name for layer in layers})
        before, blocks_before = self._size(), [_count(block) for block in self.blocks]
        context = self._context(layers)
        dense = self._look(context)
        quota, cost, total = self._quota(dense), costs(self.modules), removable(self.modules)
        recording = self._recording() if pruner.sequential or pruner.recovery != "none" else None
        known = None if pruner.sequential else dense
        reports, seen = prune_units(context, self.blocks, self.modules, quota, recording, known)
        gone = removed(cost, quota.counts)
        if not gone:  # as no look before has said
            raise InputError(
                "No two heads are as near as heads.threshold, so nothing went. Give a larger one; "
                "`prunus plot --show heads` of a run without it shows how near they are."
            )
        widths = self._widths(quota.counts, seen)
        stock = self._note(widths)
        after = self._size()
        structured = StructuredReport(
            parameters=(before[0], after[0]),
            removable=total,
            removed=gone,
            multiply_adds=(before[1], after[1]),
            stock=stock,
            blocks=self._blocks(blocks_before, widths, reports, seen),
        )
        return PruningReport(
            model=self.request.name,
            method=self.request.method,
            pruner=repr(pruner),
            pattern=None,
            requested=self.share,
            sparsity=structured.share,
            coverage=coverage,
            protocol=self.protocol,
            seconds=time.perf_counter() - begun,
            layers=reports,
            structured=structured,
        )

    def _note(self, widths: Widths) -> bool:
        """Leave the widths with the model: in its config, which then is a stock one, or beside."""
        stock = stock_config(self.model, [block.name for block in self.blocks], widths)
        if stock is not None:
            _adopt(self.model.config, stock)
        note_widths(self.model, None if stock is not None else widths)
        return stock is not None

    def _size(self) -> tuple[int, int]:
        """Parameters of the model, tied ones once; and multiply-adds of one token, by running it.

        Attention over one token is next to nothing.
        """
        token = any_tokens(self.model)[:, :1].to(self.model.device)
        with torch.no_grad(), one_by_one(self.model):  # the counter sees experts only so
            with FlopCounterMode(display=False) as operations:
                self.model(input_ids=token, use_cache=False)
        return sum(p.numel() for p in self.model.parameters()), operations.get_total_flops() // 2

    def _context(self, layers: Sequence[Layer]) -> Context:
        gradients, ids_ST = None, self.ids_ST
        if self.request.pruner.wants("gradients") and ids_ST is not None:
            weights = sum(layer.weight_OI.numel() for layer in layers)
            self.observer.say(
                f"gradients of the whole model in memory: {weights:,} numbers beside the weights"
            )
            self.model.to(self.device)  # type: ignore[arg-type]
            self.observer.block(0, 1, "the model", "gradients")
            gradients = loss_gradients(self.model, layers, ids_ST, self.observer.sample)
        return Context(
            self.model, len(self.blocks), self.request.pruner, self.device, self.observer,
            self.request.seed, gradients,
        )  # fmt: skip

    def _recording(self) -> Recording | None:
        """The samples at the first block; with explicit masks where attention is looked at."""
        if self.ids_ST is None:
            return None
        hidden = Spilled(self.spill) if self.spill is not None else None
        maps = self.request.pruner.wants("maps")
        with eager(self.model) if maps else nullcontext():
            return start(self.model, self.blocks, self.traced, self.ids_ST, hidden)

    def _look(self, context: Context) -> Seen | None:
        """At the dense model, where the method or the allocation wants that."""
        pruner = self.request.pruner
        if pruner.sequential and pruner.allocation == "uniform":
            return None
        scores = [pruner.score(unit) for unit in pruner.units]
        reads = any(s.first or s.second or s.wants == "maps" for s in scores)
        recording = self._recording() if reads or pruner.compensation else None
        return look(context, self.blocks, self.modules, recording)

    def _quota(self, dense: Seen | None) -> Quota:
        """How many units of each module go; the user is told, where it is known by now."""
        modules, threshold = self.modules, self.threshold
        if self.request.pruner.allocation == "adaptive":
            assert dense is not None
            counts = adaptive(modules, dense.scores, self.share)
            check(modules, counts, self.share)
        else:
            counts = uniform(modules, self.share)
        if threshold is None:
            gone, total = removed(costs(modules), counts), removable(modules)
            self.observer.say(
                f"removing {gone:,} of the {total:,} parameters in {len(modules)} modules of "
                f"heads and neurons, {gone / total:.1%}"
            )
        return Quota(modules, self.share, counts, threshold.count if threshold else None)

    def _widths(self, counts: Counts, seen: Seen) -> Widths:
        config = self.model.config.get_text_config()
        dense_heads = getattr(config, "num_attention_heads", None)
        dense_kv = getattr(config, "num_key_value_heads", None) or dense_heads
        left = {
            module.block: module.left(module.units - counts[module.block, "heads"])
            for module in self.modules
            if module.unit == "heads"
        }
        dense: dict[str, Any] = {"heads": dense_heads, "kv_heads": dense_kv, "numbers": {}}
        before = widths_of(self.model) or [dense] * len(self.blocks)
        widths = []
        for block, was in zip(self.blocks, before, strict=True):
            heads, kv_heads = left.get(block.index, (was["heads"], was["kv_heads"]))
            readers = {layer.role: layer for layer in block.layers}
            o, down = readers.get("o"), readers.get("down")
            if sum(layer.role == "down" for layer in block.layers) > 1:
                down = None  # of experts: no one width
            widths.append(
                {
                    "heads": heads,
                    "kv_heads": kv_heads,
                    "intermediate": down.shape[1] if down else None,
                    "bias_o": o is not None and o.bias_O is not None,
                    "bias_down": down is not None and down.bias_O is not None,
                    "numbers": {**was.get("numbers", {}), **seen.numbers.get(block.index, {})},
                }
            )
        return widths

    def _blocks(
        self, before: Sequence[int], widths: Widths, reports: Sequence[LayerReport], seen: Seen
    ) -> list[BlockWidths]:
        modules = {(module.block, module.unit): module for module in self.modules}
        kept = {r.block: r.notes["kept"] for r in reports if r.pattern == "heads"}
        found = []
        for block, parameters, width in zip(self.blocks, before, widths, strict=True):
            attention = modules.get((block.index, "heads"))
            mlp = modules.get((block.index, "neurons"))
            divergence_HH = seen.divergences.get(block.index)
            rounded: Any = None
            if divergence_HH is not None:
                rounded = [[round(x, 4) for x in row] for row in divergence_HH.tolist()]
            found.append(
                BlockWidths(
                    block=block.index,
                    heads=(attention.heads, width["heads"]) if attention else None,
                    kv_heads=(attention.kv_heads, width["kv_heads"]) if attention else None,
                    neurons=(mlp.units, width["intermediate"]) if mlp else None,
                    parameters=(parameters, _count(block)),
                    kept_heads=kept.get(block.index),
                    divergence=rounded,
                )
            )
        return found


def _check_alive(block: Block) -> None:
    """What a matrix feeds is seen by looking, and nothing comes through zeros."""
    for layer in block.layers:
        if not bool(layer.weight_OI.any()):
            raise UnsupportedModelError(
                f"{layer.name} is all zeros, so that prunus cannot see what belongs to a head or "
                "neuron there. Leave its block out with --blocks A:B."
            )


def _count(block: Block) -> int:
    return sum(parameter.numel() for parameter in block.module.parameters())


def _adopt(config: Any, stock: Any) -> None:
    """The model's own config, which its modules share, with the stock config's numbers."""
    own = config.to_dict()
    for name, value in stock.to_dict().items():
        if name not in own or own[name] != value:
            setattr(config, name, value)
