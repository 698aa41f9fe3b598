"""DaSS: inputs of a gated MLP, scored by the activations of their neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...base.errors import InputError, at_least
from ..contracts import Needs
from ..stats import ColumnNorm, Statistics


@dataclass(frozen=True)
class DaSS:
    """S[o, i] = |W[o, i]| · rms_t(Y[t, o]) ** power, for the gate and up projections.

    Y = act(gate) · up is the MLP's intermediate activation, so ``stats`` are those of the **down
    projection's input**: one value per output o of gate and up. The factor is constant along a row,
    hence compare down a column: ``Unstructured("column")``, or ``NM(..., along="output")``. The
    down projection itself is scored by Wanda (eq. 5); ``pruners.DaSS`` puts the two together.

    Attributes:
        power: the paper's α, 0.5 (the authors' code: ``scaler_row ** 0.25``, the same thing).

    Reference: Guo et al. (TMLR), openreview.net/forum?id=T50uTgPzHS, eq. (4).
    """

    power: float = 0.5
    needs: ClassVar[Needs] = (ColumnNorm,)

    def __post_init__(self) -> None:
        at_least(0, power=self.power)

    def __call__(self, weight_OI: Tensor, stats: Statistics) -> Tensor:
        rms_O = stats[ColumnNorm].rms_I
        if len(rms_O) != len(weight_OI):
            raise InputError(
                f"DaSS reads statistics of the intermediate activation, one per output: the weight "
                f"has {len(weight_OI)} outputs, the statistics {len(rms_O)} features. "
                "Give those of the down projection's input."
            )
        return weight_OI.float().abs() * rms_O[:, None] ** self.power
