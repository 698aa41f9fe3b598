"""Evolve: shares of blocks or layers, found by mutation and selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from ...base.errors import InputError, at_least, one_of
from ..contracts import Needs, Score
from ..scores import Wanda
from .slope import Slope, check_text
from .trials import Judge, Searched, Trial

FIRST, SECOND = 16, 4  # parts of the text in the first rounds; the last reads all of it
FEWER = 4  # of so many trials of the first round, one goes on


@dataclass(frozen=True)
class Evolve:
    """A table with a share for each block, or each layer, that grows by small steps.

    Each generation is offspring of the best table so far. A mutation lowers one share by a step and
    raises another; an offspring has up to ``swaps`` of them. The offspring are judged by their
    divergence from the dense model on a sixteenth of the held-out text, the best quarter of them on
    a fourth, and the best of those on all of it: if it is lower than the parent's there, it becomes
    the parent. The first rounds take another part of the text in each generation.

    Attributes:
        score: in whose order the weights of a trial go; of a method with a score, that one.
        per: ``"block"``, or ``"layer"``: a share for each layer.
        start: the first parent: ``"uniform"``, or the better of that and of ``"slope"``.
        step: of a mutation.
        swaps: of an offspring, at most: the smaller of two draws.
        offspring: of each generation.
        generations: how many there are.
        tokens: of held-out text, at most: a quarter of the calibration windows.
        length: of the pieces that they are cut into.
        seed: of the mutations.

    Reference: Sieberling et al. 2025 (ICML), EvoPress, arXiv:2410.14649, algorithm 1. Their levels
    come from a database of pruned layers, and they swap between layers of one size alone; here a
    trial masks the dense weights by the score, and the budget is settled whatever the sizes.
    """

    score: Score = Wanda()
    per: Literal["block", "layer"] = "block"
    start: Literal["uniform", "slope"] = "slope"
    step: float = 0.02
    swaps: int = 3
    offspring: int = 16
    generations: int = 32
    tokens: int = 8192
    length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_text(self.tokens, self.length)
        at_least(1, swaps=self.swaps, offspring=self.offspring)
        at_least(0, generations=self.generations)
        one_of(self, per=("block", "layer"), start=("uniform", "slope"))
        if not 0 < self.step < 1:
            raise InputError(f"The step of a mutation is between 0 and 1, not {self.step:g}.")

    @property
    def needs(self) -> Needs:
        """The statistics of the score."""
        return self.score.needs

    def rounds(self, pieces: int) -> list[tuple[int, int]]:
        """Return how many trials are judged, each on how many pieces of text, time after time."""
        first = Slope().rounds(pieces) if self.start == "slope" else [(1, pieces)]
        return first + self._rounds(pieces) * self.generations

    def search(self, depth_G: Sequence[int], share: float, judge: Judge) -> Searched:
        """Find a table.

        Args:
            depth_G: index of each group's block, rising.
            share: that all groups have in the mean.
            judge: of trials.
        """
        parent, uniform, best = self._first(depth_G, share, judge)
        draw, losses = Random(self.seed), [best]
        for generation in range(self.generations):
            trials = [self._child(parent, draw) for _ in range(self.offspring)]
            for left, count in self._rounds(judge.pieces):
                begin = generation * count
                said = judge(trials[:left], [(begin + i) % judge.pieces for i in range(count)])
                order = sorted(range(left), key=lambda i: said[i])
                trials = [trials[i] for i in order]
            if min(said) < best:
                parent, best = trials[0], min(said)
            losses.append(best)
        steps = [float(i) for i in range(len(losses))]
        return Searched(parent, uniform, "generation", steps, losses)

    def _first(
        self, depth_G: Sequence[int], share: float, judge: Judge
    ) -> tuple[Trial, float, float]:
        """Return the first parent, the loss of equal shares, and its own."""
        if self.start == "slope":
            found = Slope().search(depth_G, share, judge)
            return found.trial, found.uniform, found.loss
        uniform: Trial = (0.0,) * len(depth_G)
        loss = judge([uniform], range(judge.pieces))[0]
        return uniform, loss, loss

    def _rounds(self, pieces: int) -> list[tuple[int, int]]:
        """Return the rounds of a generation: of the trials of one, the best go on to the next."""
        trials = self.offspring
        some = max(trials // FEWER, 1)
        return [(trials, max(pieces // FIRST, 1)), (some, max(pieces // SECOND, 1)), (1, pieces)]

    def _child(self, parent: Trial, draw: Random) -> Trial:
        child = list(parent)
        for _ in range(min(draw.randint(1, self.swaps), draw.randint(1, self.swaps))):
            lower, higher = draw.sample(range(len(child)), 2)
            child[lower] -= self.step
            child[higher] += self.step
        return tuple(child)
