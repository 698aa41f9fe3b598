"""The best values of the kept weights: all rows at once by conjugate gradients, with a certificate.

For a row with dense weights w⁰ and kept set K (pruned set P), the optimum of the MRP (Zhao et
al. 2024, eq. 11) is the least-squares solution ``w_K = H_KK⁻¹ (H w⁰)_K``.

**The certificate.** With ``δ = w − w⁰``, loss ``f = ½ δᵀHδ`` and gradient ``g = Hδ``, take the
gradient on the pruned weights as multipliers of the Lagrange dual (eq. 8). Its value is
``f − ½ g_Kᵀ H⁻¹ g_K``, and no admissible w has a lower loss than any dual value. So

    f − f* ≤ c := ½ g_Kᵀ H⁻¹ g_K = ½ ‖U g_K‖²      and      (f − f*) / f* ≤ c / (f − c),

computed from the iterate alone: one product with H and one with U. (The true gap is
``½ g_Kᵀ H_KK⁻¹ g_K``, and ``(H⁻¹)_KK ⪰ H_KK⁻¹``: the bound is valid, and tight as g_K → 0.)

Weights of dead inputs stay out of all this: they are 0 while the others are solved for, so that f
is the loss of the live inputs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ...base.errors import InputError, at_least
from ...base.team import ALONE, Team
from ..contracts import Needs
from ..gram import Damped, Gram, Ridge, check_ridge
from ..stats import Statistics
from .deflation import Deflation

USUAL_FACTOR = 4.0  # of the certificate to what ``Deflation`` promises: 2 to 14 on SmolLM2-135M
DIRECT_FLOATS = 2**25  # held by one batch of direct solves: 256 MB in float64


@dataclass(frozen=True)
class LeastSquares:
    """argmin over w, 0 off the mask, of ``(w − w⁰)ᵀ H (w − w⁰)`` for every row.

    Attributes:
        damp: ridge, as a fraction of the Gram's mean diagonal.
        tolerance: certified relative gap ``(f − f*) / f*`` of the layer's loss at which to stop.
        iterations: after so many, the direct solve takes over, and the report says so.
        method: ``"cg"``, or ``"direct"``: Cholesky per row on its smaller set, in float64.
        ridge: ``"relative"``, or ``"absolute"``: the damp is the γ of ``2 XᵀX + γI`` itself.

    Reference: Zhao et al. 2024 ("MRP"), eq. (11).
    """

    damp: float = 0.01
    tolerance: float = 1e-3
    iterations: int = 400
    method: Literal["cg", "direct"] = "cg"
    ridge: Ridge = "relative"
    needs: ClassVar[Needs] = (Gram,)

    def __post_init__(self) -> None:
        if self.method not in ("cg", "direct"):
            raise InputError(f"The method of least squares is cg or direct, not {self.method!r}.")
        at_least(0, damp=self.damp, tolerance=self.tolerance, iterations=self.iterations)
        check_ridge(self.ridge)

    def __call__(self, weight_OI: Tensor, mask_OI: Tensor, stats: Statistics) -> Tensor:
        return self.solve(weight_OI, mask_OI, stats)[0]

    def solve(
        self,
        weight_OI: Tensor,
        mask_OI: Tensor,
        stats: Statistics,
        start_OI: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the new weights (float32), and certificate and iterations for the report."""
        system = stats[Gram].damped(self.damp, self.ridge)
        team = stats.team.splitting(len(weight_OI))
        own = team.share(len(weight_OI))
        dense_RI, mask_RI = weight_OI[own].float(), mask_OI[own]
        weight_RI = system.live(dense_RI)
        start_RI = None if start_OI is None else system.live(start_OI[own])
        notes: dict[str, Any] = dict(system.notes(self.damp))
        if self.method == "cg":
            new_RI, gap, iterations = conjugate_gradients(
                weight_RI, mask_RI, system, self.tolerance, self.iterations, start_RI, team
            )
            if gap <= self.tolerance:
                notes |= {"gap": gap, "iterations": iterations}
                return team.gather(_kept_dead(new_RI, dense_RI, mask_RI, system)), notes
            notes["direct_after_iterations"] = iterations
        new_RI = direct(weight_RI, mask_RI, system)
        gap = certificate(new_RI, weight_RI, mask_RI, system, team)
        notes["gap"] = gap if isfinite(gap) else None  # JSON has no infinity
        return team.gather(_kept_dead(new_RI, dense_RI, mask_RI, system)), notes


def _kept_dead(new_OI: Tensor, dense_OI: Tensor, mask_OI: Tensor, system: Damped) -> Tensor:
    """Give kept weights of dead inputs their dense values: on other text the inputs may live."""
    return torch.where(mask_OI & system.dead_I, dense_OI, new_OI)


def conjugate_gradients(
    weight_OI: Tensor,
    mask_OI: Tensor,
    system: Damped,
    tolerance: float,
    iterations: int,
    start_OI: Tensor | None = None,
    team: Team = ALONE,
) -> tuple[Tensor, float, int]:
    """Solve all rows at once, with one product with H per iteration.

    Whoever has the layer's other rows stops at the same iteration: the team adds up the losses.

    Returns the weights, their certified relative gap as measured at the end, and the iterations.
    """
    new_OI = (weight_OI if start_OI is None else start_OI) * mask_OI
    precondition = Deflation(system, mask_OI)
    gap, spent = float("inf"), 0
    while spent < iterations:
        most = iterations - spent
        descent = descend(new_OI, weight_OI, mask_OI, system, precondition, tolerance, most, team)
        spent += descent.iterations
        before, gap = gap, certificate(new_OI, weight_OI, mask_OI, system, team)
        if gap <= tolerance or gap > before / 2:  # not again where rounding has stopped it
            break
    return new_OI, gap, spent


