"""The composition that every score-mask-update method shares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..stats import Statistics
from ..types import Needs, Pattern, Permutation, Pruned, Refinement, ReportingUpdate, Score, Update
from ..updates.keep import Keep


@dataclass(frozen=True)
class Compose:
    """score → (order) → mask → (refine) → update, on one layer.

    With a permutation the mask has the pattern in the permuted order and ``Pruned.order_I`` says
    so; weights and mask are returned in the stored order.
    """

    score: Score
    pattern: Pattern
    permutation: Permutation | None = None
    refinement: Refinement | None = None
    update: Update = Keep()

    @property
    def needs(self) -> Needs:
        """Those of all parts, each once."""
        refinement = self.refinement.needs if self.refinement else ()
        return tuple(dict.fromkeys((*self.score.needs, *refinement, *self.update.needs)))

    def __call__(
        self,
        weight_OI: Tensor,
        stats: Statistics,
        sparsity: float,
        *,
        score_stats: Statistics | None = None,
    ) -> Pruned:
        """Prune; ``score_stats`` are for a score that reads another tensor than the layer does."""
        score_OI = self.score(weight_OI, stats if score_stats is None else score_stats)
        order_I = None
        if self.permutation is None:
            mask_OI = self.pattern.mask(score_OI, sparsity)
        else:
            order_I = self.permutation(score_OI, self.pattern, sparsity)
            mask_OI = self.pattern.mask(score_OI[:, order_I], sparsity)[:, order_I.argsort()]
        if self.refinement is not None:
            mask_OI = self.refinement(weight_OI, mask_OI, stats, self.pattern)
        if isinstance(self.update, ReportingUpdate):
            new_OI, notes = self.update.solve(weight_OI, mask_OI, stats)
            return Pruned(new_OI, mask_OI, order_I, notes)
        return Pruned(self.update(weight_OI, mask_OI, stats), mask_OI, order_I)
