"""What is looked at in one module, on the calibration samples as they reach its block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import NumericalError
from ..maths.moments import ChannelMoments, Moments
from ..maths.pruners.units import UnitPruner
from ..maths.scores.attention import HeadDivergence
from ..maths.scores.units import Gathered, Redundancy
from ..maths.stats import Statistics, TokenSample
from ..model.blocks import Block
from ..model.cost import OneToken
from ..model.replay import Call, Recording
from ..model.units import Depth2
from ..model.watch import Watcher, attention_maps, eager, watch
from .observer import LOOK, Observer

MAPS = 16  # samples whose attention is compared: the paper's number


@dataclass(frozen=True)
class Context:
    """What every step of a run needs.

    Attributes:
        model: the whole structure.
        blocks: how many it has.
        pruner: what to do.
        device: where a block is pruned.
        observer: told of every step.
        seed: of the run.
        token: a forward of one token.
        gradients: of the loss, where a score reads them.
        looking: at the dense model as a whole, before anything goes.
    """

    model: PreTrainedModel
    blocks: int
    pruner: UnitPruner
    device: torch.device
    observer: Observer
    seed: int
    token: OneToken
    gradients: Mapping[str, Tensor] | None = None
    looking: bool = False

    def announce(self, block: Block, step: str) -> None:
        """Tell that a step begins."""
        step = f"{LOOK}{step}" if self.looking else step
        self.observer.block(block.index, self.blocks, block.name, step)

    def samples(self, block: Block, recording: Recording) -> Iterator[tuple[int, Tensor, Call]]:
        """Number, input and call of every sample at the block that the recording has reached."""
        for sample, call in enumerate(recording.calls[block.index]):
            yield sample, recording.hidden[sample].to(self.device), call

    def gather(
        self, block: Block, module: Depth2, recording: Recording | None
    ) -> tuple[Gathered, tuple[Moments, Moments]]:
        """Statistics of the module as it is, and the second level's moments: trained on, held."""
        score, width = self.pruner.score(module.unit), module.reader.shape[1]
        halves = [Moments(width if self.pruner.after else 0, self.device) for _ in range(2)]
        if recording is None:
            return Gathered(gradients=self.gradients, seed=self.seed), (halves[0], halves[1])
        extra = (ChannelMoments,) if self.pruner.compensation else ()
        kinds = tuple(dict.fromkeys((*score.second, *extra, TokenSample)))
        first = Statistics(score.first, module.sources[0][0].shape[1], self.device)
        second = Statistics(kinds, width, self.device)
        self.announce(block, "record")
        for sample, hidden, call in self.samples(block, recording):
            moments = halves[held_out(sample, len(recording.hidden))]

            reads: dict[nn.Module, Watcher] = {module.reader.module: _both(second, moments)}
            if score.first:
                reads[module.sources[0][0].module] = first.update
            watch(block, call, hidden, reads)
            self.observer.sample(sample + 1, len(recording.hidden))
        maps = self.divergence(block, module, recording) if score.wants == "maps" else None
        return Gathered(first, second, maps, self.gradients, self.seed), (halves[0], halves[1])

    def divergence(self, block: Block, module: Depth2, recording: Recording) -> Tensor:
        """Between the heads, on the first samples; the maps of one sample at a time."""
        score = self.pruner.score(module.unit)
        kind = score.kind if isinstance(score, Redundancy) else "jensen-shannon"
        divergence = HeadDivergence(module.heads, kind)
        self.announce(block, "compare")
        with eager(self.model):
            for sample, hidden, call in islice(self.samples(block, recording), MAPS):
                maps = attention_maps(block, module.reader, call, hidden, module.heads)
                divergence.update(maps)
                self.observer.sample(sample + 1, min(len(recording.hidden), MAPS))
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


def _both(second: Statistics, moments: Moments) -> Watcher:
    """Fold into the statistics, and into the moments where those are wanted."""

    def read(inputs_TI: Tensor) -> None:
        second.update(inputs_TI)
        if len(moments.sum_AA) > 1:
            moments.update(inputs_TI)

    return read


def held_out(sample: int, samples: int) -> int:
    """1 for the last quarter of the samples, at least one: least squares is tried on them."""
    return int(sample >= samples - max(samples // 4, 1))
