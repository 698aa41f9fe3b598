"""The score that an order of the input channels keeps, and the two values that bound it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...base.errors import PatternError
from ..contracts import Pattern
from ..patterns import NM


@dataclass(frozen=True)
class Retained:
    """Sums of the score over the kept weights, in float64.

    Attributes:
        score: under N:M in the order found.
        stored: under N:M in the stored order.
        row_optimum: of the same number of weights in every row, free of N:M: no order keeps more.
    """

    score: float
    stored: float
    row_optimum: float

    @classmethod
    def of(cls, score_OI: Tensor, pattern: NM, order_I: Tensor) -> Retained:
        """Measure an order."""
        kept_per_row = score_OI.shape[1] // pattern.of * pattern.keep
        best = score_OI.float().topk(kept_per_row, 1).values.sum(dtype=torch.float64)
        stored_I = torch.arange(len(order_I), device=order_I.device)
        return cls(
            retained(score_OI, pattern, order_I), retained(score_OI, pattern, stored_I), float(best)
        )

    @property
    def gap_closed(self) -> float:
        """Share of the way from the stored order to the row-wise optimum, 0 to 1."""
        gap = self.row_optimum - self.stored
        return (self.score - self.stored) / gap if gap > 0 else 1.0


def retained(score_OI: Tensor, pattern: NM, order_I: Tensor) -> float:
    """Sum the ``keep`` highest scores of every ``of`` consecutive inputs in this order."""
    groups_OKM = score_OI.float()[:, order_I].view(len(score_OI), -1, pattern.of)
    return float(groups_OKM.topk(pattern.keep, 2).values.sum(dtype=torch.float64))


def along_inputs(pattern: Pattern, score_OI: Tensor) -> NM:
    """Return the pattern if an order of the inputs matters to it and the layer fits.

    Raises:
        PatternError: it is not N:M along inputs.
    """
    if not isinstance(pattern, NM) or pattern.along != "input":
        raise PatternError(
            f"An order of the input channels changes nothing under {pattern}: it is for N:M along "
            "inputs, such as 2:4."
        )
    pattern.check((score_OI.shape[0], score_OI.shape[1]), pattern.sparsity)
    return pattern
