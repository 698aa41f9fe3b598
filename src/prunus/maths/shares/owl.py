"""OWL: blocks with more outliers among their scores keep more weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contracts import Needs, Score
from ..scores import Wanda


@dataclass(frozen=True)
class OWL:
    """A block density that grows linearly with its share of outliers, over ``2 · reach``.

    An outlier is a score above ``multiple`` times the mean score of the block's layers.

    Attributes:
        score: the paper's is Wanda.
        multiple: the paper's M.
        reach: the paper's λ: no block is further than that from the mean where only two kinds of
            blocks exist.

    Reference: Yin et al. 2024 (ICML), arXiv:2310.05175, section 3.2. (Their text says layer for
    what is a block in their code, and here.)
    """

    score: Score = Wanda()
    multiple: float = 5.0
    reach: float = 0.08

    @property
    def needs(self) -> Needs:
        """The statistics of the score."""
        return self.score.needs

    def outliers(self, scores: Sequence[Tensor]) -> float:
        """Return the share of all scores of a block that are outliers."""
        total = sum(score_OI.numel() for score_OI in scores)
        mean = sum(float(score_OI.sum(dtype=torch.float64)) for score_OI in scores) / total
        return sum(int((score_OI > self.multiple * mean).sum()) for score_OI in scores) / total

    def shares(self, outliers: Mapping[int, float]) -> dict[int, float]:
        """Return the removed share of each block, up to the constant that the budget settles."""
        least, most = min(outliers.values()), max(outliers.values())
        scale = 2 * self.reach / (most - least) if most > least else 0.0
        return {block: -(share - least) * scale for block, share in outliers.items()}
