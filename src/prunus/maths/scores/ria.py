"""RIA: relative importance times activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ...base.errors import at_least
from ..contracts import Needs
from ..stats import ColumnNorm, Statistics
from .relative_importance import RelativeImportance


@dataclass(frozen=True)
class RIA:
    """S[o, i] = (|W| / Σₒ|W| + |W| / Σᵢ|W|)[o, i] · rms_t(X[t, i]) ** power.

    The paper does not say which weights compete; the authors' code compares over the whole layer,
    and so does the default here. ``--pattern row`` is the other reading.

    Attributes:
        power: strength of the activations, the paper's ``a``; 0 is RelativeImportance.
        terms: as in RelativeImportance.

    Reference: Zhang et al. 2024 (ICLR), "Plug-and-Play", eq. (3).
    """

    power: float = 0.5
    terms: Literal["both", "in", "out"] = "both"
    needs: ClassVar[Needs] = (ColumnNorm,)

    def __post_init__(self) -> None:
        at_least(0, power=self.power)
        RelativeImportance(self.terms)  # refuses what it refuses

    def __call__(self, weight_OI: Tensor, stats: Statistics) -> Tensor:
        relative_OI = RelativeImportance(self.terms)(weight_OI, stats)
        return relative_OI * stats[ColumnNorm].rms_I ** self.power
