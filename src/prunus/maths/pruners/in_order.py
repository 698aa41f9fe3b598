"""A layer pruner in an order of the input channels that suits its pattern."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..contracts import LayerPruner, Needs, Pattern, Permutation, Pruned, Score, Share
from ..orders import Assignment, Retained
from ..patterns import NM
from ..stats import Statistics


@dataclass(frozen=True)
class InOrder:
    """order → the pruner, as if the channels were stored in it → the stored order again.

    So the weights keep their places, and the pattern holds for ``mask_OI[:, order_I]`` alone: the
    papers' way of counting ("free"), an upper bound of what an order can give. No hardware runs
    it, unless somebody permutes the inputs of this very layer.

    Attributes:
        pruner: whatever it chooses and updates, it sees permuted weights and statistics.
        score: what the order shall keep the most of.
        permutation: how the order is found.
    """

    pruner: LayerPruner
    score: Score
    permutation: Permutation = Assignment()

    @property
    def needs(self) -> Needs:
        """The statistics of the score and of the pruner, each once."""
        return tuple(dict.fromkeys((*self.score.needs, *self.pruner.needs)))

    @property
    def pattern(self) -> Pattern:
        """The pruner's pattern, in the order found."""
        return self.pruner.pattern

    def __call__(self, weight_OI: Tensor, stats: Statistics, sparsity: Share) -> Pruned:
        score_OI = self.score(weight_OI, stats)
        order_I = self.permutation(score_OI, self.pattern, sparsity)
        pruned = self.pruner(weight_OI[:, order_I], stats.reordered(order_I), sparsity)
        back_I = order_I.argsort()
        notes = dict(pruned.notes)
        if isinstance(self.pattern, NM):
            notes["score_gap_closed"] = Retained.of(score_OI, self.pattern, order_I).gap_closed
        return Pruned(pruned.weight_OI[:, back_I], pruned.mask_OI[:, back_I], order_I, notes)
