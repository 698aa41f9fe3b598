"""The least-squares optimum from the pruned side, for a pruned set that grows to the right."""

from __future__ import annotations

import torch
from torch import Tensor

from ...base.team import ALONE, Team
from ..gram import Damped


class Multipliers:
    """Multipliers λ of the constraints ``w_P = 0``, for all rows at once.

    The optimum for a pruned set P is ``w = w⁰ − λ H⁻¹`` with λ = 0 off P and
    ``λ_P (H⁻¹)_PP = w⁰_P`` (MRP, eq. 9 to 11). As long as P lies in the first ``hi`` columns
    only those enter: a third of the work of the same solves over the kept weights, which always
    span all columns. What is left of the pruned weights is the residual of the solve.

    Args:
        weight_OI: the dense weights w⁰, float32; those of dead inputs count as 0.
        system: H, its inverse and factor.
        tolerance: where a solve ends: squared residual over the pruned weights' own, both in the
            norm of the preconditioner, 1 / diag(H⁻¹).
        iterations: the most that one solve may take.
        team: the processes that have the layer's other rows; they stop at the same iteration.
    """

    def __init__(
        self,
        weight_OI: Tensor,
        system: Damped,
        tolerance: float,
        iterations: int = 50,
        team: Team = ALONE,
    ) -> None:
        self.weight_OI, self.inverse_II = system.live(weight_OI), system.inverse_II
        self.tolerance, self.iterations, self.team = tolerance, iterations, team
        self.multiplier_OI = torch.zeros_like(weight_OI)
        self.solved = 0  # columns

    def weights(self, lo: int, hi: int) -> Tensor:
        """Return the weights of columns lo to hi − 1, compensated for everything pruned so far."""
        moved_OB = self.multiplier_OI[:, : self.solved] @ self.inverse_II[: self.solved, lo:hi]
        return self.weight_OI[:, lo:hi] - moved_OB

    def solve(self, mask_OH: Tensor) -> None:
        """Take the mask of the first H columns; continue from where the last call ended."""
        columns = self.solved = mask_OH.shape[1]
        pruned_OH = (~mask_OH).to(self.weight_OI.dtype)
        weight_OH, multiplier_OH = self.weight_OI[:, :columns], self.multiplier_OI[:, :columns]
        inverse_HH = self.inverse_II[:columns, :columns]
        diagonal_H = inverse_HH.diagonal()
        tiny = torch.finfo(self.weight_OI.dtype).tiny
        size = float((weight_OH.square() * pruned_OH / diagonal_H).sum())
        enough = self.tolerance * self.team.total(size)[0]
        residual_OH = (weight_OH - multiplier_OH @ inverse_HH).mul_(pruned_OH)
        direction_OH, before_O1 = torch.zeros_like(residual_OH), None
        for _ in range(self.iterations):
            scaled_OH = residual_OH / diagonal_H
            power_O1 = torch.linalg.vecdot(residual_OH, scaled_OH)[:, None]
            if self.team.total(float(power_O1.sum()))[0] <= enough:
                return
            ratio_O1 = 0 if before_O1 is None else power_O1 / before_O1.clamp_min(tiny)
            direction_OH.mul_(ratio_O1).add_(scaled_OH)
            image_OH = (direction_OH @ inverse_HH).mul_(pruned_OH)
            curvature_O1 = torch.linalg.vecdot(direction_OH, image_OH)[:, None].clamp_min(tiny)
            multiplier_OH.addcmul_(power_O1 / curvature_O1, direction_OH)
            residual_OH.addcmul_(power_O1 / curvature_O1, image_OH, value=-1)
            before_O1 = power_O1
