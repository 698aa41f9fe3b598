"""A better mask of the same pattern and sparsity."""

from .swaps import Swaps

__all__ = ["Swaps"]
