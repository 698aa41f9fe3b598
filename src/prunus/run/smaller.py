"""A structured run, from the look at the model to the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.arguments import block_range
from ..base.errors import InputError
from ..base.team import ALONE, Team
from ..maths.orders.orders import Orders
from ..maths.pruners.units import UnitPruner
from ..maths.scores.units import Redundancy
from ..maths.shares.units import (
    Counts,
    Key,
    Quota,
    adaptive,
    check,
    costs,
    removable,
    removed,
    share_of,
    uniform,
)
from ..methods.table import published
from ..model.blocks import Block, Layer, find_blocks
from ..model.cost import OneToken
from ..model.gradients import loss_gradients
from ..model.inspect import first_of, inspect, start
from ..model.replay import Recording, Trace
from ..model.samples import Processed, Samples
from ..model.surgery import rehearse
from ..model.units import Depth2, find_modules
from ..model.watch import eager
from ..model.weights import Weights
from ..recipe import Recipe
from ..report.layer import LayerReport
from ..report.report import PruningReport
from ..report.units import BlockWidths, StructuredReport
from ..storage.journal import Journal
from ..storage.kinds import auto_of
from ..storage.scratch import Spilled
from ..storage.widths import Widths, adopt, note_widths, stock_config, widths_of
from ..text import Protocol
from .coverage import coverage_of
from .diary import counted
from .fingerprint import fingerprint
from .observer import Observer
from .unit_gather import Context
from .units import Seen, look, prune_units


@dataclass(frozen=True)
class Before:
    """Numbers of the dense model.

    Attributes:
        parameters: of all, tied ones once.
        blocks: of each block.
        removable: in the units of the modules.
        costs: of one unit of each module.
    """

    parameters: int
    blocks: list[int]
    removable: int
    costs: dict[Key, int]

    @classmethod
    def of(cls, run: StructuredRun) -> Before:
        """As the model is now."""
        blocks = [_count(block.module) for block in run.blocks]
        return cls(_count(run.model), blocks, removable(run.modules), costs(run.modules))


@dataclass
class StructuredRun:
    """A model that has been looked at, and what is to be removed from it.

    Attributes:
        weights: of the model.
        name: of the model, for the report.
        recipe: every choice, defaults filled in.
        pruner: what the recipe spells.
        ids_ST: calibration tokens; None: the method needs none.
        protocol: where they came from.
        device: where blocks are pruned.
        observer: told of every step.
        spill: a folder for activations; None: they stay in memory.
        blocks: of the model.
        traced: a short forward of it.
        token: a forward of one token.
        modules: what is to lose units.
        team: of one.
        rehearsal: on a few samples, by which a threshold may take nothing.
    """

    weights: Weights
    name: str
    recipe: Recipe
    pruner: UnitPruner
    ids_ST: Samples | None
    protocol: Protocol | None
    device: torch.device
    observer: Observer
    spill: Path | None
    blocks: list[Block]
    traced: Trace
    token: OneToken
    modules: list[Depth2]
    team: Team = ALONE
    rehearsal: bool = False

    @classmethod
    def of(
        cls,
        weights: Weights,
        name: str,
        recipe: Recipe,
        pruner: UnitPruner,
        tokens: tuple[Samples | None, Protocol | None],
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
        if pruner.recovery != "none" and (ids_ST is None or len(ids_ST) < 2):
            raise InputError(
                f"--recovery {pruner.recovery} holds a quarter of the calibration samples "
                "out, so it needs at least two. Give more --samples."
            )
        if pruner.wants("gradients") and isinstance(ids_ST, Processed):
            raise InputError(
                f"{recipe.method} reads the loss of every token, and inputs has positions that are "
                "no text. Give text, or tokens_ST."
            )
        chosen = range(len(find_blocks(weights.model)))
        if recipe.blocks is not None:
            chosen = block_range("--blocks", recipe.blocks, len(chosen))
        modules: list[Depth2] = []
        token = OneToken()

        def further(block: Block, traced: Trace) -> None:
            token.through(block, traced)
            if block.index in chosen:
                modules.extend(_rehearsed(block, traced, pruner))

        sample = first_of(ids_ST, weights.model)
        blocks, traced = inspect(weights.model, sample, weights, further)
        token.around(weights.model, traced)
        run = cls(
            weights, name, recipe, pruner, ids_ST, protocol, device, observer, spill, blocks,
            traced, token, modules,
        )  # fmt: skip
        run._check()
        return run

    def _check(self) -> None:
        """What can be refused before any look at text is."""
        share = self.share
        if self.pruner.allocation == "uniform" and not self.threshold:
            check(self.modules, uniform(self.modules, share), share)
        elif self.pruner.allocation == "adaptive" and self.threshold:
            raise InputError(
                "heads.threshold says how many heads go, and so does --allocation adaptive. "
                "Leave one of them out."
            )

    @cached_property
    def share(self) -> float:
        """Of the parameters in the modules' units: what is to go."""
        asked = self.recipe.parameters
        if asked is not None:
            return share_of(self.modules, asked)
        return cast(float, self.recipe.sparsity)

    @property
    def threshold(self) -> Redundancy | None:
        """The score of heads, if it is that which says how many go."""
        pruner = self.pruner
        if isinstance(pruner.heads, Redundancy) and pruner.heads.threshold > 0:
            return pruner.heads if "heads" in pruner.units else None
        return None

    def prune(self, journal: Journal | None = None) -> tuple[PruningReport, Orders]:
        """Do it; with a journal, from where an earlier run ended."""
        begun, pruner = time.perf_counter(), self.pruner
        layers = [layer for module in self.modules for layer in module.layers]
        coverage = coverage_of(self.model, self.blocks, {layer.name for layer in layers})
        before = Before.of(self)
        done = journal is not None and journal.holds(self.touched)
        context = self._context([] if done else layers)  # whose gradients nothing would read
        dense = None if done else self._look(context)
        quota = self._quota(dense, counted(journal) if journal and done else None)
        reads = not done and (pruner.sequential or pruner.recovery != "none")
        recording = self._recording() if reads else None
        known = None if pruner.sequential else dense
        reports, seen = prune_units(
            context, self.blocks, self.modules, quota, recording, known, journal
        )
        if not any(quota.counts.values()) and not self.rehearsal:  # as no look before has said
            if journal is not None:
                journal.remove()
            raise InputError(
                "No two heads are as near as heads.threshold, so nothing went. Give a larger one; "
                "`prunus plot --show heads` of a run without it shows how near they are."
            )
        structured = self._smaller(before, quota, reports, seen)
        paper, url = published(self.recipe.method)
        report = PruningReport(
            model=self.name,
            method=self.recipe.method,
            paper=paper,
            url=url,
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
        return report, Orders()

    @property
    def touched(self) -> list[int]:
        """The blocks that become smaller: those that a journal has at the end."""
        return sorted({module.block for module in self.modules})

    def _smaller(
        self, before: Before, quota: Quota, reports: Sequence[LayerReport], seen: Seen
    ) -> StructuredReport:
        """What came of it; the widths are with the model from here on."""
        widths, dear = self._widths(quota.counts, seen), self.token.multiply_adds
        return StructuredReport(
            parameters=(before.parameters, _count(self.model)),
            removable=before.removable,
            removed=removed(before.costs, quota.counts),
            multiply_adds=(dear, dear - seen.saved),
            stock=self._note(widths),
            auto=auto_of(self.model),
            blocks=self._blocks(before.blocks, widths, reports, seen),
        )

    def fingerprint(self, checkpoint: str | Path) -> dict[str, Any]:
        """All that decides what comes out, flat, for a later run to compare."""
        return fingerprint(checkpoint, self.recipe, self.protocol, self.device, 1)

    @property
    def model(self) -> PreTrainedModel:
        """The whole structure."""
        return self.weights.model

    def _note(self, widths: Widths) -> bool:
        """Leave the widths with the model: in its config, which then is a stock one, or beside."""
        stock = stock_config(self.model, [block.name for block in self.blocks], widths)
        if stock is not None:
            adopt(self.model.config, stock)
        note_widths(self.model, None if stock is not None else widths)
        return stock is not None

    def _context(self, layers: Sequence[Layer]) -> Context:
        gradients, ids_ST = None, self.ids_ST
        if layers and self.pruner.wants("gradients") and isinstance(ids_ST, Tensor):
            weights = sum(layer.weight_OI.numel() for layer in layers)
            self.observer.say(
                f"gradients of the whole model in memory: {weights:,} numbers beside the weights"
            )
            self.model.to(self.device)  # type: ignore[arg-type]
            self.observer.block(0, 1, "the model", "gradients")
            gradients = loss_gradients(self.model, layers, ids_ST, self.observer.sample)
        return Context(
            self.model, len(self.blocks), self.pruner, self.device, self.observer,
            self.recipe.seed, self.token, gradients,
        )  # fmt: skip

    def _recording(self) -> Recording | None:
        """The samples at the first block; with explicit masks where attention is looked at."""
        if self.ids_ST is None:
            return None
        hidden = Spilled(self.spill) if self.spill is not None else None
        maps = self.pruner.wants("maps")
        with eager(self.model) if maps else nullcontext():
            return start(self.model, self.blocks, self.traced, self.ids_ST, hidden)

    def _look(self, context: Context) -> Seen | None:
        """At the dense model, where the method or the allocation wants that."""
        pruner = self.pruner
        if pruner.sequential and pruner.allocation == "uniform":
            return None
        scores = [pruner.score(unit) for unit in pruner.units]
        reads = any(s.first or s.second or s.wants == "maps" for s in scores)
        recording = self._recording() if reads or pruner.compensation else None
        return look(context, self.blocks, self.modules, recording)

    def _quota(self, dense: Seen | None, known: dict[Key, int] | None) -> Quota:
        """How many units of each module go; if that is not ``known`` yet, the user is told."""
        modules, threshold = self.modules, self.threshold
        if known is not None:
            return Quota(modules, self.share, known)
        if self.pruner.allocation == "adaptive":
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
                    parameters=(parameters, _count(block.module)),
                    kept_heads=kept.get(block.index),
                    divergence=rounded,
                )
            )
        return found


def _rehearsed(block: Block, traced: Trace, pruner: UnitPruner) -> list[Depth2]:
    """What can lose units in a block that is at hand, after a trial of that."""
    call, hidden = traced.calls[block.index], traced.inputs[block.index]
    modules = find_modules(block, call, hidden, pruner.units)
    for module in modules:
        rehearse(block, module, call, hidden)
    return modules


def _count(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
