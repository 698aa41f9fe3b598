"""Compare methods on one model by one protocol."""

from .grid import Grid, Protocol
from .run import compare
from .table import Table

__all__ = ["Grid", "Protocol", "Table", "compare"]
