"""Kernels in C that multiply packed weights, and how this process finds and chooses them."""

from .library import Library, library

__all__ = ["Library", "library"]
