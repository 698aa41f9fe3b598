"""A preconditioner for the kept sets of all rows, at little more than the cost of the diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gram import Damped

WIDEST = 1e4  # to which eigenvalues, over the rest's mean, are cut: float32 has to factorise them


class Deflation:
    """H's inverse on each row's kept set, as if H were diagonal except for its leading directions.

    With ``S = diag(H)^½`` and ``S⁻¹ H S⁻¹ ≈ ρ I + Q diag(λ − ρ) Qᵀ``, Q the leading eigenvectors
    and ρ the mean of all other eigenvalues, the inverse on a kept set K is, by Woodbury's formula,

        M = S_K⁻¹ (I − Q_K (diag(ρ / (λ − ρ)) + Q_Kᵀ Q_K)⁻¹ Q_Kᵀ) S_K⁻¹ / ρ,

    exact in each row's own K, at a small system per row. It is positive definite. Inputs of
    language models have few strong directions and many weak ones: on SmolLM2's layers conjugate
    gradients take 7 to 17 iterations with it, 13 to 36 with the diagonal, and 6 to 14 with
    ``(H⁻¹)_KK``, which needs a second product of full width in each.

    Args:
        system: H.
        mask_OI: the kept sets.
    """

    def __init__(self, system: Damped, mask_OI: Tensor) -> None:
        value_K, vector_IK, rest = system.leading
        self.diagonal_I = system.scale_I.square() / rest
        self.basis_IK = system.scale_I[:, None] * vector_IK / rest**0.5
        one, two = torch.triu_indices(len(value_K), len(value_K), device=value_K.device)
        overlap_OP = mask_OI.to(vector_IK.dtype) @ (vector_IK[:, one] * vector_IK[:, two])
        small_OKK = overlap_OP.new_empty(len(mask_OI), len(value_K), len(value_K))
        small_OKK[:, one, two] = overlap_OP
        small_OKK[:, two, one] = overlap_OP
        above_K = (value_K / rest - 1).clamp(1 / WIDEST, WIDEST)
        small_OKK.diagonal(dim1=1, dim2=2).add_(1 / above_K)
        self.factor_OKK = torch.linalg.cholesky(small_OKK)

    def __call__(self, residual_OI: Tensor) -> Tensor:
        """Compute M r, for r that is 0 off the mask; the caller masks the result."""
        along_OK1 = (residual_OI @ self.basis_IK)[:, :, None]
        solved_OK = torch.cholesky_solve(along_OK1, self.factor_OKK)[:, :, 0]
        return (residual_OI * self.diagonal_I).addmm_(solved_OK, self.basis_IK.T, alpha=-1)