class Descent(NamedTuple):
    """The state in which a descent ended: per row its loss, and −g."""

    iterations: int
    loss_O: Tensor
    pull_OI: Tensor


def descend(
    new_OI: Tensor,
    weight_OI: Tensor,
    mask_OI: Tensor,
    system: Damped,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    iterations: int,
    team: Team = ALONE,
) -> Descent:
    """Move ``new_OI``, 0 off the mask, in place until the certificate is good enough.

    With a tolerance of 0 it takes all iterations. The certificate costs a product more, so it is
    asked for only where the preconditioner M promises as much: ``½ rᵀM r`` is it up to a factor,
    which the first answer tells. ``precondition`` maps a residual r, 0 off the mask, to M r; what
    it gives off the mask is ignored.
    """
    kept_OI = mask_OI.to(new_OI.dtype)
    moved_OI = weight_OI - new_OI
    pull_OI = moved_OI @ system.matrix_II
    loss_O = 0.5 * torch.linalg.vecdot(moved_OI, pull_OI)
    tiny = torch.finfo(new_OI.dtype).tiny
    direction_OI, before_O, factor = torch.zeros_like(new_OI), None, USUAL_FACTOR
    for iteration in range(iterations + 1):
        if iteration == iterations and not tolerance:
            break
        residual_OI = pull_OI * kept_OI
        scaled_OI = precondition(residual_OI).mul_(kept_OI)
        power_O = torch.linalg.vecdot(residual_OI, scaled_OI)
        sums = (float(x_O.double().sum()) for x_O in (loss_O, 0.5 * power_O))
        loss, promised = team.total(*sums)
        if factor * promised <= tolerance * (loss - factor * promised):
            excess = team.total(float(excess_of(residual_OI, system).double().sum()))[0]
            if excess <= tolerance * (loss - excess):
                break
            factor = excess / promised
        if iteration == iterations:
            break
        ratio_O = power_O * 0 if before_O is None else power_O / before_O.clamp_min(tiny)
        direction_OI = torch.addcmul(scaled_OI, ratio_O[:, None], direction_OI, out=direction_OI)
        image_OI = direction_OI @ system.matrix_II
        step_O = power_O / torch.linalg.vecdot(direction_OI, image_OI).clamp_min(tiny)
        new_OI.addcmul_(step_O[:, None], direction_OI)
        pull_OI.addcmul_(step_O[:, None], image_OI, value=-1)
        loss_O -= 0.5 * step_O * power_O
        before_O = power_O
    return Descent(iteration, loss_O, pull_OI)


def excess_of(residual_OI: Tensor, system: Damped) -> Tensor:
    """Compute ``½ ‖U g_K‖²`` (O,): a bound on each row's loss above the minimum."""
    return 0.5 * (residual_OI @ system.upper_II.T).square().sum(1)


def certificate(
    new_OI: Tensor, weight_OI: Tensor, mask_OI: Tensor, system: Damped, team: Team = ALONE
) -> float:
    """Return the certified relative gap of the layer's loss; see the top of the file."""
    moved_OI = new_OI - weight_OI
    gradient_OI = moved_OI @ system.matrix_II
    loss = 0.5 * float((moved_OI * gradient_OI).sum(dtype=torch.float64))
    excess = float(excess_of(gradient_OI * mask_OI, system).double().sum())
    loss, excess = team.total(loss, excess)
    if excess == 0:
        return 0.0
    return excess / (loss - excess) if loss > excess else float("inf")


def direct(weight_OI: Tensor, mask_OI: Tensor, system: Damped) -> Tensor:
    """Solve by one Cholesky per row in float64, on the smaller of kept and pruned set.

    Kept: ``w_K = H_KK⁻¹ (H w⁰)_K``. Pruned: ``δ = −H⁻¹_{:P} (H⁻¹_PP)⁻¹ w⁰_P``. Rows are solved in
    batches, each padded with the identity to the longest of its sets.
    """
    by_kept = 2 * int(mask_OI.sum()) <= mask_OI.numel()
    chosen_OI = mask_OI if by_kept else ~mask_OI
    matrix_II = (system.matrix_II if by_kept else system.inverse_II).double()
    weight_OI = weight_OI.double()
    right_OI = weight_OI @ matrix_II if by_kept else weight_OI
    new_OI = torch.zeros_like(weight_OI) if by_kept else weight_OI.clone()
    longest = max(int(chosen_OI.sum(1).max()), 1)
    for rows in torch.arange(len(weight_OI)).split(max(DIRECT_FLOATS // longest**2, 1)):
        chosen_RI = chosen_OI[rows]
        size = max(int(chosen_RI.sum(1).max()), 1)
        order_RS = chosen_RI.int().argsort(stable=True, dim=1, descending=True)[:, :size]
        real_RS = chosen_RI.gather(1, order_RS)
        square_RSS = matrix_II[order_RS[:, :, None], order_RS[:, None, :]]
        square_RSS *= real_RS[:, :, None] & real_RS[:, None, :]
        square_RSS.diagonal(dim1=1, dim2=2).add_((~real_RS).double())
        side_RS = right_OI[rows].gather(1, order_RS) * real_RS
        factor_RSS = torch.linalg.cholesky(square_RSS)
        solved_RS = torch.cholesky_solve(side_RS[:, :, None], factor_RSS)[:, :, 0] * real_RS
        spread_RI = torch.zeros_like(weight_OI[rows]).scatter_(1, order_RS, solved_RS)
        new_OI[rows] = spread_RI if by_kept else new_OI[rows] - spread_RI @ matrix_II
    return (new_OI * mask_OI).float()
