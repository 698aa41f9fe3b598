"""Sums over tokens in float64, added batch by batch, for scores and recovery."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import CalibrationError
from ..base.team import Team
from .stats import count_of


class ChannelMoments:
    """Mean and variance of each input feature over all tokens seen."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.sum_I = torch.zeros(features, dtype=torch.float64, device=device)
        self.squares_I = torch.zeros_like(self.sum_I)
        self.tokens: float = 0  # their weights, where they have some

    def update(self, inputs_TI: Tensor, weights_T: Tensor | None = None) -> None:
        """Add more tokens, squared in float64."""
        inputs_TI = inputs_TI.double()
        weighed_TI = inputs_TI if weights_T is None else inputs_TI * weights_T.double()[:, None]
        self.sum_I += weighed_TI.sum(0)
        self.squares_I += (weighed_TI * inputs_TI).sum(0)
        self.tokens += count_of(inputs_TI, weights_T)

    def merge(self, team: Team) -> None:
        """Add up the sums of all processes."""
        team.sum_(self.sum_I)
        team.sum_(self.squares_I)
        self.tokens = team.total(self.tokens)[0]

    @property
    def mean_I(self) -> Tensor:
        """``mean_t X[t, i]``."""
        return self.sum_I / self._seen(1)

    @property
    def second_moment_I(self) -> Tensor:
        """``mean_t X[t, i]²``."""
        return self.squares_I / self._seen(1)

    @property
    def variance_I(self) -> Tensor:
        """``Σ_t (X[t, i] − mean)² / (T − 1)``, never below 0."""
        deviations_I = self.squares_I - self.sum_I.square() / self._seen(2)
        return (deviations_I / (self.tokens - 1)).clamp_min(0)

    def _seen(self, least: int) -> float:
        if self.tokens < least:
            raise CalibrationError(
                f"{self.tokens:g} calibration tokens reached this layer: too few."
            )
        return self.tokens


class Moments:
    """``[X 1]ᵀ[X 1]`` summed over tokens: the second moment, the mean and the count in one."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.sum_AA = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=device)

    def update(self, inputs_TI: Tensor, weights_T: Tensor | None = None) -> None:
        """Add more tokens, multiplied in float32, summed in float64."""
        inputs_TI = inputs_TI.float()
        weighed_TI = inputs_TI if weights_T is None else inputs_TI * weights_T.float()[:, None]
        self.sum_AA[:-1, :-1] += weighed_TI.T @ inputs_TI
        sum_I = weighed_TI.sum(0, dtype=torch.float64)
        self.sum_AA[:-1, -1] += sum_I
        self.sum_AA[-1, :-1] += sum_I
        self.sum_AA[-1, -1] += count_of(inputs_TI, weights_T)

    def merge(self, team: Team) -> None:
        """Add up the sums of all processes."""
        team.sum_(self.sum_AA)

    @property
    def tokens(self) -> float:
        """The number of tokens seen, or the sum of their weights."""
        return float(self.sum_AA[-1, -1])

    @property
    def second_moment_II(self) -> Tensor:
        """``E[x xᵀ]``."""
        if not self.tokens:
            raise CalibrationError("No calibration token reached this layer; give more text.")
        return self.sum_AA[:-1, :-1] / self.tokens

    @property
    def covariance_II(self) -> Tensor:
        """``E[(x − μ)(x − μ)ᵀ]``, the sum divided by T − 1."""
        if self.tokens < 2:
            raise CalibrationError("A covariance needs two calibration tokens; give more text.")
        mean_I = self.sum_AA[:-1, -1] / self.tokens
        centred_II = self.sum_AA[:-1, :-1] - self.tokens * torch.outer(mean_I, mean_I)
        return centred_II / (self.tokens - 1)
