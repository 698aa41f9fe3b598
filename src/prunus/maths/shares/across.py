"""Two allocations, one inside the other: the split between blocks, and that within each."""

from __future__ import annotations

from dataclasses import dataclass

from ..contracts import Needs
from .besa import BESA
from .evolve import Evolve
from .owl import OWL
from .slope import Slope


@dataclass(frozen=True)
class Across:
    """Budgets of blocks by ``split``, which BESA then spends on the rows of each block.

    Attributes:
        split: between blocks.
        inside: within each block, on its way through the pruned model.
    """

    split: OWL | Slope | Evolve = Slope()
    inside: BESA = BESA()

    @property
    def needs(self) -> Needs:
        """The statistics of both."""
        return tuple(dict.fromkeys((*self.split.needs, *self.inside.needs)))
