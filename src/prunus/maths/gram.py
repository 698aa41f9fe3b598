"""The Gram matrix of a site's inputs, damped and factorised once for all layers that share it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..base.errors import CalibrationError, InputError, NumericalError
from ..base.team import Team
from .stats import count_of, weighed

LEADING, PASSES = 32, 4  # eigenvectors for preconditioning; passes to find them
RAISES = 8  # times that the damp may be raised tenfold: from 0.01 to far more than the Gram itself

Ridge = Literal["relative", "absolute"]
"""What a damp is a multiple of: the Gram's mean diagonal, or the papers' γ itself."""


class Gram:
    """Uncentred second moment of the inputs, ``XᵀX / T``, shape (I, I), float32.

    The papers' Hessian is ``2 XᵀX``; every mask and every update here is free of that factor.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.sum_II = torch.zeros(features, features, dtype=torch.float32, device=device)
        self.tokens: float = 0  # their weights, where they have some
        self._damped: dict[tuple[float, Ridge], Damped] = {}

    @staticmethod
    def enough(features: int) -> int:
        """Return how many tokens an update needs to improve the output on *other* tokens.

        With fewer it fits those that it has seen and errs more than magnitude with no update: worst
        at half as many tokens as inputs (SparseGPT) to as many (MRP).
        """
        return 2 * features

    def update(self, inputs_TI: Tensor, weights_T: Tensor | None = None) -> None:
        """Add ``XᵀX`` of more tokens; half-precision inputs are multiplied in float32."""
        inputs_TI = weighed(inputs_TI.float(), weights_T)
        self.sum_II.addmm_(inputs_TI.T, inputs_TI)
        self.tokens += count_of(inputs_TI, weights_T)
        self._damped.clear()

    def merge(self, team: Team) -> None:
        """Add up the sums and the counts of all processes."""
        team.sum_(self.sum_II)
        self.tokens = team.total(self.tokens)[0]
        self._damped.clear()

    def reordered(self, order_I: Tensor) -> Gram:
        """Return the same statistic of ``X[:, order_I]``; it is factorised again on demand."""
        new = Gram(0, order_I.device)
        new.sum_II, new.tokens = self.sum_II[order_I[:, None], order_I], self.tokens
        return new

    @property
    def matrix_II(self) -> Tensor:
        """``XᵀX / T``."""
        if not self.tokens:
            raise CalibrationError("No calibration token reached this layer; give more text.")
        return self.sum_II / self.tokens

    def damped(self, damp: float, ridge: Ridge = "relative") -> Damped:
        """Return the system that updates solve; the layers of a site share it and its factor.

        An absolute damp is the γ of ``2 XᵀX + γI`` as papers print it, a sum over T tokens. All of
        it divided by 2T, which changes no mask and no update, that is ``XᵀX / T + γ / (2T) · I``.
        """
        if (damp, ridge) not in self._damped:
            unit = None if ridge == "relative" else 1 / (2 * max(self.tokens, 1))
            self._damped[damp, ridge] = Damped.of(self.matrix_II, damp, unit)
        return self._damped[damp, ridge]


