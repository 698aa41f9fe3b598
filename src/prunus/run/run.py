"""One run, from the look at the model to the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..base.errors import InputError, UnsupportedModelError
from ..base.team import ALONE, Team
from ..maths.contracts import BlockPruner, Pattern, Plan
from ..maths.orders.orders import Orders
from ..maths.patterns import NM
from ..maths.shares import BESA, OWL, Allocation, Uniform
from ..maths.shares.budget import settle, total
from ..methods.own import check_merges, spelled
from ..methods.table import METHODS, QUANTIZE, published
from ..model.blocks import Block, Layer
from ..model.channels import Channels
from ..model.inspect import first_of, inspect, start
from ..model.replay import Recording, Trace
from ..model.samples import Samples
from ..model.select import select_layers
from ..model.weights import Weights
from ..recipe import Recipe
from ..report import Coverage, PruningReport
from ..report.experts import ExpertTokens
from ..report.report import realised_sparsity
from ..storage import packing
from ..storage.journal import Journal
from ..storage.scratch import Spilled
from ..text import Protocol
from .coverage import coverage_of
from .fingerprint import choices, fingerprint
from .learn import Learner
from .loop import prune_blocks
from .observer import Observer
from .passes import outliers, residual_order


@dataclass
class Run:
    """A model that has been looked at, and what is to be done with it.

    Attributes:
        weights: of the model.
        name: of the model, for the report.
        recipe: every choice, defaults filled in.
        pruner: what the recipe spells.
        allocation: how much of each layer goes.
        ids_ST: calibration tokens, or processed samples; None: the method needs none.
        protocol: where they came from.
        device: where blocks are pruned.
        observer: told of every step.
        spill: a folder for activations; None: they stay in memory.
        blocks: of the model.
        traced: a short forward of it.
        plan: sparsity by layer, before the allocation has looked at any text.
        coverage: which share of the model that is.
        team: the processes that do it together.
    """

    weights: Weights
    name: str
    recipe: Recipe
    pruner: BlockPruner
    allocation: Allocation
    ids_ST: Samples | None
    protocol: Protocol | None
    device: torch.device
    observer: Observer
    spill: Path | None
    blocks: list[Block]
    traced: Trace
    plan: Plan
    coverage: Coverage
    team: Team = ALONE

    @classmethod
    def of(
        cls,
        weights: Weights,
        name: str,
        recipe: Recipe,
        pruner: BlockPruner,
        allocation: Allocation,
        tokens: tuple[Samples | None, Protocol | None],
        device: torch.device,
        observer: Observer,
        spill: Path | None = None,
    ) -> Run:
        """Look at the model and plan. Nothing is changed.

        Raises:
            UnsupportedModelError: a structure that prunus cannot handle yet.
            PatternError: a layer that does not fit the pattern.
        """
        ids_ST, protocol = tokens
        blocks, traced = inspect(weights.model, first_of(ids_ST, weights.model), weights)
        layers = select_layers(blocks, mlp_only=recipe.mlp_only, skip_blocks=recipe.skip_blocks)
        plan = Uniform()(layers, cast(float, recipe.sparsity))
        grid = recipe.grid() if recipe.pack else None
        for block in blocks:
            pruner.check(block, plan)
            if grid is not None:
                packing.check(block.planned(plan), grid)
        _check_gated(recipe.method, [block for block in blocks if block.planned(plan)])
        for layer in layers:
            _check_free(pruner.pattern(layer), allocation, layer, plan)
        coverage = coverage_of(weights.model, blocks, set(plan))
        if not recipe.mlp_only and recipe.skip_blocks is None:
            coverage.check()
        return cls(
            weights, name, recipe, pruner, allocation, ids_ST, protocol, device, observer, spill,
            blocks, traced, plan, coverage,
        )  # fmt: skip

    def shared(self, team: Team) -> None:
        """Do it with others, who have the same to do.

        Raises:
            InputError: they do not, or there are fewer samples than processes.
        """
        self.team, self.device = team, team.device(self.device)
        todo = {
            **choices(self.recipe),
            "calibration sha256": self.protocol.sha256 if self.protocol else None,
        }
        told = team.told(todo)
        with team.agreed():
            if team.size > 1 and isinstance(self.allocation, BESA):
                raise InputError("besa learns in one process; run it without torchrun.")
            if team.size > 1:
                check_merges(self.pruner)
            for key in todo:
                if todo[key] != told[key]:
                    raise InputError(
                        f"{key} is {todo[key]!r} here and {told[key]!r} in process 0. Give all "
                        "processes the same arguments and files."
                    )
            if self.ids_ST is not None and len(self.ids_ST) < team.size:
                raise InputError(
                    f"{team.size} processes need a calibration sample each, at least; --samples "
                    f"is {len(self.ids_ST)}. Give more, or start fewer processes."
                )

    def prune(self, journal: Journal | None = None) -> tuple[PruningReport, Orders]:
        """Do it; with a journal, from where an earlier run ended."""
        begun = time.perf_counter()
        verb = "quantising" if self.recipe.method == QUANTIZE else "pruning"
        self.observer.say(
            f"{verb} {len(self.plan)} layers in {len(self.blocks)} blocks: {self.coverage}"
        )
        channels = self._ordered(journal)
        plan = self._allocated(journal)
        done = self.team.told(journal is not None and journal.holds(self.touched))
        recording = None if done else self.recording()  # which nothing would read any more
        learner = None if done else self.learner(recording, journal)
        reports = prune_blocks(
            self.blocks,
            recording,
            self.pruner,
            plan,
            device=self.device,
            observer=self.observer,
            true_sequential=self.recipe.true_sequential,
            channels=channels,
            learner=learner,
            journal=journal,
            team=self.team,
        )
        paper, url = published(self.recipe.method)
        report = PruningReport(
            model=self.name,
            method=self.recipe.method,
            paper=paper,
            url=url,
            pruner=spelled(self.pruner),
            allocation=repr(self.allocation),
            pattern=self.recipe.pattern,
            requested=cast(float, self.recipe.sparsity),
            sparsity=realised_sparsity(reports),
            coverage=self.coverage,
            protocol=self.protocol,
            seconds=time.perf_counter() - begun,
            layers=reports,
            experts=ExpertTokens.of(reports),
            learning=learner.curves if learner is not None else _curves(journal),
            grid=self.recipe.grid(),
            packed=self.recipe.pack,
            processes=self.team.size,
        )
        return report, channels.orders if channels else Orders()

    @property
    def touched(self) -> list[int]:
        """All blocks up to the last that is pruned: those that a journal has at the end."""
        last = max((block.index for block in self.blocks if block.planned(self.plan)), default=-1)
        return list(range(last + 1))

    def recording(self, samples: int | None = None) -> Recording | None:
        """This process's calibration samples, or the first of them, at the first block."""
        if self.ids_ST is None:
            return None
        hidden = Spilled(self.spill) if self.spill else None
        own = self.team.share(len(self.ids_ST[:samples]))
        recording = start(self.weights.model, self.blocks, self.traced, self.ids_ST[own], hidden)
        recording.first = own.start
        recording.min_tokens = self.recipe.min_tokens
        return recording

    def channels(self) -> Channels | None:
        """Ready to be put in order, if the method wants that."""
        if self.pruner.ordering is None:
            return None
        fold = self.pruner.ordering.realisation == "fold"
        sample = first_of(self.ids_ST, self.weights.model)
        return Channels.of(self.weights, self.blocks, self.traced, sample, fold)

    def _ordered(self, journal: Journal | None) -> Channels | None:
        """The residual stream is in its order already, if it is to have one."""
        channels, ordering = self.channels(), self.pruner.ordering
        if channels is not None and ordering is not None and channels.residual is not None:
            order_I = journal.residual if journal is not None else None
            if not self.team.told(order_I is not None):
                where: Any = {"device": self.device, "observer": self.observer, "team": self.team}
                recording = self.recording()
                order_I = residual_order(self.blocks, recording, ordering, self.plan, **where)
                if journal is not None:
                    journal.order_residual(order_I)
            told = self.team.told(None if order_I is None else order_I.tolist())
            channels.fold_residual(torch.tensor(told))
        return channels

    def learner(
        self, recording: Recording | None, journal: Journal | None = None
    ) -> Learner | None:
        """Of the allocation, if it learns; the engine will advance this recording."""
        if not isinstance(self.allocation, BESA):
            return None
        assert recording is not None  # an allocation that learns is given text
        dense = self.allocation.reference == "dense"
        reference = recording.copy() if dense else None
        return Learner(
            self.allocation, self.blocks, recording, reference, self.plan, self.pruner,
            self.device, self.observer, journal,
        )  # fmt: skip

    def alike(self, layers: Sequence[Layer]) -> Plan:
        """A plan for these layers without any look at text, for a rehearsal."""
        if isinstance(self.allocation, Uniform):
            return {layer.name: self.plan[layer.name] for layer in layers}
        return self._settled(layers, [torch.zeros(1)] * len(layers))

    def _settled(self, layers: Sequence[Layer], shares: Sequence[Tensor]) -> Plan:
        patterns = [self.pruner.pattern(layer) for layer in layers]
        return settle(layers, shares, patterns, total(layers, self.plan)[0])[0]

    def _allocated(self, journal: Journal | None) -> Plan:
        """The plan; with OWL after a dense pass, unless an earlier run has made it."""
        if not isinstance(self.allocation, OWL):
            return self.plan
        told = self.team.told(journal.outliers if journal is not None else None)
        found = None if told is None else {int(block): share for block, share in told.items()}
        if found is None:
            where: Any = {"device": self.device, "observer": self.observer, "team": self.team}
            found = outliers(self.blocks, self.recording(), self.allocation, self.plan, **where)
            if journal is not None:
                journal.note_outliers(found)
        shares = self.allocation.shares(found)
        layers = [layer for block in self.blocks for layer in block.planned(self.plan)]
        return self._settled(layers, [torch.tensor([shares[layer.block]]) for layer in layers])

    def fingerprint(self, checkpoint: str | Path) -> dict[str, Any]:
        """All that decides what comes out, flat, for a later run to compare."""
        return fingerprint(checkpoint, self.recipe, self.protocol, self.device, self.team.size)


def _curves(journal: Journal | None) -> list[dict[str, Any]]:
    """What earlier runs learned, unit after unit."""
    learned = journal.learned if journal is not None else {}
    return [learned[index]["curve"] for index in sorted(learned)]


def _check_gated(method: str, blocks: Sequence[Block]) -> None:
    """A method for gated MLPs must have one in front of it."""
    if method in METHODS and METHODS[method].gated and not any(block.gated for block in blocks):
        raise UnsupportedModelError(
            f"{method} needs a gated MLP (gate, up and down projections), and none of the blocks "
            "that are to be pruned has one. Use wanda or ria for this model."
        )


def _check_free(pattern: Pattern, allocation: Allocation, layer: Layer, plan: Plan) -> None:
    """Layers must be free to have different sparsities, if and only if they are to have them."""
    if isinstance(allocation, Uniform):
        pattern.at(plan[layer.name])
    elif isinstance(pattern, NM):
        raise InputError(
            f"{layer.name}: with {pattern} every layer has the same sparsity, and nothing is left "
            "to allocate. Give an unstructured pattern, or several to choose from "
            "(--pattern 1:4,2:4,3:4 --sparsity 0.5), or --allocation uniform."
        )
