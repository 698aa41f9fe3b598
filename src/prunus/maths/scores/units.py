"""The worth of each unit; higher is kept. One row of scores per unit, one column per channel.

The worth of a unit is the sum of its row. Where a method has one number per unit, N is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import silu

from ...base.errors import InputError
from ..contracts import Needs
from ..moments import ChannelMoments, Moments
from ..stats import ColumnNorm, Statistics
from ..views import UnitsView


@dataclass(frozen=True)
class Curvature:
    """Fisher's estimate of the loss's second derivatives in a layer's weights w.

    ``H ≈ mean_j g_j g_jᵀ``, with g_j the gradient of sample j's own loss. Of it:

    Attributes:
        squares_OI: the diagonal, ``mean_j g_j²``.
        rows_O: ``wᵀHw`` of each row of w alone, ``mean_j (Σ_i w · g_j)²``.
        columns_I: the same of each column.
    """

    squares_OI: Tensor
    rows_O: Tensor
    columns_I: Tensor


@dataclass(frozen=True)
class Gathered:
    """What is known about one depth-2 module.

    Attributes:
        first: statistics of what the first level reads.
        second: statistics of what the second level reads.
        divergence_HH: between the heads; None: no attention map was seen.
        gradients: of the language-model loss, (O, I) by layer name; None: not computed.
        curvatures: of that loss, by layer name; None: not computed.
        seed: of the run.
    """

    first: Statistics = field(default_factory=lambda: Statistics((), 0))
    second: Statistics = field(default_factory=lambda: Statistics((), 0))
    divergence_HH: Tensor | None = None
    gradients: Mapping[str, Tensor] | None = None
    curvatures: Mapping[str, Curvature] | None = None
    seed: int = 0


class UnitScore(Protocol):
    """Scores (U, N) of the units of a module."""

    @property
    def first(self) -> Needs:
        """Statistics of the first level's input that the score reads."""
        ...

    @property
    def second(self) -> Needs:
        """Statistics of the second level's input that the score reads."""
        ...

    @property
    def wants(self) -> Literal["nothing", "maps", "gradients"]:
        """What else the score reads."""
        ...

    @property
    def comparable(self) -> bool:
        """Whether scores of different blocks compare as they are, without standardisation."""
        ...

    def __call__(self, module: UnitsView, gathered: Gathered) -> Tensor: ...


@dataclass(frozen=True)
class Random:
    """Numbers drawn from the run's seed, from a separate stream for every module."""

    first: ClassVar[Needs] = ()
    second: ClassVar[Needs] = ()
    wants: ClassVar[Literal["nothing"]] = "nothing"
    comparable: ClassVar[bool] = False

    def __call__(self, module: UnitsView, gathered: Gathered) -> Tensor:
        seed = 2 * (gathered.seed * 100_003 + module.block) + (module.unit == "heads")
        generator = torch.Generator().manual_seed(seed % 2**63)
        return torch.rand(module.units, 1, generator=generator)


@dataclass(frozen=True)
class Norm:
    """``Σ |w|^power`` over all weights of the unit: its rows of the first level, its columns.

    Reference: LLM-Pruner's ``l1`` and ``l2`` (Ma et al. 2023, arXiv:2305.11627), whose sums are
    over the rows and the column of the group alike; biases are left out.
    """

    power: float = 1.0

    first: ClassVar[Needs] = ()
    second: ClassVar[Needs] = ()
    wants: ClassVar[Literal["nothing"]] = "nothing"
    comparable: ClassVar[bool] = False

    def __call__(self, module: UnitsView, gathered: Gathered) -> Tensor:
        parts = {layer.name: layer.weight_OI.float().abs() ** self.power for layer in module.layers}
        return over_units(module, parts)


@dataclass(frozen=True)
class WandaSp:
    """``S[i] = Σ_o |W[o, i]| · rms(X_i)`` of the second level's input i.

    What differs from FLAP's script: the root mean square over tokens for the L2 norm (one factor),
    the sum over outputs for the mean (another).

    Reference: "Wanda-sp" in An et al. 2024 (AAAI), FLAP, arXiv:2312.11983: a baseline there.
    """

    first: ClassVar[Needs] = ()
    second: ClassVar[Needs] = (ColumnNorm,)
    wants: ClassVar[Literal["nothing"]] = "nothing"
    comparable: ClassVar[bool] = False

    def __call__(self, module: UnitsView, gathered: Gathered) -> Tensor:
        weight_I = module.reader.weight_OI.float().abs().sum(0)
        return (weight_I * gathered.second[ColumnNorm].rms_I)[module.columns_UN]


@dataclass(frozen=True)
class Flap:
    """``S[i] = var(X_i) · ‖W[:, i]‖²``: weighted input feature variance, WIFV.

    ``squared_attention``: their code squares the scores of attention before it standardises them
    (and not those of the MLP); the paper does not say so.

    What differs from their code: the variance. Theirs updates the mean in place before it takes the
    old one for Welford's product, so it sums ``(x − mean_new)²``, and its first sample adds 0.

    Reference: An et al. 2024 (AAAI), FLAP, arXiv:2312.11983: the metric WIFV.
    """

    squared_attention: bool = False

    first: ClassVar[Needs] = ()
    second: ClassVar[Needs] = (ChannelMoments,)
    wants: ClassVar[Literal["nothing"]] = "nothing"
    comparable: ClassVar[bool] = False

    def __call__(self, module: UnitsView, gathered: Gathered) -> Tensor:
        squares_I = module.reader.weight_OI.double().square().sum(0)
        score_I = squares_I * gathered.second[ChannelMoments].variance_I
        if self.squared_attention and module.unit == "heads":
            score_I = score_I.square()
        return score_I[module.columns_UN]