@dataclass(frozen=True, eq=False)
class Damped:
    """``H = G + damp · unit · I`` with its factor; the unit is ``mean(diag G)`` unless told.

    An input that is always 0 ("dead") first gets the mean diagonal of the others as its own, so
    that H is invertible and the damp is the one of the layer without that input; its weights cannot
    matter, whatever they are. (The authors' code of SparseGPT puts a 1 there, which enters the
    mean.) Where a Cholesky in float32 fails it is done in float64; where that fails too the damp is
    raised tenfold until it succeeds.

    Attributes:
        matrix_II: H.
        upper_II: U, upper triangular, with ``H⁻¹ = UᵀU``. ``U_jj²`` is the first diagonal element
            of the inverse of ``H[j:, j:]``: SparseGPT's factor.
        dead_I: True where an input is always 0.
        damp: the one that was used, maybe higher than the one asked for.
        float64: whether float32 was not enough.
    """

    matrix_II: Tensor
    upper_II: Tensor
    dead_I: Tensor
    damp: float
    float64: bool

    @classmethod
    def of(cls, gram_II: Tensor, damp: float, unit: float | None = None) -> Damped:
        """Damp and factorise a Gram matrix; the damp counts in units of its mean diagonal or this.

        Raises:
            NumericalError: no damp makes the matrix positive definite: it holds NaN or inf.
        """
        if not bool(gram_II.isfinite().all()):
            raise NumericalError("The Gram matrix holds NaN or inf; use a wider dtype.")
        diagonal_I = gram_II.diagonal()
        dead_I = diagonal_I == 0
        mean = float(diagonal_I[~dead_I].mean()) if not bool(dead_I.all()) else 1.0
        unit = mean if unit is None else unit
        least = 1e-6 * mean / unit  # from which on it is raised: of the Gram, whatever the unit
        for raised in range(RAISES):
            used = damp if raised == 0 else max(damp, least) * 10**raised
            for dtype in (torch.float32, torch.float64):
                matrix_II = gram_II.to(dtype, copy=True)
                matrix_II.diagonal()[dead_I] = mean
                matrix_II.diagonal().add_(used * unit)
                upper_II = _upper_factor_of_inverse(matrix_II)
                if upper_II is not None:
                    matrix_II, upper_II = matrix_II.float(), upper_II.float()
                    return cls(matrix_II, upper_II, dead_I, used, dtype == torch.float64)
        raise NumericalError("The Gram matrix cannot be factorised at any damp.")

    def live(self, weight_OI: Tensor) -> Tensor:
        """Return the weights with those of dead inputs 0, as if they were pruned already.

        No output depends on them, but the diagonal that stands in for a dead input would charge
        for their removal, and a loss or a certificate would then be mostly that charge.
        """
        return weight_OI.masked_fill(self.dead_I, 0)

    @cached_property
    def inverse_diagonal_I(self) -> Tensor:
        """The diagonal of ``H⁻¹``."""
        return self.upper_II.square().sum(0)

    @cached_property
    def inverse_II(self) -> Tensor:
        """``H⁻¹``."""
        return self.upper_II.T @ self.upper_II

    @cached_property
    def scale_I(self) -> Tensor:
        """``diag(H)^-½``."""
        return self.matrix_II.diagonal().rsqrt()

    @cached_property
    def leading(self) -> tuple[Tensor, Tensor, float]:
        """The largest eigenvalues of ``diag(H)^-½ H diag(H)^-½``, and the remainder.

        At most 32 and one in eight (K,), by subspace iteration, so about; their vectors (I, K); and
        the mean of all other eigenvalues.
        """
        scaled_II = self.matrix_II * self.scale_I[:, None] * self.scale_I
        inputs = len(scaled_II)
        wanted = min(LEADING, inputs // 8)
        generator = torch.Generator().manual_seed(0)
        basis_IB = torch.randn(inputs, min(wanted + 8, inputs), generator=generator)
        basis_IB = basis_IB.to(scaled_II)
        for _ in range(PASSES):
            basis_IB = torch.linalg.qr(scaled_II @ basis_IB).Q
        value_B, turn_BB = torch.linalg.eigh(basis_IB.T @ scaled_II @ basis_IB)
        first = len(value_B) - wanted
        value_K, vector_IK = value_B[first:], basis_IB @ turn_BB[:, first:]
        rest = (inputs - float(value_K.sum())) / (inputs - wanted)
        return value_K, vector_IK, max(rest, 1e-6)

    def notes(self, asked: float) -> dict[str, float | bool]:
        """Return what the report should say; nothing if the requested damp was enough."""
        raised = {"damp_raised_to": self.damp} if self.damp != asked else {}
        return {**raised, **({"float64": True} if self.float64 else {})}


def check_ridge(ridge: str) -> None:
    """Raise InputError for a word that is no ``Ridge``."""
    if ridge not in ("relative", "absolute"):
        raise InputError(f"A ridge is relative or absolute, not {ridge!r}.")


def _upper_factor_of_inverse(matrix_II: Tensor) -> Tensor | None:
    """Return U with ``H⁻¹ = UᵀU``; None if H is not positive definite in this precision.

    The Cholesky factor of H with rows and columns reversed, reversed back, is an upper triangular A
    with ``H = A Aᵀ``; U is its inverse. No Cholesky of an inverse, which float32 often refuses.
    """
    lower_II, failed = torch.linalg.cholesky_ex(matrix_II.flip(0, 1))
    if int(failed):
        return None
    identity_II = torch.eye(len(matrix_II), dtype=matrix_II.dtype, device=matrix_II.device)
    upper_II = torch.linalg.solve_triangular(lower_II.flip(0, 1), identity_II, upper=True)
    return upper_II if bool(upper_II.isfinite().all()) else None
