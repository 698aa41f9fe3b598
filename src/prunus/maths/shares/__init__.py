"""How much of each layer is removed."""

from .across import Across
from .besa import BESA
from .evolve import Evolve
from .owl import OWL
from .slope import Slope
from .uniform import Uniform

Split = OWL | Slope | Evolve
Allocation = Uniform | OWL | BESA | Slope | Evolve | Across


def split_of(allocation: Allocation) -> Split | None:
    """Return what decides the shares of blocks before the first is pruned; None: nothing does."""
    found = allocation.split if isinstance(allocation, Across) else allocation
    return found if isinstance(found, OWL | Slope | Evolve) else None


def learner_of(allocation: Allocation) -> BESA | None:
    """Return what learns shares within blocks as they are pruned; None: nothing does."""
    found = allocation.inside if isinstance(allocation, Across) else allocation
    return found if isinstance(found, BESA) else None


__all__ = [
    "BESA",
    "OWL",
    "Across",
    "Allocation",
    "Evolve",
    "Slope",
    "Split",
    "Uniform",
    "learner_of",
    "split_of",
]
