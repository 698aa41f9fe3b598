"""New values for the kept weights, on a fixed mask."""

from .keep import Keep

__all__ = ["Keep"]
