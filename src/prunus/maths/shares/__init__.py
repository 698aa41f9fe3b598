"""How much of each layer is removed."""

from .besa import BESA
from .owl import OWL
from .uniform import Uniform

Allocation = Uniform | OWL | BESA

__all__ = ["BESA", "OWL", "Allocation", "Uniform"]
