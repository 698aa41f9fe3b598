"""OBS: the increase of the loss when one weight is removed and all others of its row adapt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ...base.errors import InputError, at_least
from ..contracts import Needs
from ..gram import Damped, Gram, Ridge, check_ridge
from ..stats import Statistics


@dataclass(frozen=True)
class OBS:
    """S[o, i] = W[o, i]² / (2 d_i^power), with ``d_i`` a diagonal element of an inverse.

    Weights of dead inputs score 0: they go first.

    Attributes:
        diagonal: ``"full"``: of ``H⁻¹``, MRP's mask S (eq. 14). ``"trailing"``: of the inverse of
            ``H[i:, i:]``, SparseGPT's, which knows that columns before i are frozen.
        damp: ridge, as a fraction of the Gram's mean diagonal.
        power: 1 is the loss. ½ divides by the elements of the Cholesky factor without squaring
            them, as BESA's code does for the row SparseGPT of its Table 5.
        ridge: ``"relative"``, or ``"absolute"``: the damp is the γ of ``2 XᵀX + γI`` itself.

    Reference: Hassibi et al. 1993; Frantar & Alistarh 2023, arXiv:2301.00774, eq. (3).
    """

    diagonal: Literal["full", "trailing"] = "full"
    damp: float = 0.01
    power: float = 1.0
    ridge: Ridge = "relative"
    needs: ClassVar[Needs] = (Gram,)

    def __post_init__(self) -> None:
        if self.diagonal not in ("full", "trailing"):
            raise InputError(f"diagonal is full or trailing, not {self.diagonal!r}.")
        at_least(0, damp=self.damp, power=self.power)
        check_ridge(self.ridge)

    def __call__(self, weight_OI: Tensor, stats: Statistics) -> Tensor:
        return self.scored(weight_OI, stats[Gram].damped(self.damp, self.ridge))

    def scored(self, weight_OB: Tensor, system: Damped, columns: slice = slice(None)) -> Tensor:
        """Score some columns by their current weights."""
        if self.diagonal == "full":
            inverse_I = system.inverse_diagonal_I
        else:
            inverse_I = system.upper_II.diagonal().square()
        score_OB = weight_OB.float().square() / (2 * inverse_I[columns].pow(self.power))
        return score_OB.masked_fill(system.dead_I[columns], 0)