@dataclass(frozen=True)
class SecondMoment:
    """``M_i = Σ_j E[Y_ij²]``: the second moment of all that inner channel i adds to the output.

    Under a linear activation and inputs of mean 0 that is ``‖B_i‖² · A_iᵀ Σ A_i``, half of it
    behind an activation like ReLU (equations 2 and 3, appendix B): ``moment="gaussian"``. A_i: the
    row of the first level that makes inner channel i; B_i: the column of the second that reads it;
    Σ: ``E[x xᵀ]`` of the module's input. A gated MLP is two plain modules, ``B(u·x)`` and
    ``Bσ(g·x)``, and its score the product of theirs. In attention x is what the head has mixed
    together, and ``v_iᵀ Σ v_i`` is then the second moment of the second level's input i (bias of v
    included): that is how it is computed.

    ``moment="measured"`` is the definition itself, ``‖B_i‖² · mean_t h_i²`` of the activations h
    that the second level reads. It costs no assumption. Where the closed form fails is the mean: a
    neuron that is off for almost every token has a large ``A_iᵀ Σ A_i``, and writes nothing.

    Fields, first the paper's reading, then that of the authors' code:
        norm: power of ‖B_i‖, 2 or 1.
        gated: "product", or "code": ``‖B_i‖ · silu(g_iᵀ Σ g_i) · u_iᵀ Σ u_i``.
        centred: Σ as ``E[x xᵀ]``, or as the covariance (the paper assumes a mean of 0).
        mixed: attention's x mixed by the head, or the hidden states themselves.
        identity: Σ = I: no data is read.
    """

    moment: str = "gaussian"
    norm: int = 2
    gated: str = "product"
    centred: bool = False
    mixed: bool = True
    identity: bool = False

    wants: ClassVar[Literal["nothing"]] = "nothing"
    comparable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.moment not in ("gaussian", "measured"):
            raise InputError(f"moment is gaussian or measured; got {self.moment!r}.")
        if self.moment == "measured" and self.identity:
            raise InputError(
                "moment=measured needs activations, but identity=true uses none. "
                "Change one of them."
            )
        if self.norm not in (1, 2):
            raise InputError(f"norm is 1 or 2, the power of the column's norm; got {self.norm}.")
        if self.gated not in ("product", "code"):
            raise InputError(f"gated is product or code; got {self.gated!r}.")

    @property
    def first(self) -> Needs:
        """Second moments of the first level's input."""
        return () if self.identity or self.moment == "measured" else (Moments,)

    @property
    def second(self) -> Needs:
        """Second moments of the second level's input, for attention or where they are measured."""
        return () if self.identity else (ChannelMoments,)

    def __call__(self, module: UnitsView, gathered: Gathered) -> Tensor:
        column_I: Tensor = module.reader.weight_OI.double().norm(dim=0) ** self.norm
        if module.unit == "heads" or self.moment == "measured":
            return (column_I * self._values(module, gathered))[module.columns_UN]
        moments = [self._moment(gathered, layer.weight_OI[rows_U].double())
                   for layer, rows_UM in module.sources for rows_U in rows_UM.T]  # fmt: skip
        column_U = column_I[module.columns_UN[:, 0]]
        if len(moments) == 1:
            return (column_U * moments[0] / 2)[:, None]
        gate_U, up_U = self._gate_and_up(module, moments)
        if self.gated == "code":
            return (column_U * silu(gate_U) * up_U)[:, None]
        return (column_U * up_U * (column_U * gate_U / 2))[:, None]

    def _values(self, module: UnitsView, gathered: Gathered) -> Tensor:
        """Compute ``v_iᵀ Σ v_i`` for every input i of the second level."""
        if self.moment == "measured" or (self.mixed and not self.identity):
            moments = gathered.second[ChannelMoments]
            seen_I: Tensor = moments.variance_I if self.centred else moments.second_moment_I
            return seen_I
        assert module.values is not None
        assert module.value_row_I is not None
        return self._moment(gathered, module.values.weight_OI[module.value_row_I].double())

    def _moment(self, gathered: Gathered, rows_NI: Tensor) -> Tensor:
        """Compute ``A_iᵀ Σ A_i`` for every row."""
        if self.identity:
            return rows_NI.square().sum(1)
        moments = gathered.first[Moments]
        sigma_II = moments.covariance_II if self.centred else moments.second_moment_II
        return ((rows_NI @ sigma_II) * rows_NI).sum(1)

    def _gate_and_up(self, module: UnitsView, moments: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return gate and up: a fused layer has its gate first, roles tell two layers apart."""
        first = module.sources[0][0].role
        return (moments[1], moments[0]) if first == "up" else (moments[0], moments[1])


def over_units(module: UnitsView, parts: Mapping[str, Tensor]) -> Tensor:
    """Sum over the rows and columns of every unit, (U, 1)."""
    score_U = parts[module.reader.name].double().sum(0)[module.columns_UN].sum(1)
    for layer, rows_UM in module.sources:
        score_U = score_U + parts[layer.name].double().sum(1)[rows_UM].sum(1)
    return score_U[:, None]


def lowest(score_UN: Tensor, count: int) -> Tensor:
    """Return the mask of the units that stay when the ``count`` lowest go, ties in order."""
    worth_U = score_UN.double().sum(1).cpu()
    keep_U = torch.ones(len(worth_U), dtype=torch.bool)
    keep_U[worth_U.argsort(stable=True)[:count]] = False
    return keep_U
