"""Compositions of parts that the loop runs."""

from .activation_aware import ActivationAware
from .compose import Compose
from .dass import DaSS
from .each_layer import EachLayer
from .in_order import InOrder
from .mrp import MRP
from .on_grid import OnGrid
from .sparsegpt import SparseGPT

__all__ = [
    "MRP",
    "ActivationAware",
    "Compose",
    "DaSS",
    "EachLayer",
    "InOrder",
    "OnGrid",
    "SparseGPT",
]
