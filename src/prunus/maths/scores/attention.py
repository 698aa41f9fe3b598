"""The similarity of two heads' attention, and which of two similar heads may be removed.

Source: Li et al. 2024, arXiv:2407.19126, equation 1 and Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ...base.errors import CalibrationError
from ...base.team import Team

Kind = Literal["jensen-shannon", "authors"]


class HeadDivergence:
    """Distance between the attention of two heads, for all pairs; mean over tokens and samples.

    ``D[i, j] = mean_t √(½ KL(P_i‖M) + ½ KL(P_j‖M))``, ``M = (P_i + P_j) / 2``, with natural
    logarithms: 0 for equal heads, at most ``√ln 2 = 0.833``. (Divide by that for base 2.)

    ``kind="authors"``: what their code computes, ``√KL(M‖P_i)`` for i < j, mirrored, on rows
    clamped at 1e-9 and made to sum to 1 again. Their thresholds of 0.16 to 0.21 belong to it.

    Of each sample at most ``rows`` query positions are compared, evenly spread, in float64; no more
    than one sample's maps are in memory at a time.
    """

    def __init__(self, heads: int, kind: Kind = "jensen-shannon", rows: int = 128) -> None:
        self.sum_HH = torch.zeros(heads, heads, dtype=torch.float64)
        self.kind, self.rows, self.tokens = kind, rows, 0

    def update(self, maps_BHTT: Tensor) -> None:
        """Fold attention probabilities in, of shape (B, H, T, T)."""
        for maps_HTT in maps_BHTT:
            positions = maps_HTT.shape[1]
            count = min(positions, self.rows)
            # From the last one backwards: the first tokens attend to next to nothing.
            chosen = (positions - 1 - torch.arange(count) * positions // count).to(maps_HTT.device)
            maps_HTS = maps_HTT[:, chosen].double()
            self.sum_HH += distances(maps_HTS, self.kind).sum(-1).cpu()
            self.tokens += count

    def merge(self, team: Team) -> None:
        """Add up the sums of all processes."""
        team.sum_(self.sum_HH)
        self.tokens = int(team.total(self.tokens)[0])

    @property
    def matrix_HH(self) -> Tensor:
        """D, symmetric, 0 on the diagonal."""
        if not self.tokens:
            raise CalibrationError("No attention map was seen; give calibration text.")
        return self.sum_HH / self.tokens


def distances(maps_HTS: Tensor, kind: Kind) -> Tensor:
    """Compute the distance between every two heads at every query position, (H, H, T), float64."""
    heads, tokens, _ = maps_HTS.shape
    found = maps_HTS.new_zeros(heads, heads, tokens)
    if kind == "authors":
        maps_HTS = maps_HTS.clamp_min(1e-9)
        maps_HTS = maps_HTS / maps_HTS.sum(-1, keepdim=True)
    log_HTS = maps_HTS.clamp_min(torch.finfo(maps_HTS.dtype).tiny).log()
    entropy_HT = -(maps_HTS * log_HTS).sum(-1)
    for i in range(heads):
        for j in range(i + 1, heads):
            middle_TS = (maps_HTS[i] + maps_HTS[j]) / 2
            mixed_T = -torch.special.xlogy(middle_TS, middle_TS).sum(-1)
            if kind == "authors":
                gap_T = -mixed_T - (middle_TS * log_HTS[i]).sum(-1)
            else:
                gap_T = mixed_T - (entropy_HT[i] + entropy_HT[j]) / 2
            found[i, j] = found[j, i] = gap_T.clamp_min(0).sqrt()
    return found


def between_units(divergence_HH: Tensor, per_unit: int) -> Tensor:
    """Average divergences over groups of consecutive heads: (U, U).

    The mean over the heads of both groups of the distance to the nearest head of the other group:
    0 for groups with the same heads in any order, and D itself where a group is one head. (The
    paper has no groups.)
    """
    units = len(divergence_HH) // per_unit
    blocks = divergence_HH.view(units, per_unit, units, per_unit)
    nearest_UU = blocks.amin(3).mean(1)
    return (nearest_UU + nearest_UU.T) / 2


def ascending(divergence_UU: Tensor, worth_U: Tensor | None = None) -> Tensor:
    """Return the divergence at which each unit is removed, the most similar pairs first, (U,).

    Algorithm 1 in ascending order, as the authors' code runs it: of a pair of which neither is
    chosen yet, the first is removed; with ``worth_U`` (U,) the one that is worth less. Removing
    all units below τ is that algorithm at τ; removing the n lowest is the algorithm with a target
    number. The last unit has no partner left: infinity.
    """
    return _chosen(divergence_UU, _by_distance(divergence_UU), math.inf, worth_U)


def row_major(divergence_UU: Tensor, threshold: float, worth_U: Tensor | None = None) -> Tensor:
    """Run algorithm 1 as printed: pairs in the order of the matrix; infinity where a unit stays."""
    units = len(divergence_UU)
    pairs = ((i, j) for i in range(units) for j in range(units) if i < j)
    return _chosen(divergence_UU, pairs, threshold, worth_U)


def _chosen(
    divergence_UU: Tensor,
    pairs: Iterator[tuple[int, int]],
    threshold: float,
    worth_U: Tensor | None,
) -> Tensor:
    goes_U = torch.full((len(divergence_UU),), math.inf, dtype=torch.float64)
    for i, j in pairs:
        distance = float(divergence_UU[i, j])
        if distance < threshold and goes_U[i].isinf() and goes_U[j].isinf():
            second = worth_U is not None and bool(worth_U[j] < worth_U[i])
            goes_U[j if second else i] = distance
    return goes_U


def _by_distance(divergence_UU: Tensor) -> Iterator[tuple[int, int]]:
    units = len(divergence_UU)
    upper = torch.triu_indices(units, units, 1)
    order = divergence_UU[upper[0], upper[1]].argsort(stable=True)
    return ((int(upper[0, k]), int(upper[1, k])) for k in order)
