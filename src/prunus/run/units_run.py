"""A run that removes heads and neurons, from the look at the model to the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from ..base.arguments import block_range
from ..base.errors import InputError
from ..maths.orders.orders import Orders
from ..maths.pruners.units import DEFAULT, UnitPruner
from ..maths.scores.units import Curvature
from ..maths.shares.units import (
    Quota,
    adaptive,
    check,
    costs,
    removable,
    removed,
    share_of,
    uniform,
)
from ..model.blocks import Block, Layer
from ..model.cost import OneToken
from ..model.gradients import loss_gradients
from ..model.replay import Recording, Trace
from ..model.samples import Processed, Samples
from ..model.stream import check_adds
from ..model.surgery import rehearse
from ..model.units import Depth2, find_modules
from ..model.watch import eager
from ..recipe import Recipe
from ..report.report import PruningReport
from ..report.units import UnitsReport
from ..storage.journal import Journal
from .coverage import coverage_of
from .job import Further, Job
from .units_gather import Context
from .units_loop import Seen, look, prune_units
from .units_report import Before, smaller
from .units_step import Streams


@dataclass
class UnitsRun:
    """A model that has been looked at, and what is to be removed from it.

    Attributes:
        job: the model, its text, and where to compute.
        pruner: what the recipe spells.
        token: a forward of one token.
        modules: what is to lose units.
        behind: what is recovered behind these without losing any.
        rehearsal: whether this is a trial on a few samples, by which a threshold may take nothing.
    """

    job: Job
    pruner: UnitPruner
    token: OneToken
    modules: list[Depth2]
    behind: list[Depth2] = field(default_factory=list)
    rehearsal: bool = False

    @classmethod
    def of(
        cls, look: Callable[[Further | None], Job], recipe: Recipe, pruner: UnitPruner
    ) -> UnitsRun:
        """Look at the model; rehearse the surgery on every block. Nothing is changed.

        Raises:
            UnsupportedModelError: a block that cannot be made smaller, with the reason.
            InputError: a range outside of the model.
        """
        modules: list[Depth2] = []
        behind: list[Depth2] = []
        token = OneToken()

        def further(block: Block, traced: Trace) -> None:
            token.through(block, traced)
            chosen = _chosen(recipe, len(traced.calls))
            if block.index in chosen:
                modules.extend(_rehearsed(block, traced, pruner))
            elif pruner.recovery_behind and block.index >= chosen.stop:
                behind.extend(_found(block, traced, pruner))

        job = look(further)
        token.around(job.model, job.traced)
        run = cls(job, pruner, token, modules, behind)
        run._check()
        return run

    def check_team(self) -> None:
        """Raise InputError where several processes cannot do this together."""
        self.job.check_same()

    def _check(self) -> None:
        """Reject what can be rejected before any text is read."""
        if self.pruner.recovery_behind and not self.behind:
            raise InputError(
                "recovery_behind=true recovers the blocks behind the pruned ones, and there are "
                "none. Leave it out, or prune fewer blocks: --blocks A:B."
            )
        share, adaptive = self.share, self.pruner.allocation == "adaptive"
        if self.pruner.threshold is None:
            if not adaptive:
                check(self.modules, uniform(self.modules, share), share)
            return
        if self.pruner.query_heads:
            raise InputError(
                "heads.threshold takes heads one by one, and query_heads=true as many from each "
                "key/value group. Leave one of them out."
            )
        if adaptive:
            raise InputError(
                "heads.threshold says how many heads go, and so does --allocation adaptive. "
                "Leave one of them out."
            )
        all_heads = {module.block: module.units for module in self.modules}
        most = uniform(self.modules, share, all_heads, self.capped)
        if not any(most.values()):
            least = min(module.parameters for module in self.modules)
            raise InputError(
                f"Nothing would be removed: {share:g} of the parameters in these units is less in "
                f"every block than the smallest unit has ({least:,}). Beside heads.threshold a "
                "share is the most that may be removed: raise it, or leave it out."
            )

    @cached_property
    def share(self) -> float:
        """The share of the parameters in the modules' units that is to go."""
        asked, recipe = self.job.recipe.parameters, self.job.recipe
        if asked is not None:
            return share_of(self.modules, asked)
        return DEFAULT if recipe.sparsity is None else recipe.sparsity

    @property
    def capped(self) -> bool:
        """Whether the share was asked for; else a threshold alone says how many heads go."""
        recipe = self.job.recipe
        return recipe.sparsity is not None or recipe.parameters is not None

    @property
    def sure(self) -> float:
        """The least share that will go, whatever a threshold finds."""
        return 0.0 if self.pruner.threshold and self.pruner.target == "heads" else self.share

    def requested(self, units: UnitsReport) -> float:
        """Return the share that was to go; that which went, if a threshold alone decided."""
        return self.share if self.sure or self.capped else units.share

    def prune(self, journal: Journal | None = None) -> tuple[PruningReport, Orders]:
        """Prune; with a journal, go on from where an earlier run ended."""
        begun, job, pruner = time.perf_counter(), self.job, self.pruner
        layers = [layer for module in self.modules for layer in module.layers]
        coverage = coverage_of(job.model, job.blocks, {layer.name for layer in layers})
        before = Before.of(job, self.modules)
        done = job.has_done(self.touched, journal)
        context = self._context([] if done else layers)  # whose gradients nothing would read
        dense = None if done else self._look(context)
        quota = self._quota(dense, done)
        streams = Streams() if done else self._streams()
        seen = None if pruner.sequential else dense
        both = [*self.modules, *self.behind]
        reports, seen = prune_units(context, job.blocks, both, quota, streams, seen, journal)
        if not self.rehearsal:
            self._check_removed(quota, journal)
        units = smaller(job, self.modules, before, quota, reports, seen, self.token)
        if units.bound is not None:
            job.observer.say(units.bound)
        report = job.report(
            begun,
            journal,
            pruner=repr(pruner),
            pattern=None,
            requested=self.requested(units),
            sparsity=units.share,
            coverage=coverage,
            layers=reports,
            structured=units,
        )
        return report, Orders()

    def _check_removed(self, quota: Quota, journal: Journal | None) -> None:
        """Raise InputError where a threshold took nothing, as no look before could say."""
        with self.job.team.agreed():
            if not any(quota.counts.values()):
                if journal is not None:
                    journal.remove()
                raise InputError(self._why_nothing(sum(quota.found.values())))

    def _why_nothing(self, below: int) -> str:
        if below:
            return (
                f"{below} heads or groups of heads are below heads.threshold, but {self.share:g} "
                "of their block is less than one, so nothing was removed. Raise the share, or "
                "leave it out: then the threshold alone decides."
            )
        return (
            "No two heads are closer than heads.threshold, so nothing was removed. Give a "
            "larger one; `prunus plot --show heads` of a run without it shows how close "
            "they are."
        )

    @property
    def touched(self) -> list[int]:
        """The blocks that change: those that a journal has at the end."""
        return sorted({module.block for module in (*self.modules, *self.behind)})

    def _context(self, layers: Sequence[Layer]) -> Context:
        job, gradients, curvatures = self.job, None, None
        if layers and self.pruner.wants("gradients") and isinstance(job.ids_ST, Tensor):
            gradients, curvatures = self._gradients(layers, job.ids_ST)
        return Context(
            job.model, len(job.blocks), self.pruner, job.device, job.observer, job.recipe.seed,
            self.token, gradients, curvatures, job.team,
            min((module.block for module in self.behind), default=None),
        )  # fmt: skip

    def _gradients(
        self, layers: Sequence[Layer], ids_ST: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Curvature]]:
        """Compute the gradients of the loss over the samples of all processes."""
        job, curved = self.job, self.pruner.curved
        weights = sum(layer.weight_OI.numel() for layer in layers) * (2 if curved else 1)
        job.observer.say(
            f"gradients of the whole model in memory: {weights:,} numbers beside the weights"
        )
        job.model.to(job.device)  # type: ignore[arg-type]
        job.observer.block(0, 1, "the model", "gradients")
        own_ST = ids_ST[job.team.share(len(ids_ST))]
        with job.team.agreed():
            gradients, curvatures = loss_gradients(
                job.model, layers, own_ST, job.observer.sample, len(ids_ST), curved
            )
        for gradient_OI in gradients.values():
            job.team.sum_(gradient_OI)
        for found in curvatures.values():
            for sums in (found.squares_OI, found.rows_O, found.columns_I):
                job.team.sum_(sums)
        return gradients, curvatures

    def _recording(self) -> Recording | None:
        """Record the samples at the first block, with explicit masks if heads are compared."""
        return self.job.recording(
            within=eager(self.job.model) if self.pruner.wants("maps") else None
        )

    def _streams(self) -> Streams:
        """Record what scores are taken on along the way, and what recovery is solved on."""
        pruner, apart = self.pruner, self.job.recovery is not None
        recovers = pruner.recovery != "none"
        scores = self._recording() if pruner.sequential or (recovers and not apart) else None
        fit = self.job.recording_for_recovery() if apart else scores
        return Streams.of(scores, fit if recovers else None, pruner.reads_dense)

    def _look(self, context: Context) -> Seen | None:
        """At the dense model, where the method or the allocation wants that."""
        pruner = self.pruner
        if pruner.sequential and pruner.allocation == "uniform":
            return None
        scores = [pruner.score(unit) for unit in pruner.units]
        reads = any(s.first or s.second or s.wants == "maps" for s in scores)
        recording = self._recording() if reads or pruner.compensation else None
        return look(context, self.job.blocks, self.modules, recording)

    def _quota(self, dense: Seen | None, done: bool) -> Quota:
        """Decide how many units of each module to remove, and tell the user."""
        modules, pruner, share = self.modules, self.pruner, self.share
        if done:  # the journal has the counts
            return Quota(modules, share, {})
        if pruner.allocation == "adaptive":
            assert dense is not None
            counts = adaptive(modules, dense.scores, share, pruner.comparable)
            check(modules, counts, share)
        else:
            counts = uniform(modules, share)
        threshold = pruner.threshold
        if threshold is None:
            gone, total = removed(costs(modules), counts), removable(modules)
            self.job.observer.say(
                f"removing {gone:,} of the {total:,} parameters in {len(modules)} modules of "
                f"heads and neurons, {gone / total:.1%}"
            )
            return Quota(modules, share, counts)
        return Quota(modules, share, counts, threshold.count, self.capped)


