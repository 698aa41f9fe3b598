"""A learned allocation on its way through the blocks, beside the loop.

The loop asks for the shares of every block before it prunes it. Before the first block of a unit
(one block, or two that learn together) they are learned; the dense stream goes on meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..base.errors import NumericalError
from ..base.team import ALONE, Team
from ..maths.contracts import BlockPruner, Plan, Share
from ..maths.pruners import OnGrid
from ..maths.shares.besa import BESA, WINDOW, Budget, Learned
from ..maths.shares.budget import settle, total
from ..maths.stats import Statistics
from ..model.blocks import Block, Layer
from ..model.replay import Hidden, Recording
from ..storage.journal import Journal
from .gather import gathered
from .observer import Observer
from .unit import Unit
from .walk import on


@dataclass
class Learner:
    """Shares for one block after the other, in order.

    Attributes:
        allocation: what learns.
        blocks: of the model.
        recording: the pruned stream, which the loop advances.
        reference: the dense stream, at the next unit; None: targets are what the dense unit makes
            of the pruned stream.
        plan: the shares before learning: what a unit's layers must come to together.
        pruner: whose patterns say what kind of share each layer can have.
        device: where blocks are.
        observer: told of every step.
        journal: keeps what a later run cannot find again.
        team: the processes that learn together, each with its own samples.
        curves: of the units so far, for the report.
        owed: weights that earlier units should have lost, where patterns allow no exact count.
    """

    allocation: BESA
    blocks: Sequence[Block]
    recording: Recording
    reference: Recording | None
    plan: Plan
    pruner: BlockPruner
    device: torch.device
    observer: Observer
    journal: Journal | None = None
    team: Team = ALONE
    curves: list[dict[str, Any]] = field(default_factory=list)
    owed: float = 0.0
    _found: dict[str, Share] = field(default_factory=dict)
    _clipping: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, block: Block) -> tuple[Plan, BlockPruner]:
        """Return the block's plan, and the pruner with any clipping strengths that were learned.

        The block is at hand and dense.
        """
        if block.index % self.allocation.span == 0:
            unit = self.blocks[block.index : block.index + self.allocation.span]
            self._found, self._clipping = {}, {}
            with ExitStack() as stack:
                for other in unit[1:]:
                    stack.enter_context(on(self.device, other))
                self._pass(unit)
        names = [layer.name for layer in block.planned(self.plan)]
        pruner = self.pruner
        if isinstance(pruner, OnGrid) and self._clipping:
            pruner = replace(pruner, clipping=self._clipping)
        return {name: self._found.get(name, self.plan[name]) for name in names}, pruner

    def _pass(self, unit: Sequence[Block]) -> None:
        """Learn the unit's shares, unless an earlier run has pruned it; advance the reference."""
        known, open_ = self._known(unit)
        layers = [layer for block in unit for layer in block.planned(self.plan)]
        self.observer.block(unit[0].index, len(self.blocks), unit[0].name, "learn")
        if self.reference is not None:
            for block in unit:
                self.reference.advance(block.index, block.module, self.device)
        budgets = self._budgets(layers)
        if open_ and any(0 < budget.share < 1 for budget in budgets):
            self._learn(unit, layers, budgets)
        elif known is not None:
            self.curves.append(known["curve"])
            self.owed = known["owed"]

    def _known(self, unit: Sequence[Block]) -> tuple[Any, bool]:
        """Return what an earlier run learned for the unit, and whether a block is still to do."""
        journal, known, open_ = self.journal, None, True
        if journal is not None:
            known = journal.learned.get(unit[0].index)
            open_ = any(block.index not in journal.blocks for block in unit)
        known, open_ = self.team.told([known, open_])
        return known, open_

    def _learn(
        self, unit: Sequence[Block], layers: Sequence[Layer], budgets: Sequence[Budget]
    ) -> None:
        begun = time.perf_counter()
        scores, targets = self._look(unit, layers)
        precision = self.allocation.precision
        with torch.enable_grad():
            learned = self.allocation.learn(
                {layer.name: layer.weight_OI for layer in layers},
                scores,
                budgets,
                Unit(unit, self.recording, targets, self.device, precision=precision),
                self.observer.sample,
                self.team,
            )
        if not all(map(math.isfinite, learned.losses)):
            raise NumericalError(
                f"{unit[0].name}: the loss became NaN or inf while shares were learned. Use "
                "--dtype float32, or a lower --set allocation.rate."
            )
        for budget in budgets:
            half = [layer for layer in layers if layer.name in budget.layers]
            settled, self.owed = settle(
                half,
                [learned.shares[layer.name] for layer in half],
                [self.pruner.pattern(layer) for layer in half],
                total(half, self.plan)[0] + self.owed,
            )
            self._found |= settled
        self._clipping = learned.clipping
        self._note(unit, learned, time.perf_counter() - begun)

    def _look(
        self, unit: Sequence[Block], layers: Sequence[Layer]
    ) -> tuple[dict[str, Tensor], Hidden]:
        """Score the unit's dense layers on the pruned stream, and find the targets."""
        still = self.reference is not None and len(unit) == 1
        ahead = self.recording if still else self.recording.copy()
        stats: dict[str, Statistics] = {}
        for block in unit:
            further = block is not unit[-1] or self.reference is None
            where = (self.device, self.observer, further)
            stats |= gathered(block, ahead, self.allocation.needs, *where, self.team)
        scores, grid = {}, self.allocation.grid
        for layer in layers:
            weight_OI = layer.weight_OI
            if grid is not None:
                weight_OI = grid.quantize(weight_OI).dequantize()
            scores[layer.name] = self.allocation.score(weight_OI, stats[layer.site])
        return scores, (self.reference or ahead).hidden

    def _budgets(self, layers: Sequence[Layer]) -> list[Budget]:
        """Group the layers that meet a target together."""
        halves: dict[Any, list[Layer]] = {}
        apart = self.allocation.granularity == "attention-mlp"
        for layer in layers:
            halves.setdefault(layer.kind if apart else None, []).append(layer)
        return [
            Budget(tuple(layer.name for layer in half), float(total(half, self.plan)[1]))
            for half in halves.values()
        ]

    def _note(self, unit: Sequence[Block], learned: Learned, seconds: float) -> None:
        losses = learned.losses
        windows = [losses[i : i + WINDOW] for i in range(0, len(losses), WINDOW)]
        curve = {
            "blocks": [block.index for block in unit],
            "steps": len(losses),
            "loss": [sum(window) / len(window) for window in windows],
            "seconds": seconds,
        }
        self.curves.append(curve)
        if self.journal is not None:
            self.journal.note_learned(unit[0].index, {"curve": curve, "owed": self.owed})
