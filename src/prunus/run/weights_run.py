"""A run that makes single weights zero, from the look at the model to the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from ..base.errors import InputError, UnsupportedModelError
from ..base.words import number_of
from ..maths.contracts import BlockPruner, Pattern, Plan, requested
from ..maths.orders.orders import Orders
from ..maths.patterns import NM, OneOf, Unstructured
from ..maths.pruners import ActivationAware, Compose, EachLayer, OnGrid
from ..maths.reconstruction import Reconstruction
from ..maths.shares import OWL, Allocation, Evolve, Slope, Uniform, learner_of, split_of
from ..maths.shares.budget import settle, total
from ..methods.own import check_merges, spelled
from ..methods.table import METHODS, QUANTIZE
from ..model.blocks import Block, Layer
from ..model.channels import Channels
from ..model.inspect import first_of
from ..model.replay import Recording
from ..model.select import select_layers
from ..report import Coverage, PruningReport
from ..report.experts import ExpertTokens
from ..report.report import realised_sparsity
from ..storage import packing
from ..storage.journal import Journal
from .coverage import coverage_of
from .job import Further, Job
from .learn import Learner
from .loop import prune_blocks
from .passes import outliers, residual_order
from .reconstruct import RECONSTRUCTED, Reconstructor, parts
from .search import HeldOut, searched
from .walk import units_of


@dataclass
class WeightsRun:
    """A model that has been looked at, and what is to be done with its weights.

    Attributes:
        job: the model, its text, and where to compute.
        pruner: what the recipe spells.
        allocation: how much of each layer is removed.
        plan: sparsity by layer, before the allocation has looked at any text.
        coverage: which share of the model that is.
        reconstruction: of blocks, when their layers are pruned; None: they stay as they are.
        orders: in which the patterns of layers held before, where they were pruned before.
    """

    job: Job
    pruner: BlockPruner
    allocation: Allocation
    plan: Plan
    coverage: Coverage
    reconstruction: Reconstruction | None = None
    orders: Orders = field(default_factory=Orders)

    @classmethod
    def of(
        cls,
        look: Callable[[Further | None], Job],
        pruner: BlockPruner,
        allocation: Allocation,
        reconstruction: Reconstruction | None = None,
    ) -> WeightsRun:
        """Look at the model and plan. Nothing is changed.

        Raises:
            UnsupportedModelError: a structure that prunus cannot handle yet.
            PatternError: a layer that does not fit the pattern.
        """
        job = look(None)
        recipe, blocks = job.recipe, job.blocks
        layers = select_layers(blocks, mlp_only=recipe.mlp_only, skip_blocks=recipe.skip_blocks)
        plan = Uniform()(layers, cast(float, recipe.sparsity))
        if isinstance(pruner, ActivationAware):
            plan = pruner.planned(plan)
        grid = recipe.grid() if recipe.pack else None
        for block in blocks:
            pruner.check(block, plan)
            if grid is not None:
                packing.check(block.planned(plan), grid)
        _check_gated(recipe.method, [block for block in blocks if block.planned(plan)])
        if reconstruction is not None:
            _check_reconstruction(reconstruction, job, plan)
        for layer in layers:
            _check_free(pruner.pattern(layer), allocation, layer, plan)
        coverage = coverage_of(job.model, blocks, set(plan))
        if not recipe.mlp_only and recipe.skip_blocks is None:
            coverage.check()
        return cls(job, pruner, allocation, plan, coverage, reconstruction)

    def check_team(self) -> None:
        """Raise InputError where several processes cannot do this together."""
        self.job.check_same()
        if self.job.team.size > 1:
            check_merges(self.pruner)

    def prune(self, journal: Journal | None = None) -> tuple[PruningReport, Orders]:
        """Prune; with a journal, go on from where an earlier run ended."""
        begun, job = time.perf_counter(), self.job
        verb = "quantising" if job.recipe.method == QUANTIZE else "pruning"
        layers, blocks = number_of(len(self.plan), "layer"), number_of(len(job.blocks), "block")
        job.observer.say(f"{verb} {layers} in {blocks}: {self.coverage}")
        channels = self._ordered(journal)
        plan, search = self.allocated(journal)
        done = job.has_done(self.touched, journal)
        orders = channels.orders if channels else self.orders
        recording = None if done else job.recording()  # which nothing would read any more
        learner = None if done else replace(self, plan=plan).learner(recording, journal)
        reconstructor = None if done else self.reconstructor(recording, journal)
        reports = prune_blocks(
            job.blocks,
            recording,
            self.pruner,
            plan,
            device=job.device,
            observer=job.observer,
            true_sequential=job.recipe.true_sequential,
            channels=channels,
            learner=learner,
            reconstructor=reconstructor,
            orders=orders,
            journal=journal,
            dense_inputs=job.recipe.statistics == "dense",
            team=job.team,
        )
        report = job.report(
            begun,
            journal,
            pruner=spelled(self.pruner),
            allocation=repr(self.allocation),
            pattern=self.pattern,
            requested=self.share,
            sparsity=realised_sparsity(reports),
            coverage=self.coverage,
            layers=reports,
            experts=ExpertTokens.of(reports),
            learning=learner.curves if learner is not None else _curves(journal),
            search=search,
            reconstruction=None if self.reconstruction is None else repr(self.reconstruction),
            reconstructed=_reconstructed(journal)
            if reconstructor is None
            else reconstructor.curves,
            grid=job.recipe.grid(),
            packed=job.recipe.pack,
        )
        return report, orders

    @property
    def pattern(self) -> str | None:
        """Return the pattern that was asked for; of a pruned model, those that its layers have."""
        if not isinstance(self.pruner, ActivationAware) or not self.pruner.claims:
            return self.job.recipe.pattern
        layers = [layer for block in self.planned for layer in block.planned(self.plan)]
        return ", ".join(dict.fromkeys(str(self.pruner.pattern(layer)) for layer in layers))

    @property
    def share(self) -> float:
        """Return the share that was to be removed; of a pruned model, before it was quantised."""
        if not isinstance(self.pruner, ActivationAware):
            return cast(float, self.job.recipe.sparsity)
        layers = [layer for block in self.planned for layer in block.planned(self.plan)]
        return float(total(layers, self.plan)[1])

    @property
    def planned(self) -> list[Block]:
        """The blocks with a layer that is pruned."""
        return [block for block in self.job.blocks if block.planned(self.plan)]

    @property
    def touched(self) -> list[int]:
        """All blocks up to the last that is pruned: those that a journal has at the end."""
        return list(range(max((block.index for block in self.planned), default=-1) + 1))

    def channels(self) -> Channels | None:
        """Ready to be put in order, if the method wants that."""
        if self.pruner.ordering is None:
            return None
        job, fold = self.job, self.pruner.ordering.realisation == "fold"
        sample = first_of(job.ids_ST, job.model)
        return Channels.of(job.weights, job.blocks, job.traced, sample, fold)

    def _ordered(self, journal: Journal | None) -> Channels | None:
        """Put the residual stream into its order, if it is to have one."""
        channels, ordering, job = self.channels(), self.pruner.ordering, self.job
        if channels is not None and ordering is not None and channels.residual is not None:
            order_I = journal.residual if journal is not None else None
            if not job.team.told(order_I is not None):
                recording = job.recording()
                order_I = residual_order(job.blocks, recording, ordering, self.plan, **self._where)
                if journal is not None:
                    journal.order_residual(order_I)
            told = job.team.told(None if order_I is None else order_I.tolist())
            channels.fold_residual(torch.tensor(told))
        return channels

    @property
    def _where(self) -> dict[str, Any]:
        return {"device": self.job.device, "observer": self.job.observer, "team": self.job.team}

    def learner(
        self, recording: Recording | None, journal: Journal | None = None
    ) -> Learner | None:
        """Return the allocation's learner, if it has one; the loop will advance this recording."""
        allocation = learner_of(self.allocation)
        if allocation is None:
            return None
        assert recording is not None  # an allocation that learns is given text
        dense = allocation.reference == "dense"
        reference = recording.copy() if dense else None
        return Learner(
            allocation, self.job.blocks, recording, reference, self.plan, self.pruner,
            self.job.device, self.job.observer, journal, self.job.team,
        )  # fmt: skip

    def reconstructor(
        self, recording: Recording | None, journal: Journal | None = None
    ) -> Reconstructor | None:
        """Return the reconstructor, if blocks are learned; the loop will advance this recording."""
        how, job = self.reconstruction, self.job
        if how is None:
            return None
        assert recording is not None  # a run that learns is given text
        return Reconstructor(
            how, recording, recording.copy() if how.reference == "dense" else None,
            len(job.blocks), job.device, job.observer, journal, job.team,
        )  # fmt: skip

    def alike(self, layers: Sequence[Layer]) -> Plan:
        """Plan these layers without any text, for a rehearsal."""
        if isinstance(self.allocation, Uniform):
            return {layer.name: self.plan[layer.name] for layer in layers}
        return self._settled(layers, [torch.zeros(1)] * len(layers))

    def _settled(self, layers: Sequence[Layer], shares: Sequence[Tensor]) -> Plan:
        patterns = [self.pruner.pattern(layer) for layer in layers]
        return settle(layers, shares, patterns, total(layers, self.plan)[0])[0]

    def allocated(self, journal: Journal | None) -> tuple[Plan, dict[str, Any] | None]:
        """Return the shares of layers or blocks, and notes on a search for them.

        They take looks at the dense model, unless an earlier run has taken them.
        """
        split, notes = split_of(self.allocation), None
        if split is None or len(self.planned) < 2 or not 0 < self.share < 1:
            return self.plan, None
        if isinstance(split, OWL):
            plan = self._by_outliers(split, journal)
        else:
            plan, notes = self._by_search(split, journal)
        if learner_of(self.allocation) is not None:
            plan = {x: share for block in self.planned for x, share in _whole(block, plan).items()}
        return plan, notes

    def _by_outliers(self, owl: OWL, journal: Journal | None) -> Plan:
        job = self.job
        told = job.team.told(journal.outliers if journal is not None else None)
        found = None if told is None else {int(block): share for block, share in told.items()}
        if found is None:
            found = outliers(job.blocks, job.recording(), owl, self.plan, **self._where)
            if journal is not None:
                journal.note_outliers(found)
        shares = owl.shares(found)
        layers = [layer for block in job.blocks for layer in block.planned(self.plan)]
        return self._settled(layers, [torch.tensor([shares[layer.block]]) for layer in layers])

    def _by_search(
        self, search: Slope | Evolve, journal: Journal | None
    ) -> tuple[Plan, dict[str, Any]]:
        groups = [block.planned(self.plan) for block in self.planned]
        if search.per == "layer":
            groups = [[layer] for layers in groups for layer in layers]
        judge = HeldOut(self.job, search, groups, self._tried, self._settled, journal)
        return searched(judge, self.plan)

    def _tried(self, layer: Layer) -> Pattern:
        """Return the pattern of candidates: the method's, or rows if it has no score to compare."""
        inner = self.pruner.pruner if isinstance(self.pruner, OnGrid) else self.pruner
        scored = isinstance(inner, EachLayer) and isinstance(inner.pruner, Compose)
        pattern = self.pruner.pattern(layer)
        return pattern if scored or isinstance(pattern, OneOf) else Unstructured("row")


