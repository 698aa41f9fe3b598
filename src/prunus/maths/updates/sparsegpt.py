"""SparseGPT's update: column by column, each pruned weight's error moves to later columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...base.errors import at_least
from ..contracts import Needs
from ..gram import Gram, Ridge, check_ridge
from ..stats import Statistics

Decide = Callable[[int, int, Tensor], Tensor]
"""``(lo, hi, weight_OB) → mask_OB`` for columns lo to hi − 1, from their weights as of now."""

INNER = 32  # columns that are updated one by one; everything beyond them in matrix products


@dataclass(frozen=True)
class SparseGPTSweep:
    """For each column j in order: ``e = w_j / U_jj`` where pruned, ``w_{j:} −= e U_{j, j:}``.

    Columns before j stay as they are, which is what costs it against ``LeastSquares``.

    Attributes:
        damp: ridge, as a fraction of the Gram's mean diagonal.
        ridge: ``"relative"``, or ``"absolute"``: the damp is the γ of ``2 XᵀX + γI`` itself.
        block_size: columns between updates of all the rest; changes rounding only.

    Reference: Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1.
    """

    damp: float = 0.01
    block_size: int = 128
    ridge: Ridge = "relative"
    needs: ClassVar[Needs] = (Gram,)

    def __post_init__(self) -> None:
        at_least(1, block_size=self.block_size)
        at_least(0, damp=self.damp)
        check_ridge(self.ridge)

    def __call__(self, weight_OI: Tensor, mask_OI: Tensor, stats: Statistics) -> Tensor:
        return self.solve(weight_OI, mask_OI, stats)[0]

    def solve(
        self, weight_OI: Tensor, mask_OI: Tensor, stats: Statistics
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the new weights, and notes for the report."""
        system = stats[Gram].damped(self.damp, self.ridge)
        team = stats.team.splitting(len(weight_OI))
        own = team.share(len(weight_OI))
        new_RI, _ = sweep(
            weight_OI[own],
            system.upper_II,
            lambda lo, hi, weight_RB: mask_OI[own, lo:hi],
            block_size=self.block_size,
        )
        return team.gather(new_RI), dict(system.notes(self.damp))


def sweep(
    weight_OI: Tensor,
    upper_II: Tensor,
    decide: Decide,
    *,
    block_size: int,
    step: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the sweep with a mask that is chosen on the way.

    Args:
        weight_OI: the dense weights.
        upper_II: U of ``gram.Damped``.
        decide: which weights of a few columns stay, from their weights as updated so far.
        block_size: columns between updates of all the rest.
        step: columns that ``decide`` is asked about at once; None: a whole block.

    Returns:
        New weights (float32, exactly 0 where pruned) and the mask.
    """
    weight_IO = weight_OI.float().T.contiguous().clone()
    mask_IO = torch.ones_like(weight_IO, dtype=torch.bool)
    columns = len(weight_IO)
    step = step or block_size
    inner = max(INNER // step, 1) * step if step < block_size else INNER
    for lo in range(0, columns, block_size):
        hi = min(lo + block_size, columns)
        error_BO = torch.zeros_like(weight_IO[lo:hi])
        for a in range(lo, hi, inner):
            b = min(a + inner, hi)
            for j in range(a, b):
                if (j - lo) % step == 0:
                    end = min(j + step, hi)
                    mask_IO[j:end] = decide(j, end, weight_IO[j:end].T).T
                error_BO[j - lo] = (weight_IO[j] / upper_II[j, j]).masked_fill(mask_IO[j], 0)
                weight_IO[j:b].addr_(upper_II[j, j:b], error_BO[j - lo], alpha=-1)
                weight_IO[j].masked_fill_(~mask_IO[j], 0)  # exactly, not to rounding
            weight_IO[b:hi].addmm_(upper_II[a:b, b:hi].T, error_BO[a - lo : b - lo], alpha=-1)
        weight_IO[hi:].addmm_(upper_II[lo:hi, hi:].T, error_BO, alpha=-1)
    return weight_IO.T.contiguous(), mask_IO.T.contiguous()
