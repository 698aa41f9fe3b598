"""Ridge least squares, its strength chosen on held-out text.

Source: Li et al. 2024, arXiv:2407.19126, Algorithms 2 to 4: ``W̄ = (X̂ᵀX̂)⁻¹ X̂ᵀY``, the weights that
bring the dense outputs Y back from the inputs X̂ that the pruned blocks before now give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...base.team import Team
from ..views import LayerView

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, as fractions of the mean diagonal of ``XᵀX``."""

NOISE = 1e-7
"""Relative squared errors that differ by less are equal: the products are float32."""


@dataclass
class Regression:
    """The sums over tokens that least squares needs of inputs (T, A) and targets (T, O).

    A: the inputs, and a column of ones behind them where the layer has a bias.
    """

    gram_AA: Tensor
    cross_OA: Tensor
    energy: float = 0.0

    @classmethod
    def several(cls, layers: Sequence[LayerView], device: torch.device) -> list[Regression]:
        """Make one regression per layer, for layers that read the same inputs: one Gram for all."""
        width = layers[0].shape[1] + (layers[0].bias_O is not None)
        gram_AA = torch.zeros(width, width, dtype=torch.float64, device=device)
        return [cls(gram_AA, gram_AA.new_zeros(layer.shape[0], width)) for layer in layers]

    def update(self, inputs_TI: Tensor, targets_TO: Tensor, gram: bool = True) -> None:
        """Add tokens, multiplied in float32, summed in float64; the Gram only if asked to."""
        inputs_TA = with_ones(inputs_TI.float(), self.gram_AA.shape[0] > inputs_TI.shape[1])
        targets_TO = targets_TO.float()
        if gram:
            self.gram_AA += inputs_TA.T @ inputs_TA
        self.cross_OA += targets_TO.T @ inputs_TA
        self.energy += float(targets_TO.double().square().sum())

    def merge(self, team: Team, gram: bool = True) -> None:
        """Add up all processes' sums; the Gram, which layers share, only if asked to."""
        if gram:
            team.sum_(self.gram_AA)
        team.sum_(self.cross_OA)
        self.energy = team.total(self.energy)[0]

    @classmethod
    def onto_itself(cls, sum_AA: Tensor, weight_OA: Tensor) -> Regression:
        """Return the regression whose targets are ``weight_OA`` applied to these very inputs."""
        cross_OA = weight_OA.double() @ sum_AA
        return cls(sum_AA, cross_OA, float((cross_OA * weight_OA).sum()))

    def only(self, columns: Tensor) -> Regression:
        """Return the regression with these inputs alone."""
        return Regression(
            self.gram_AA[columns[:, None], columns], self.cross_OA[:, columns], self.energy
        )

    def error(self, weight_OA: Tensor) -> float:
        """Compute ``‖XWᵀ − Y‖² / ‖Y‖²``."""
        weight_OA = weight_OA.double()
        moved = (weight_OA @ self.gram_AA - 2 * self.cross_OA) * weight_OA
        return max((float(moved.sum()) + self.energy) / max(self.energy, 1e-300), 0.0)


@dataclass(frozen=True)
class Solved:
    """New weights, and their error on held-out text.

    Attributes:
        weight_OA: float32; the old ones where none did better.
        ridge: that was used; None: the old weights stay.
        before: relative squared error of the old weights on the held-out text.
        after: of these.
    """

    weight_OA: Tensor
    ridge: float | None
    before: float
    after: float


def solve(
    weights_OA: list[Tensor], train: list[Regression], held: list[Regression]
) -> list[Solved]:
    """Find the weights of several layers with the same inputs that are best on held-out text.

    ``argmin_W ‖XWᵀ − Y‖² + λ‖W − W_old‖²`` for every λ of ``RIDGES`` and for λ = ∞, which keeps the
    old weights: recovery that does not help does nothing. One factorisation per λ for all layers.

    What differs from the authors' code: the ridge pulls towards the old weights and not to 0, is
    chosen on held-out text and not fixed at 1e-4, and is added once (theirs adds it to the shared
    matrix in place, so that q, k and v get one, two and three times of it).
    """
    olds = [weight_OA.double() for weight_OA in weights_OA]
    before = [part.error(old) for part, old in zip(held, olds, strict=True)]
    best = [Solved(old.float(), None, e, e) for old, e in zip(olds, before, strict=True)]
    gram_AA = train[0].gram_AA
    missing = [part.cross_OA - old @ gram_AA for part, old in zip(train, olds, strict=True)]
    scale = float(gram_AA.diagonal().mean())
    if not scale > 0:  # no input ever differs from 0
        return best
    for ridge in RIDGES:
        damped_AA = gram_AA.clone()
        damped_AA.diagonal().add_(ridge * scale)
        factor_AA, failed = torch.linalg.cholesky_ex(damped_AA)
        if int(failed):
            continue
        for k, old in enumerate(olds):
            new_OA = old + torch.cholesky_solve(missing[k].T, factor_AA).T
            error = held[k].error(new_OA)
            if error < best[k].after - NOISE:
                best[k] = Solved(new_OA.float(), ridge, before[k], error)
    return best


def with_ones(inputs_TI: Tensor, bias: bool) -> Tensor:
    """Append a column of ones if there is a bias."""
    return torch.cat([inputs_TI, torch.ones_like(inputs_TI[:, :1])], 1) if bias else inputs_TI


def joined(weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return ``[W b]`` in float32; W if there is no bias."""
    weight_OI = weight_OI.float()
    return weight_OI if bias_O is None else torch.cat([weight_OI, bias_O.float()[:, None]], 1)