def _whole(block: Block, plan: Plan) -> Plan:
    """Return one share for all planned layers of a block, which removes as many weights."""
    layers = block.planned(plan)
    sizes = [layer.weight_OI.numel() for layer in layers]
    gone = [round(requested(plan[x.name]) * n) for x, n in zip(layers, sizes, strict=True)]
    return dict.fromkeys([layer.name for layer in layers], Fraction(sum(gone), sum(sizes)))


def _curves(journal: Journal | None) -> list[dict[str, Any]]:
    """Return what earlier runs learned, unit by unit."""
    learned = journal.learned if journal is not None else {}
    return [learned[index]["curve"] for index in sorted(learned)]


def _reconstructed(journal: Journal | None) -> list[dict[str, Any]]:
    """Return the curves of earlier runs, block by block."""
    blocks = journal.blocks if journal is not None else {}
    return [curve for index in sorted(blocks) for curve in blocks[index].get(RECONSTRUCTED, [])]


def _check_reconstruction(how: Reconstruction, job: Job, plan: Plan) -> None:
    """Raise InputError for too few samples, UnsupportedModelError for blocks without halves."""
    how.judges(0 if job.ids_ST is None else len(job.ids_ST))
    for unit in units_of(job.blocks, how.blocks):
        parts(unit, plan, how)


def _check_gated(method: str, blocks: Sequence[Block]) -> None:
    """Raise UnsupportedModelError for a method about gated MLPs on a model without one."""
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
