"""Wanda: weight magnitude times the size of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...base.errors import at_least
from ..contracts import Needs
from ..stats import ColumnNorm, Statistics


@dataclass(frozen=True)
class Wanda:
    """S[o, i] = |W[o, i]| · rms_t(X[t, i]) ** power.

    The root mean square replaces the paper's L2 norm: one factor per layer, so every mask is the
    same. Compared within an output row, as the paper does: ``Unstructured("row")`` or ``NM``.

    Attributes:
        power: 1 is Wanda; DaSS's Table 12 tries others, as its α of the down projection.

    Reference: Sun et al. 2023, arXiv:2306.11695, eq. (1).
    """

    power: float = 1.0
    needs: ClassVar[Needs] = (ColumnNorm,)

    def __post_init__(self) -> None:
        at_least(0, power=self.power)

    def __call__(self, weight_OI: Tensor, stats: Statistics) -> Tensor:
        return weight_OI.float().abs() * stats[ColumnNorm].rms_I ** self.power