def check_text(
    recipe: Recipe, pruner: UnitPruner, ids_ST: Samples | None, fit_ST: Samples | None
) -> None:
    """Raise InputError where a method cannot do with its text, or with that of recovery."""
    if pruner.recovery != "none" and (fit_ST is None or len(fit_ST) < 2):
        raise InputError(
            f"--recovery {pruner.recovery} holds a quarter of the calibration samples "
            "out, so it needs at least two. Give more --samples, or --recovery-samples."
        )
    if pruner.wants("gradients") and isinstance(ids_ST, Processed):
        raise InputError(
            f"{recipe.method} reads the loss of every token in windows of one length, and inputs "
            "(and conversations of --answers) are of many. Give text, or tokens_ST."
        )


def _chosen(recipe: Recipe, blocks: int) -> range:
    """Return the indices of the blocks that are to lose units."""
    if recipe.blocks is None:
        return range(blocks)
    return block_range("--blocks", recipe.blocks, blocks)


def _rehearsed(block: Block, traced: Trace, pruner: UnitPruner) -> list[Depth2]:
    """Find the modules of a block that can lose units, and try it on each."""
    call, hidden = traced.calls[block.index], traced.inputs[block.index]
    modules = _found(block, traced, pruner)
    for module in modules:
        rehearse(block, module, call, hidden)
    return modules


def _found(block: Block, traced: Trace, pruner: UnitPruner) -> list[Depth2]:
    """Find the modules of a block; recovery towards the stream must know how they add to it."""
    call, hidden = traced.calls[block.index], traced.inputs[block.index]
    modules = find_modules(block, call, hidden, pruner.units, pruner.query_heads)
    if pruner.to_stream:
        for module in modules:
            check_adds(block, module, call, hidden)
    return modules
