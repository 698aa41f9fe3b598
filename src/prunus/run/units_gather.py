"""What is looked at in one module, on the calibration samples as they reach its block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import NumericalError
from ..base.team import ALONE, Team
from ..maths.moments import ChannelMoments, Moments
from ..maths.pruners.units import UnitPruner
from ..maths.scores.attention import HeadDivergence
from ..maths.scores.redundancy import Redundancy
from ..maths.scores.units import Curvature, Gathered
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
        curvatures: of the loss, likewise.
        team: the processes that do this together.
        behind: the first block that loses nothing and is recovered alone; None: there is none.
    """

    model: PreTrainedModel
    blocks: int
    pruner: UnitPruner
    device: torch.device
    observer: Observer
    seed: int
    token: OneToken
    gradients: Mapping[str, Tensor] | None = None
    curvatures: Mapping[str, Curvature] | None = None
    team: Team = ALONE
    behind: int | None = None

    def announce(self, block: Block, step: str) -> None:
        """Tell that a step begins."""
        self.observer.block(block.index, self.blocks, block.name, step)

    def gather(
        self,
        block: Block,
        module: Depth2,
        recording: Recording | None,
        also: Halves | None = None,
    ) -> Gathered:
        """Return the module's statistics; ``also`` takes the second level's inputs in passing."""
        score = self.pruner.score(module.unit)
        loss: dict[str, Any] = {
            "gradients": self.gradients,
            "curvatures": self.curvatures,
            "seed": self.seed,
        }
        if recording is None:
            return Gathered(**loss)
        extra = (ChannelMoments,) if self.pruner.compensation else ()
        kinds = tuple(dict.fromkeys((*score.second, *extra, TokenSample)))
        wanted = {"second": (module.reader, kinds)}
        if score.first:
            wanted["first"] = (module.sources[0][0], score.first)
        self.announce(block, "record")
        stats = gather(
            block, recording, wanted, self.device, self.observer, self.team, then="stop",
            also={module.reader.module: also.split} if also is not None else None,
        )  # fmt: skip
        maps = self.divergence(block, module, recording) if score.wants == "maps" else None
        first: dict[str, Any] = {"first": stats["first"]} if score.first else {}
        return Gathered(**first, second=stats["second"], divergence_HH=maps, **loss)

    def fill(self, halves: Halves, block: Block, module: Depth2, recording: Recording) -> None:
        """Give the second level's inputs on this text to ``halves``, in a pass of its own."""
        self.announce(block, "recover")
        gather(
            block, recording, {"second": (module.reader, ())}, self.device, self.observer,
            self.team, then="stop", also={module.reader.module: halves.split},
        )  # fmt: skip

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
        """Scores (U, N) on the CPU; of ``module.scored``, query heads one by one.

        Raises:
            NumericalError: one of them is NaN.
        """
        score_UN = self.pruner.score(module.unit)(module.scored, gathered).to(self.device)
        self.team.broadcast_(score_UN)
        score_UN = score_UN.cpu()
        if bool(score_UN.isnan().any()):
            raise NumericalError(f"{module.reader.name}: the score of a unit is NaN.")
        return score_UN


class Halves:
    """Moments of the second level's inputs: on the text to train on, and on what is held out."""

    def __init__(self, width: int, held: Sequence[int], device: torch.device) -> None:
        self.train, self.held = (Moments(width, device) for _ in range(2))
        self.numbers = frozenset(held)

    def split(self, number: int, inputs_TI: Tensor) -> None:
        """Add the inputs of one sample."""
        (self.held if number in self.numbers else self.train).update(inputs_TI)

    def merge(self, team: Team) -> None:
        """Add up all processes' sums."""
        self.train.merge(team)
        self.held.merge(team)
