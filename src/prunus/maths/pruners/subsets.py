"""Which weights of an N:M group go together at the least loss: MRP's mask M."""

from __future__ import annotations

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from ..gram import Damped
from ..patterns import NM

MANY = 1000  # subsets; 4:8 has 70, 8:16 has 12,870, 16:32 has 601,080,390
ROUNDS = 100  # of exchanges, at most
GAIN = 1e-9  # of a subset's cost: less is rounding
NUMBERS = 2**23  # in the systems of the groups that are held at once


def best_subsets(system: Damped, pattern: NM, lo: int, hi: int, weight_OB: Tensor) -> Tensor:
    """Mask M of columns lo to hi − 1: per row and group, remove the cheapest subset P.

    Its cost is ``½ w_P (H⁻¹_PP)⁻¹ w_Pᵀ``: equation (12) within each group, groups apart. Weights of
    dead inputs cost nothing. Every subset is tried, up to 1,000 of them; among more, as 8:16 has,
    the subset is searched: ``searched``.
    """
    weight_OB = weight_OB.masked_fill(system.dead_I[lo:hi], 0)
    count = pattern.of - pattern.keep
    if not count:
        return torch.ones_like(weight_OB, dtype=torch.bool)
    column_GM = torch.arange(lo, hi, device=weight_OB.device).view(-1, pattern.of)
    inverse_GMM = system.inverse_II[column_GM[:, :, None], column_GM[:, None, :]].double()
    weight_OGM = weight_OB.reshape(len(weight_OB), -1, pattern.of)
    if comb(pattern.of, count) <= MANY:
        return ~_cheapest(inverse_GMM, weight_OGM, count).view(weight_OB.shape)
    rows = max(1, NUMBERS // (len(column_GM) * (pattern.of + 1) ** 2))
    parts = [searched(inverse_GMM, part_OGM, count) for part_OGM in weight_OGM.split(rows)]
    return ~torch.cat(parts).view(weight_OB.shape)


def _cheapest(inverse_GMM: Tensor, weight_OGM: Tensor, count: int) -> Tensor:
    """Mark the cheapest of all subsets. Inverses in float64, once per group and subset."""
    size = weight_OGM.shape[2]
    least_OG = torch.full(weight_OGM.shape[:2], float("inf"), device=weight_OGM.device)
    best_OG = torch.zeros_like(least_OG, dtype=torch.int64)
    subsets = torch.tensor([*combinations(range(size), count)], device=weight_OGM.device)
    for index, chosen in enumerate(subsets):
        inverse_GPP = torch.linalg.inv(inverse_GMM[:, chosen[:, None], chosen]).float()
        part_OGP = weight_OGM[:, :, chosen]
        loss_OG = torch.einsum("ogp,gpq,ogq->og", part_OGP, inverse_GPP, part_OGP) / 2
        better_OG = loss_OG < least_OG
        least_OG = torch.where(better_OG, loss_OG, least_OG)
        best_OG[better_OG] = index
    goes_SM = torch.zeros(len(subsets), size, dtype=torch.bool, device=weight_OGM.device)
    return goes_SM.scatter_(1, subsets, True)[best_OG]


def searched(inverse_GMM: Tensor, weight_OGM: Tensor, count: int) -> Tensor:
    """Mark a subset that costs more after any exchange of one weight, (O, G, M).

    Weights go one by one, the cheapest first, each time with what the others then are: OBS within
    the group, whose costs add up to that of the subset. Then the best exchange is made while one
    gains. The system ``[H⁻¹ wᵀ; w 0]`` of a group is swept at every weight that goes: then
    ``S[q, w]² / |S[q, q]|`` is twice what q costs if it went, or saves if it came back.
    """
    outputs, groups, size = weight_OGM.shape
    system_BNN = weight_OGM.new_zeros(outputs * groups, size + 1, size + 1, dtype=torch.float64)
    system_BNN[:, :size, :size] = inverse_GMM.repeat(outputs, 1, 1)
    system_BNN[:, :size, size] = weight_OGM.double().reshape(-1, size)
    system_BNN[:, size, :size] = system_BNN[:, :size, size]
    gone_BM = torch.zeros(len(system_BNN), size, dtype=torch.bool, device=weight_OGM.device)
    for _ in range(count):
        cost_BM = _cost(system_BNN[:, :size, size], system_BNN.diagonal(dim1=1, dim2=2)[:, :size])
        _sweep(system_BNN, gone_BM, cost_BM.masked_fill(gone_BM, torch.inf).argmin(1))
    least_B = GAIN * -system_BNN[:, size, size]
    open_A = torch.arange(len(system_BNN), device=weight_OGM.device)
    for _ in range(ROUNDS):
        change_AMM = _changes(system_BNN[open_A], gone_BM[open_A])
        best_A, pair_A = change_AMM.flatten(1).min(1)
        gains_A = best_A < -least_B[open_A]
        open_A, pair_A = open_A[gains_A], pair_A[gains_A]
        if not len(open_A):
            break
        system_ANN, gone_AM = system_BNN[open_A], gone_BM[open_A]
        _sweep(system_ANN, gone_AM, pair_A % size)
        _sweep(system_ANN, gone_AM, pair_A // size)
        system_BNN[open_A], gone_BM[open_A] = system_ANN, gone_AM
    return gone_BM.view(weight_OGM.shape)


def _cost(weight_BM: Tensor, diagonal_BM: Tensor) -> Tensor:
    """Return twice what each weight costs if it goes, or saves if it comes back."""
    return weight_BM.square() / diagonal_BM.abs()


def _changes(system_BNN: Tensor, gone_BM: Tensor) -> Tensor:
    """Return by how much twice the cost changes if q goes in place of p, (B, q, p)."""
    square_BMM, weight_BM = system_BNN[:, :-1, :-1], system_BNN[:, :-1, -1]
    diagonal_BM = square_BMM.diagonal(dim1=1, dim2=2)
    step_BMM = square_BMM / diagonal_BM[:, None]
    without_BMM = weight_BM[:, :, None] - step_BMM * weight_BM[:, None]
    own_BMM = diagonal_BM[:, :, None] - step_BMM * square_BMM
    change_BMM = _cost(without_BMM, own_BMM) - _cost(weight_BM, diagonal_BM)[:, None]
    return change_BMM.masked_fill(gone_BM[:, :, None] | ~gone_BM[:, None], torch.inf)


def _sweep(system_BNN: Tensor, gone_BM: Tensor, chosen_B: Tensor) -> None:
    """Sweep each system at one weight, in place: it goes, or comes back if it is gone."""
    at_B = torch.arange(len(system_BNN), device=system_BNN.device)
    pivot_B = system_BNN[at_B, chosen_B, chosen_B]
    column_BN = system_BNN[at_B, chosen_B]
    gone_B = gone_BM[at_B, chosen_B]
    swept_BN = torch.where(gone_B, -1, 1)[:, None] * column_BN / pivot_B[:, None]
    system_BNN.baddbmm_((column_BN / pivot_B[:, None])[:, :, None], column_BN[:, None], alpha=-1)
    system_BNN[at_B, chosen_B] = swept_BN
    system_BNN[at_B, :, chosen_B] = swept_BN
    system_BNN[at_B, chosen_B, chosen_B] = -1 / pivot_B
    gone_BM[at_B, chosen_B] = ~gone_B
