"""Exchanges while the kept weights have their optimal values."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gram import Damped
from ..updates.deflation import Deflation
from ..updates.least_squares import descend, excess_of
from .bundles import exchange
from .cells import Cells

FIRST_TOLERANCE, FIRST_ITERATIONS = 1e-3, 50
STEPS = 2  # of conjugate gradients, before a bundle is judged


def exchange_compensated(
    weight_OI: Tensor, mask_OI: Tensor, system: Damped, cells: Cells, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange in bundles, each judged by the loss after two steps of conjugate gradients.

    Returns:
        The new mask; per row, a lower bound of the least loss on the old mask, and a loss that the
        new one reaches.
    """
    values, kept_OI = _OptimalValues(weight_OI, mask_OI, system), mask_OI
    bound_O = values.bound_O
    frozen_I, free_I = 1 / system.matrix_II.diagonal(), system.inverse_diagonal_I
    for values.e_I, most in (((frozen_I * free_I).sqrt(), rounds), (frozen_I, rounds // 2)):
        kept_OI = exchange(kept_OI, values, cells, most)
    return kept_OI, bound_O, torch.where((kept_OI == mask_OI).all(1), bound_O, values.loss_O)


class _OptimalValues:
    """The kept weights at the optimum of the mask.

    Removing k costs ``w_k² / 2e_k`` (OBS); p, pruned, with the gradient ``g_p``, gains
    ``½ g_p² e_p`` when it returns, at the value ``−g_p e_p``. Here ``e`` is a diagonal element of
    the inverse of H on the kept set, another in every row. It lies between ``1 / H_ii`` (all else
    frozen) and ``(H⁻¹)_ii`` (all else free). Their geometric mean stands in for it; then, since
    that can promise too much, the lower end, with which a gain is never less than promised.
    """

    def __init__(self, weight_OI: Tensor, mask_OI: Tensor, system: Damped) -> None:
        self.weight_OI, self.system = weight_OI, system
        self.new_OI = weight_OI * mask_OI
        solve = (Deflation(system, mask_OI), FIRST_TOLERANCE, FIRST_ITERATIONS)
        first = descend(self.new_OI, weight_OI, mask_OI, system, *solve)
        self.loss_O, self.pull_OI = first.loss_O, first.pull_OI
        self.bound_O = first.loss_O - excess_of(first.pull_OI * mask_OI, system)
        self.e_I = system.inverse_diagonal_I

    def prices(self, rows_R: Tensor, kept_RI: Tensor) -> tuple[Tensor, Tensor]:
        new_RI = self.new_OI[rows_R]
        gradient_RI = -self.pull_OI[rows_R]
        self._start_RI = torch.where(kept_RI, new_RI, -gradient_RI * self.e_I)
        return 0.5 * gradient_RI.square() * self.e_I, 0.5 * new_RI.square() / self.e_I

    def attempt(self, rows_R: Tensor, tried_RI: Tensor) -> Tensor:
        self._tried_RI = self._start_RI * tried_RI
        dense_RI = self.weight_OI[rows_R]
        self._tried = descend(
            self._tried_RI, dense_RI, tried_RI, self.system, self._by_inverse, 0.0, STEPS
        )
        return self._tried.loss_O

    def _by_inverse(self, residual_RI: Tensor) -> Tensor:
        """Apply ``(H⁻¹)_KK`` to r: enough for two steps, with nothing to prepare for each mask."""
        return residual_RI @ self.system.inverse_II

    def accept(self, rows_R: Tensor, better_R: Tensor) -> None:
        self.new_OI[rows_R[better_R]] = self._tried_RI[better_R]
        self.pull_OI[rows_R[better_R]] = self._tried.pull_OI[better_R]
        self.loss_O[rows_R[better_R]] = self._tried.loss_O[better_R]
