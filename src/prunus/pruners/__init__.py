"""Compositions that the engine runs."""

from .compose import Compose
from .dass import DaSS
from .each_layer import EachLayer

__all__ = ["Compose", "DaSS", "EachLayer"]
