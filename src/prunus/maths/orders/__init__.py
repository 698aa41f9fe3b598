"""Orders of the input channels under which N:M keeps more of a score."""

from .assignment import Assignment
from .greedy import Greedy
from .heuristic import Heuristic
from .retained import Retained

__all__ = ["Assignment", "Greedy", "Heuristic", "Retained"]
