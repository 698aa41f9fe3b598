"""Exchanges while the kept weights have their dense values."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gram import Damped
from .bundles import exchange
from .cells import Cells

CANDIDATES = 8  # of each cell, kept and pruned: 64 pairs


def exchange_dense(
    weight_OI: Tensor, mask_OI: Tensor, system: Damped, cells: Cells, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange in bundles, then one by one in every unit, until no exchange lowers the loss.

    Returns:
        The new mask; the loss of every row before and after.
    """
    values = _DenseValues(weight_OI, mask_OI, system)
    before_O = values.loss_O.clone()
    kept_OI = exchange(mask_OI, values, cells, rounds)
    one_by_one(weight_OI, kept_OI, system, cells)
    return kept_OI, before_O, _DenseValues(weight_OI, kept_OI, system).loss_O


class _DenseValues:
    """The dense values of the kept weights.

    With ``δ`` minus the pruned weights and ``g = Hδ``, removing k costs ``½ w_k² H_kk − w_k g_k``
    and returning p gains ``−½ w_p² H_pp − w_p g_p``.
    """

    def __init__(self, weight_OI: Tensor, mask_OI: Tensor, system: Damped) -> None:
        self.weight_OI, self.matrix_II = weight_OI, system.matrix_II
        moved_OI = weight_OI * ~mask_OI  # −δ
        self.pull_OI = moved_OI @ self.matrix_II  # −g
        self.loss_O: Tensor = 0.5 * torch.linalg.vecdot(moved_OI, self.pull_OI)

    def prices(self, rows_R: Tensor, kept_RI: Tensor) -> tuple[Tensor, Tensor]:
        weight_RI = self.weight_OI[rows_R]
        first_RI = weight_RI * self.pull_OI[rows_R]
        second_RI = 0.5 * weight_RI.square() * self.matrix_II.diagonal()
        return first_RI - second_RI, first_RI + second_RI

    def attempt(self, rows_R: Tensor, tried_RI: Tensor) -> Tensor:
        moved_RI = self.weight_OI[rows_R] * ~tried_RI
        self._pull_RI = moved_RI @ self.matrix_II
        loss_R: Tensor = 0.5 * torch.linalg.vecdot(moved_RI, self._pull_RI)
        self._loss_R = loss_R
        return loss_R

    def accept(self, rows_R: Tensor, better_R: Tensor) -> None:
        self.pull_OI[rows_R[better_R]] = self._pull_RI[better_R]
        self.loss_O[rows_R[better_R]] = self._loss_R[better_R]


def one_by_one(weight_OI: Tensor, kept_OI: Tensor, system: Damped, cells: Cells) -> None:
    """Make the best exchange of every unit, in place, until none lowers the loss.

    Removing k and returning p changes it by the cost of k less the gain of p less ``w_k w_p H_kp``,
    the last term only where both are of one row. Of each cell the pairs among its 8 cheapest kept
    and its 8 most useful pruned weights are compared: all, in small cells.
    """
    values = _DenseValues(weight_OI, kept_OI, system)
    pull_OI, matrix_II = values.pull_OI, system.matrix_II
    least_U = 1e-5 * cells.sum(values.loss_O)  # less is not worth a step
    active_U = torch.arange(len(least_U), device=weight_OI.device)
    for _ in range(weight_OI[: cells.rows].numel()):
        rows_R = cells.rows_of(active_U)
        gain_RI, cost_RI = values.prices(rows_R, kept_OI[rows_R])
        change_U, gone, back = _best(
            weight_OI[rows_R], kept_OI[rows_R], gain_RI, cost_RI, matrix_II, cells
        )
        helps_U = change_U < -least_U[active_U]
        active_U = active_U[helps_U]
        if not len(active_U):
            break
        for unit_cell_member, sign in ((gone, 1), (back, -1)):
            row_U, column_U = cells.place(
                active_U, *(index_U[helps_U] for index_U in unit_cell_member)
            )
            kept_OI[row_U, column_U] = sign < 0
            value_U = sign * weight_OI[row_U, column_U]
            pull_OI[row_U] += value_U[:, None] * matrix_II[column_U]


Place = tuple[Tensor, Tensor]  # cell and member, one of each unit


def _best(
    weight_RI: Tensor,
    kept_RI: Tensor,
    gain_RI: Tensor,
    cost_RI: Tensor,
    matrix_II: Tensor,
    cells: Cells,
) -> tuple[Tensor, Place, Place]:
    """Find per unit the change of the loss, and the weights to remove and to restore."""
    remove_RI = cost_RI.masked_fill(~kept_RI, float("inf"))
    restore_RI = (-gain_RI).masked_fill(kept_RI, float("inf"))
    kept_UC = cells.split(kept_RI).sum(2)
    most_kept, most_pruned = int(kept_UC.max()), int((cells.length - kept_UC).max())
    goers, comers = (max(min(CANDIDATES, most), 1) for most in (most_kept, most_pruned))
    remove_UCK, gone_UCK = cells.split(remove_RI).topk(goers, largest=False)
    restore_UCK, back_UCK = cells.split(restore_RI).topk(comers, largest=False)
    change_UCKK = remove_UCK[..., :, None] + restore_UCK[..., None, :]
    if not cells.along_outputs:
        weight_UCL = cells.split(weight_RI)
        first_C1 = torch.arange(weight_UCL.shape[1], device=weight_RI.device)[:, None]
        column_UCK, other_UCK = (
            first_C1 * cells.length + index_UCK for index_UCK in (gone_UCK, back_UCK)
        )
        product_UCKK = (
            weight_UCL.gather(2, gone_UCK)[..., :, None]
            * weight_UCL.gather(2, back_UCK)[..., None, :]
        )
        change_UCKK -= product_UCKK * matrix_II[column_UCK[..., :, None], other_UCK[..., None, :]]
    change_U, best_U = change_UCKK.flatten(1).min(1)
    cell_U, pair_U = best_U // (goers * comers), best_U % (goers * comers)
    unit_U = torch.arange(len(best_U), device=best_U.device)
    gone_U = gone_UCK[unit_U, cell_U, pair_U // comers]
    back_U = back_UCK[unit_U, cell_U, pair_U % comers]
    return change_U, (cell_U, gone_U), (cell_U, back_U)
