"""Magnitude: the size of the weight alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..contracts import Needs
from ..stats import Statistics


@dataclass(frozen=True)
class Magnitude:
    """S[o, i] = |W[o, i]|.

    Compared over the whole layer (``Unstructured("layer")``), as the papers' baselines do.

    Reference: Han et al. 2015, arXiv:1506.02626.
    """

    needs: ClassVar[Needs] = ()

    def __call__(self, weight_OI: Tensor, stats: Statistics) -> Tensor:
        return weight_OI.float().abs()
