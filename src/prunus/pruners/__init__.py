"""Compositions that the engine runs."""

from .compose import Compose
from .dass import DaSS
from .each_layer import EachLayer
from .in_order import InOrder
from .mrp import MRP
from .sparsegpt import SparseGPT

__all__ = ["MRP", "Compose", "DaSS", "EachLayer", "InOrder", "SparseGPT"]
