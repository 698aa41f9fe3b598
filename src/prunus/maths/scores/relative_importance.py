"""Relative importance: a weight's share of its input channel and of its output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ...base.errors import InputError
from ..contracts import Needs
from ..stats import Statistics


@dataclass(frozen=True)
class RelativeImportance:
    """S[o, i] = |W[o, i]| / Σₒ|W[o, i]| + |W[o, i]| / Σᵢ|W[o, i]|.

    Data-free. A channel of zeros has share 0, not 0/0. Compared over the whole layer by default.

    Attributes:
        terms: ``"both"``, or one of the paper's two ablations (Table 2): ``"in"`` keeps only the
            share of the input channel (``|W|_in``), ``"out"`` that of the output (``|W|_out``).

    Differs from the authors' code: sums and quotients in float32; theirs, on a float16 weight, run
    into subnormals and so into ties.

    Reference: Zhang et al. 2024 (ICLR), "Plug-and-Play", eq. (2).
    """

    terms: Literal["both", "in", "out"] = "both"
    needs: ClassVar[Needs] = ()

    def __post_init__(self) -> None:
        if self.terms not in ("both", "in", "out"):
            raise InputError(f"terms is both, in or out, not {self.terms!r}.")

    def __call__(self, weight_OI: Tensor, stats: Statistics) -> Tensor:
        size_OI = weight_OI.float().abs()
        in_OI = size_OI / _no_zero(size_OI.sum(0, keepdim=True))
        if self.terms == "in":
            return in_OI
        out_OI = size_OI / _no_zero(size_OI.sum(1, keepdim=True))
        return out_OI if self.terms == "out" else in_OI + out_OI


def _no_zero(sums: Tensor) -> Tensor:
    return sums.masked_fill(sums == 0, 1)  # its numerators are all 0 too
