"""No update: the kept weights stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..contracts import Needs
from ..stats import Statistics


@dataclass(frozen=True)
class Keep:
    """Ŵ = W where kept, exactly 0 elsewhere, in the same dtype."""

    needs: ClassVar[Needs] = ()

    def __call__(self, weight_OI: Tensor, mask_OI: Tensor, stats: Statistics) -> Tensor:
        return weight_OI.masked_fill(~mask_OI, 0)
