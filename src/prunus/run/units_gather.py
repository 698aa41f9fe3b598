"""What is looked at in one module, on the calibration samples as they reach its block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import NumericalError
from ..base.team import ALONE, Team
from ..maths.moments import ChannelMoments, Moments
from ..maths.pruners.units import UnitPruner
from ..maths.scores.attention import HeadDivergence
from ..maths.scores.redundancy import Redundancy
from ..maths.scores.units import Gathered
from ..maths.stats import TokenSample
from ..model.blocks import Block
from ..model.cost import OneToken
from ..model.replay import Recording
from ..model.units import Depth2
from ..model.watch import attention_maps, eager
from .gather import gather, samples_at
from .observer import Observer

MAPS = 16  # samples whose attention is compared: the paper's number


@dataclass(frozen=True)
class Context:
    """What every step of a run needs.

    Attributes:
        model: the whole structure.
        blocks: how many it has.
        pruner: what to do.
        device: where a block is while it is pruned.
        observer: told of every step.
        seed: of the run.
        token: a forward of one token.
        gradients: of the loss, where a score reads them.
        team: the processes that do this together.
    """

    model: PreTrainedModel
    blocks: int
    pruner: UnitPruner
    device: torch.device
    observer: Observer
    seed: int
    token: OneToken
    gradients: Mapping[str, Tensor] | None = None
    team: Team = ALONE

    def announce(self, block: Block, step: str) -> None:
        """Tell that a step begins."""
        self.observer.block(block.index, self.blocks, block.name, step)

    def gather(
        self, block: Block, module: Depth2, recording: Recording | None
    ) -> tuple[Gathered, tuple[Moments, Moments]]:
        """Return the module's statistics, and the second level's moments: to train on, held out."""
        score, width = self.pruner.score(module.unit), module.reader.shape[1]
        train, held = (Moments(width if self.pruner.after else 0, self.device) for _ in range(2))
        if recording is None:
            return Gathered(gradients=self.gradients, seed=self.seed), (train, held)
        extra = (ChannelMoments,) if self.pruner.compensation else ()
        kinds = tuple(dict.fromkeys((*score.second, *extra, TokenSample)))
        wanted = {"second": (module.reader, kinds)}
        if score.first:
            wanted["first"] = (module.sources[0][0], score.first)

        def split(number: int, inputs_TI: Tensor) -> None:
            (held if held_out(number, recording.samples) else train).update(inputs_TI)

        self.announce(block, "record")
        stats = gather(
            block, recording, wanted, self.device, self.observer, self.team, then="stop",
            also={module.reader.module: split} if self.pruner.after else None,
        )  # fmt: skip
        if self.pruner.after:
            train.merge(self.team)
            held.merge(self.team)
        maps = self.divergence(block, module, recording) if score.wants == "maps" else None
        first = {"first": stats["first"]} if score.first else {}
        found = Gathered(
            **first, second=stats["second"], divergence_HH=maps, gradients=self.gradients,
            seed=self.seed,
        )  # fmt: skip
        return found, (train, held)

    def divergence(self, block: Block, module: Depth2, recording: Recording) -> Tensor:
        """Compare the heads on the first samples, holding the maps of one sample at a time."""
        score = self.pruner.score(module.unit)
        kind = score.kind if isinstance(score, Redundancy) else "jensen-shannon"
        divergence = HeadDivergence(module.heads, kind)
        self.announce(block, "compare")
        few = recording.beginning(MAPS)
        with self.team.agreed(), eager(self.model):
            for _, hidden, call in samples_at(block, few, self.device, self.observer):
                divergence.update(attention_maps(block, module.reader, call, hidden, module.heads))
        divergence.merge(self.team)
        return divergence.matrix_HH

    def scored(self, block: Block, module: Depth2, gathered: Gathered) -> Tensor:
        """Scores (U, N) on the CPU.

        Raises:
            NumericalError: one of them is NaN.
        """
        score_UN = self.pruner.score(module.unit)(module, gathered).cpu()
        if bool(score_UN.isnan().any()):
            raise NumericalError(f"{module.reader.name}: the score of a unit is NaN.")
        return score_UN


def held_out(sample: int, samples: int) -> int:
    """1 for the last quarter of the samples, at least one: least squares is tried on them."""
    return int(sample >= samples - max(samples // 4, 1))
