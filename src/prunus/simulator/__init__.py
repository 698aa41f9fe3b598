"""Models of hardware that nobody has on the desk."""

from .vitcod import Cycles, ViTCoD

__all__ = ["Cycles", "ViTCoD"]
