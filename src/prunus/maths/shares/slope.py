"""Slope: the share of a block is a straight line over depth, found by line search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...base.errors import InputError, at_least
from ..contracts import Needs, Score
from ..scores import Wanda
from .trials import Judge, Searched, Trial


@dataclass(frozen=True)
class Slope:
    """s_l = s + β · (l − (L − 1) / 2): a line over the L blocks, with one β for the whole model.

    β minimises the divergence of the pruned model from the dense one on held-out text, found by
    line search. A positive β removes more from later blocks.

    Attributes:
        score: in whose order the weights of a trial go; of a method with a score, that one.
        reach: the largest difference between the share of a block and the mean.
        halvings: of the distance between points, which begins at half of the reach.
        tokens: of held-out text, at most: a quarter of the calibration windows.
        length: of the pieces that they are cut into.

    Reference: Huang et al. 2025 (ICML), Determining Layer-wise Sparsity for Large Language Models
    Through a Theoretical Perspective, arXiv:2502.14770, where the common difference is at least 0
    and comes from a grid search.
    """

    score: Score = Wanda()
    reach: float = 0.2
    halvings: int = 3
    tokens: int = 8192
    length: int = 256
    per: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        check_text(self.tokens, self.length)
        at_least(0, halvings=self.halvings)
        if not 0 < self.reach <= 1:
            raise InputError(f"A slope's reach is above 0 and at most 1, not {self.reach:g}.")

    @property
    def needs(self) -> Needs:
        """The statistics of the score."""
        return self.score.needs

    def rounds(self, pieces: int) -> list[tuple[int, int]]:
        """Return how many trials are judged, each on how many pieces of text, time after time."""
        return [(5, pieces), *[(2, pieces)] * self.halvings]

    def search(self, depth_G: Sequence[int], share: float, judge: Judge) -> Searched:
        """Find β.

        Args:
            depth_G: index of each group's block, rising.
            share: that all groups have in the mean.
            judge: of trials.
        """
        least, most = min(depth_G), max(depth_G)
        middle, half = (least + most) / 2, max((most - least) / 2, 1)

        def trial(rise: float) -> Trial:
            return tuple(rise * (depth - middle) / half for depth in depth_G)

        def judged(rises: Sequence[float]) -> list[float]:
            return judge([trial(rise) for rise in rises], range(judge.pieces))

        reach = min(self.reach, share, 1 - share)
        found = line_search(judged, reach, self.halvings)
        rises = sorted(found)
        return Searched(
            trial=trial(min(found, key=lambda rise: found[rise])),
            uniform=found[0.0],
            over="slope",
            steps=[rise / half for rise in rises],
            losses=[found[rise] for rise in rises],
        )


def line_search(
    function: Callable[[Sequence[float]], list[float]], reach: float, halvings: int
) -> dict[float, float]:
    """Return the points of [−reach, reach] that were looked at, and the function there.

    It starts with five, half the reach apart. Then the two on both sides of the best are tried, at
    half the distance of before. The minimum of a function that falls and then rises is no further
    from the best point than the last distance.
    """
    step = reach / 2
    first = [0.0, -step, step, -reach, reach]  # of equals the first is taken: the uniform one
    known = dict(zip(first, function(first), strict=True))
    for _ in range(halvings):
        step /= 2
        best = min(known, key=lambda point: known[point])
        beside = [x for x in (best - step, best + step) if abs(x) <= reach]
        known.update(zip(beside, function(beside), strict=True))
    return known


def check_text(tokens: int, length: int) -> None:
    """Raise InputError for held-out text that cannot be."""
    if length < 2 or tokens < length:
        raise InputError(
            "A search needs pieces of at least 2 tokens, and tokens for one of them; got length "
            f"{length} and tokens {tokens}."
        )
