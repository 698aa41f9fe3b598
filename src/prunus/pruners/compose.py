"""The composition that every score-mask-update method shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InputError
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

    def __post_init__(self) -> None:
        if self.permutation is not None and self.refinement is not None:
            raise InputError("A permutation and a refinement cannot be combined yet; leave one.")

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
        notes: dict[str, Any] = {}
        if self.refinement is not None:
            mask_OI, refined = self.refinement(weight_OI, mask_OI, stats, self.pattern)
            notes.update(refined)
        if isinstance(self.update, ReportingUpdate):
            new_OI, updated = self.update.solve(weight_OI, mask_OI, stats)
            return Pruned(new_OI, mask_OI, order_I, {**notes, **updated})
        return Pruned(self.update(weight_OI, mask_OI, stats), mask_OI, order_I, notes)
