"""The search for shares of blocks or layers, by candidates that held-out text judges."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..base.errors import NumericalError
from ..maths.contracts import Pattern, Plan
from ..maths.held_out import groups_of, last_quarter
from ..maths.likeliest import Likeliest
from ..maths.shares import Evolve, Slope
from ..maths.shares.budget import total
from ..maths.shares.trials import Trial
from ..model.blocks import Layer
from ..model.samples import Samples, token_ids
from ..storage.journal import Journal
from .candidates import Candidates, dense_depths
from .job import Job

Settled = Callable[[Sequence[Layer], Sequence[Tensor]], Plan]
"""Shares that meet the budget, from those of a trial."""


@dataclass
class HeldOut:
    """A ``Judge`` of trials, by text that no score has seen.

    Attributes:
        job: the model and its text.
        search: whose trials they are.
        groups: layers that have a share together.
        pattern: of each layer's mask.
        settled: makes the shares of a trial exact.
        journal: knows what earlier runs found, and is told what this one finds.
        asked: how often so far.
        seconds: spent on it, in all runs.
    """

    job: Job
    search: Slope | Evolve
    groups: Sequence[Sequence[Layer]]
    pattern: Callable[[Layer], Pattern]
    settled: Settled
    journal: Journal | None
    asked: int = 0
    seconds: float = 0.0
    _candidates: Candidates | None = None
    _dense: list[Likeliest] = field(default_factory=list)

    @property
    def pieces(self) -> int:
        """The number of pieces of text, in all processes."""
        return len(self._text[1])

    @cached_property
    def _text(self) -> tuple[Samples, Samples]:
        return divided(self.job, self.search)

    @property
    def tokens(self) -> int:
        """The number of tokens that judge, in all processes."""
        return self._text[1].numel()

    @property
    def questions(self) -> int:
        """How often it will have been asked."""
        return len(self.search.rounds(self.pieces))

    def plan(self, trial: Trial) -> Plan:
        """Return the shares of a trial, exact."""
        pairs = [
            (layer, torch.tensor([share], dtype=torch.float64))
            for layers, share in zip(self.groups, trial, strict=True)
            for layer in layers
        ]
        return self.settled([layer for layer, _ in pairs], [share for _, share in pairs])

    def __call__(self, trials: Sequence[Trial], pieces: Sequence[int]) -> list[float]:
        """Return the mean divergence of each trial in nats, unless an earlier run has found it.

        Raises:
            NumericalError: a candidate puts out NaN or inf.
        """
        job, number = self.job, self.asked
        self.asked += 1
        known = job.team.told(self.journal.searched.get(number) if self.journal else None)
        if known is None:
            begun = time.perf_counter()
            candidates = self._candidates or self._look()
            job.observer.block(number, self.questions, f"{len(trials)} candidates", "search")
            losses = self._judged(candidates, [self.plan(trial) for trial in trials], pieces)
            known = {"losses": losses, "seconds": time.perf_counter() - begun}
            if self.journal is not None:
                self.journal.note_searched(number, known)
        self.seconds += known["seconds"]
        return list(known["losses"])

    def _look(self) -> Candidates:
        """Look at the dense model: at every weight, and at what it says of the text."""
        job, (scoring, judging) = self.job, self._text
        plan = self.plan((0.0,) * len(self.groups))
        depths = dense_depths(job, scoring, plan, self.search.score, self.pattern)
        own = job.team.share(len(judging))
        self._candidates = Candidates(job, job.recorded(judging), judging[own], depths)
        job.observer.block(0, self.questions, "the dense model", "search")
        with job.team.agreed():
            for _, _, logits_TV in self._candidates.logits([{}], range(own.stop - own.start)):
                self._dense.append(Likeliest.of(_finite(logits_TV)))
        return self._candidates

    def _judged(
        self, candidates: Candidates, plans: Sequence[Plan], pieces: Sequence[int]
    ) -> list[float]:
        """Return the mean divergence of each plan on these pieces, which processes share."""
        losses, tokens, first = [0.0] * len(plans), 0, candidates.text.first
        own = [piece - first for piece in pieces if 0 <= piece - first < len(self._dense)]
        with self.job.team.agreed():
            for numbers, piece, logits_TV in candidates.logits(plans, own):
                loss = self._dense[piece].divergence(_finite(logits_TV))
                for number in numbers:
                    losses[number] += loss
            tokens = sum(len(self._dense[piece].ids_TK) for piece in own)
        *sums, count = self.job.team.total(*losses, tokens)
        return [loss / count for loss in sums]


def divided(job: Job, search: Slope | Evolve) -> tuple[Samples, Samples]:
    """Return the calibration samples that score, and the pieces of the others, which judge.

    Of a single sample, or where each process would not have one to score with, all score.
    """
    ids_ST = job.ids_ST
    assert ids_ST is not None  # an allocation that searches is given text
    held = last_quarter(len(ids_ST), groups_of(token_ids(ids_ST)))
    scoring = [i for i in range(len(ids_ST)) if i not in held]
    judging = ids_ST[held]
    pieces, length = pieces_of(search, len(ids_ST), ids_ST.numel() // len(ids_ST))
    if isinstance(judging, Tensor):
        whole = judging.shape[1] // length * length
        judging = judging[:, :whole].reshape(-1, length)
    return (ids_ST[scoring] if len(scoring) >= job.team.size else ids_ST), judging[:pieces]


def pieces_of(search: Slope | Evolve, samples: int, length: int) -> tuple[int, int]:
    """Return how many pieces of held-out text there are, and the tokens of each.

    Samples of a processor stay whole: of those there may be fewer, and longer ones.
    """
    piece = min(search.length, length)
    most = len(last_quarter(samples)) * (length // piece)
    return max(min(most, search.tokens // piece), 1), piece


def searched(judge: HeldOut, plan: Plan) -> tuple[Plan, dict[str, Any]]:
    """Search for shares; return them, and notes for the report.

    Args:
        judge: of trials.
        plan: the shares before the search, whose mean stays.
    """
    search, layers = judge.search, [layer for group in judge.groups for layer in group]
    depth_G = [group[0].block for group in judge.groups]
    found = search.search(depth_G, float(total(layers, plan)[1]), judge)
    return judge.plan(found.trial), {
        "over": found.over,
        "steps": found.steps,
        "loss": found.losses,
        "uniform": found.uniform,
        "best": found.loss,
        "tokens": judge.tokens,
        "seconds": judge.seconds,
    }


def _finite(logits_TV: Tensor) -> Tensor:
    if not bool(logits_TV.isfinite().all()):
        raise NumericalError(
            "A candidate's logits are NaN or inf on held-out text. Use a wider dtype (--dtype "
            "float32), or --allocation uniform."
        )
    return logits_TV
