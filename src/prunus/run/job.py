"""What every run has: a model that was looked at, calibration samples, and a place to compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..base.errors import InputError
from ..base.team import Team
from ..methods.table import published
from ..model.blocks import Block
from ..model.inspect import first_of, inspect, start
from ..model.replay import Recording, Trace
from ..model.samples import Processed, Samples
from ..model.weights import Weights
from ..recipe import Recipe
from ..report import PruningReport
from ..storage.journal import Journal
from ..storage.scratch import Spilled
from ..text import Protocol
from .fingerprint import choices, fingerprint, texts
from .observer import Observer

Text = tuple[Samples | None, Protocol | None]
"""Calibration samples and where they came from; None where a run needs none."""
Further = Callable[[Block, Trace], None]
"""Called with each block while it is at hand during the look at the model."""


@dataclass
class Job:
    """The part of a run that is the same whether it removes weights or heads and neurons.

    Attributes:
        weights: the model and the means to have its blocks at hand.
        name: what the report calls the model.
        recipe: every choice, with defaults filled in.
        ids_ST: calibration tokens, or processed samples; None: the method needs none.
        protocol: where the samples came from.
        device: where a block is while it is pruned.
        observer: told of every step.
        spill: a folder for activations; None keeps them in memory.
        team: the processes that do it together.
        blocks: the model's blocks, in order.
        traced: a short forward pass of the model.
        recovery: the text that recovery is solved on; None: the calibration text.
    """

    weights: Weights
    name: str
    recipe: Recipe
    ids_ST: Samples | None
    protocol: Protocol | None
    device: torch.device
    observer: Observer
    spill: Path | None
    team: Team
    blocks: list[Block]
    traced: Trace
    recovery: Text | None = None

    @classmethod
    def of(
        cls,
        weights: Weights,
        name: str,
        recipe: Recipe,
        tokens: Text,
        recovery: Text | None,
        device: torch.device,
        observer: Observer,
        spill: Path | None,
        team: Team,
        further: Further | None = None,
    ) -> Job:
        """Look at the model; change nothing.

        Raises:
            UnsupportedModelError: a structure that prunus cannot handle yet.
        """
        ids_ST, protocol = tokens
        sample = first_of(ids_ST, weights.model)
        blocks, traced = inspect(weights.model, sample, weights, further or _nothing)
        return cls(
            weights, name, recipe, ids_ST, protocol, team.device(device), observer, spill, team,
            blocks, traced, recovery,
        )  # fmt: skip

    @property
    def answers(self) -> str:
        """The conversations that the model has had with the prompts, a line of JSON each."""
        said = self.ids_ST.said if isinstance(self.ids_ST, Processed) else ()
        return "".join(f"{line}\n" for line in said if line)

    @property
    def model(self) -> PreTrainedModel:
        """The whole structure."""
        return self.weights.model

    def check_same(self) -> None:
        """Raise InputError unless all processes have the same to do, and a sample each."""
        todo = {
            **choices(self.recipe),
            **texts(self.protocol, self.recovery_protocol),
        }
        told = self.team.told(todo)
        with self.team.agreed():
            for key in todo:
                if todo[key] != told[key]:
                    raise InputError(
                        f"{key} is {todo[key]!r} here and {told[key]!r} in process 0. Give all "
                        "processes the same arguments and files."
                    )
            fit_ST = self.recovery[0] if self.recovery is not None else None
            for option, ids_ST in (("samples", self.ids_ST), ("recovery-samples", fit_ST)):
                if ids_ST is not None and len(ids_ST) < self.team.size:
                    raise InputError(
                        f"{self.team.size} processes need a calibration sample each, at least; "
                        f"--{option} is {len(ids_ST)}. Give more, or start fewer processes."
                    )

    @property
    def recovery_protocol(self) -> Protocol | None:
        """Where the text of recovery came from; None: it has none of its own."""
        return self.recovery[1] if self.recovery is not None else None

    def has_done(self, touched: Sequence[int], journal: Journal | None) -> bool:
        """Whether an earlier run has finished all of these blocks; the same in all processes."""
        return bool(self.team.told(journal is not None and journal.holds(touched)))

    def report(self, begun: float, journal: Journal | None, **own: Any) -> PruningReport:
        """Report on a run that began at that ``perf_counter``; ``own`` are fields of its kind.

        Its time is that of all runs that the journal has seen, and of the answers.
        """
        earlier = journal.earlier if journal is not None else 0.0
        texts = [text for text in (self.protocol, self.recovery_protocol) if text is not None]
        answering = sum(answers.seconds for text in texts for answers in text.answered)
        paper, url = published(self.recipe.method)
        return PruningReport(
            model=self.name,
            method=self.recipe.method,
            paper=paper,
            url=url,
            protocol=self.protocol,
            recovery_protocol=self.recovery_protocol,
            seconds=earlier + answering + time.perf_counter() - begun,
            processes=self.team.size,
            **own,
        )

    def recording(
        self, samples: int | None = None, within: AbstractContextManager[Any] | None = None
    ) -> Recording | None:
        """Record this process's calibration samples, or the first of them, at the first block.

        ``within`` is entered while the model's calls are recorded.
        """
        if self.ids_ST is None:
            return None
        with within or nullcontext():
            return self.recorded(self.ids_ST[:samples])

    def recording_for_recovery(self) -> Recording | None:
        """Record this process's samples of recovery's own text; None if it has none."""
        if self.recovery is None or self.recovery[0] is None:
            return None
        return self.recorded(self.recovery[0])

    def recorded(self, chosen: Samples) -> Recording:
        """Record this process's share of these samples at the first block."""
        hidden = Spilled(self.spill) if self.spill is not None else None
        own = self.team.share(len(chosen))
        recording = start(self.model, self.blocks, self.traced, chosen[own], hidden)
        recording.first, recording.total = own.start, len(chosen)
        recording.weights = chosen[own].weights if isinstance(chosen, Processed) else None
        recording.min_tokens = self.recipe.min_tokens
        recording.texts = chosen
        return recording

    def fingerprint(self, checkpoint: str | Path) -> dict[str, Any]:
        """All that decides what comes out, flat, for a later run to compare."""
        read = texts(self.protocol, self.recovery_protocol)
        return fingerprint(checkpoint, self.recipe, read, self.device, self.team.size)


def _nothing(block: Block, traced: Trace) -> None:
    pass
