"""Which layers are pruned, and how much each."""

from .select import select_layers
from .uniform import Uniform

__all__ = ["Uniform", "select_layers"]
