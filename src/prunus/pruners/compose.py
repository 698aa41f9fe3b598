"""The composition that every score-mask-update method shares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..stats import Statistics
from ..types import Needs, Pattern, Permutation, Pruned, Refinement, Score, Update
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

    def __call__(self, weight_OI: Tensor, stats: Statistics, sparsity: float) -> Pruned:
        score_OI = self.score(weight_OI, stats)
        order_I = None
        if self.permutation is None:
            mask_OI = self.pattern.mask(score_OI, sparsity)
        else:
            order_I = self.permutation(score_OI, self.pattern, sparsity)
            mask_OI = self.pattern.mask(score_OI[:, order_I], sparsity)[:, order_I.argsort()]
        if self.refinement is not None:
            mask_OI = self.refinement(weight_OI, mask_OI, stats, self.pattern)
        return Pruned(self.update(weight_OI, mask_OI, stats), mask_OI, order_I)
