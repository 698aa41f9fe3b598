"""Trials: shares of groups of layers that are judged before one of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..contracts import Pattern
from ..patterns import OneOf, Unstructured

Trial = tuple[float, ...]
"""What is added to the share of each group, up to the constant that the budget settles."""
SCALE = 32767  # shares as integers of 16 bits


class Judge(Protocol):
    """Mean divergence of pruned models from the dense one, on text that no score has seen."""

    @property
    def pieces(self) -> int:
        """The number of pieces of that text."""
        ...

    def __call__(self, trials: Sequence[Trial], pieces: Sequence[int]) -> list[float]:
        """Judge every trial on these pieces; lower is better."""
        ...


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        trial: the best of all.
        uniform: what the judge says of equal shares, on the whole text.
        over: what ``steps`` are: ``"slope"`` or ``"generation"``.
        steps: where the search was.
        losses: what the judge said there, on the whole text.
    """

    trial: Trial
    uniform: float
    over: str
    steps: list[float]
    losses: list[float]

    @property
    def loss(self) -> float:
        """What the judge says of the best."""
        return min(self.losses)


def depths(score_OI: Tensor, pattern: Pattern) -> Tensor:
    """Return the smallest share at which each weight goes, times ``SCALE``, as int16 (O, I).

    A mask at any share is one comparison: what has a depth of at most ``threshold(share)`` goes,
    ``floor(share · n)`` of n compared weights. From a choice of N:M, a weight goes at the least
    sparse of the patterns without it. A pattern from outside counts as one of rows.
    """
    if isinstance(pattern, OneOf):
        depth_OI = torch.full_like(score_OI, SCALE, dtype=torch.int16)
        for option in sorted(pattern.options, key=lambda option: -option.sparsity):
            keep_OI = option.mask(score_OI, option.sparsity)
            depth_OI[~keep_OI] = threshold(option.sparsity)
        return depth_OI
    if not isinstance(pattern, Unstructured):
        pattern = Unstructured("row")
    score_GN = pattern.groups(score_OI)
    order_GN = score_GN.argsort(dim=1, stable=True)
    place_N = torch.arange(1, score_GN.shape[1] + 1, device=score_OI.device)
    level_N = (place_N.double() * (SCALE / len(place_N))).round().to(torch.int16)
    depth_GN = torch.empty_like(score_GN, dtype=torch.int16)
    depth_GN.scatter_(1, order_GN, level_N.expand(order_GN.shape))
    return depth_GN.T if pattern.group == "column" else depth_GN.view(score_OI.shape)


def threshold(share: float) -> int:
    """Return the largest depth that goes at this share."""
    return round(share * SCALE)
