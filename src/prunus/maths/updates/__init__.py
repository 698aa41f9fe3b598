"""New values for the kept weights, on a fixed mask."""

from .keep import Keep
from .least_squares import LeastSquares
from .sparsegpt import SparseGPTSweep

__all__ = ["Keep", "LeastSquares", "SparseGPTSweep"]
