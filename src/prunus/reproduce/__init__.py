"""The tables and figures of the five papers: what they measure, their numbers, and ours beside."""

from .catalogue import find, papers
from .entry import Entry, Measured
from .run import Asked, measure

__all__ = ["Asked", "Entry", "Measured", "find", "measure", "papers"]
