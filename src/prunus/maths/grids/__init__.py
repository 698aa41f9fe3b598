"""Weights on integer grids that have an exact zero."""

from .grid import Grid, Quantized

__all__ = ["Grid", "Quantized"]
