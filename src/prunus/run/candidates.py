"""Pruned candidates, run side by side without pruning the model.

One pass over the dense model scores every layer and keeps the depth of each weight, an int16. A
candidate is then the dense weights without those that lie no deeper than its shares. All candidates
go through a block while it is at hand; those that have been alike so far go as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..maths.contracts import Needs, Pattern, Plan, Score, requested
from ..maths.shares.trials import depths, threshold
from ..model.blocks import Block, Layer
from ..model.replay import Hidden, Recording, around, with_hidden
from ..model.samples import Sample, Samples, each
from ..storage.scratch import Spilled
from .job import Job
from .observer import Silent
from .passes import dense_pass
from .unit import Unit
from .walk import walk


@torch.no_grad()
def dense_depths(
    job: Job, samples: Samples, plan: Plan, score: Score, pattern: Callable[[Layer], Pattern]
) -> Hidden:
    """Return the depth of every planned weight, one flat tensor for each block up to the last.

    Args:
        job: the model and its text; spilled as its activations are.
        samples: of its text, that the score reads.
        plan: names the layers.
        score: of them, on the dense stream.
        pattern: of each layer's mask.
    """
    needs: Needs = score.needs
    kept: Hidden = [] if job.spill is None else Spilled(job.spill)
    last = max(block.index for block in job.blocks if block.planned(plan))
    recording, empty = job.recorded(samples), torch.zeros(1, dtype=torch.int16)
    for block, stats in dense_pass(
        job.blocks, last, recording, needs, device=job.device, observer=job.observer, team=job.team
    ):
        found = [
            depths(score(layer.weight_OI, stats[layer.site]), pattern(layer)).flatten().cpu()
            for layer in block.planned(plan)
        ]
        kept.append(torch.cat(found) if found else empty)
    return kept


@dataclass
class Candidates:
    """What is needed to run candidates on some text.

    Attributes:
        job: the model.
        text: this process's samples of it, as they were recorded.
        samples: the same as token ids, or as a processor made them.
        depths: from ``dense_depths``.
    """

    job: Job
    text: Recording
    samples: Samples
    depths: Hidden

    @torch.no_grad()
    def logits(
        self, plans: Sequence[Plan], chosen: Sequence[int]
    ) -> Iterator[tuple[list[int], int, Tensor]]:
        """Yield numbers of plans, a sample, and the logits (T, V) that all of these put out.

        Args:
            plans: the same layers in each, with their shares; empty ones leave the model dense.
            chosen: samples by their number here.
        """
        job, groups = self.job, [(list(range(len(plans))), self._beginning(chosen))]
        for block in walk(job.blocks, len(job.blocks) - 1, None, job.device, Silent()):
            groups = [apart for group in groups for apart in self._through(block, plans, *group)]
            job.observer.sample(block.index + 1, len(job.blocks))
        samples: list[Tensor | Sample] = list(each(self.samples))
        with _outside_on(job.device, job):
            for numbers, text in groups:
                for position, sample in enumerate(chosen):
                    yield numbers, sample, end(job, samples[sample], text.hidden[position])

    def _beginning(self, chosen: Sequence[int]) -> Recording:
        calls = [[block[i] for i in chosen] for block in self.text.calls]
        return replace(
            self.text, hidden=[self.text.hidden[i] for i in chosen], calls=calls, first=0
        )

    def _through(
        self, block: Block, plans: Sequence[Plan], numbers: Sequence[int], text: Recording
    ) -> Iterator[tuple[list[int], Recording]]:
        """Yield the plans that are still alike behind the block, and their text there."""
        layers = block.planned(plans[0])
        parts: dict[tuple[int, ...], list[int]] = {}
        for number in numbers:
            shares = [requested(plans[number][layer.name]) for layer in layers]
            parts.setdefault(tuple(map(threshold, shares)), []).append(number)
        for levels, part in parts.items():
            weights, own = self._masked(block, layers, levels), text.copy()
            unit = Unit([block], own, [], self.job.device)
            for sample in range(len(own.hidden)):
                own.hidden[sample] = unit.forward(sample, weights)
            own.calls[block.index] = []
            yield part, own

    def _masked(
        self, block: Block, layers: Sequence[Layer], levels: Sequence[int]
    ) -> Mapping[str, Tensor]:
        if not layers:
            return {}
        sizes = [layer.weight_OI.numel() for layer in layers]
        parts = self.depths[block.index].to(self.job.device).split(sizes)
        return {
            layer.name: layer.weight_OI.masked_fill(depth.view(layer.shape) <= level, 0)
            for layer, depth, level in zip(layers, parts, levels, strict=True)
        }


def end(job: Job, sample: Tensor | Sample, hidden: Tensor) -> Tensor:
    """Return the logits (T, V) of a sample whose last block puts out these hidden states."""
    outputs = [with_hidden(output, hidden) for output in job.traced.outputs]
    return around(job.model, [block.module for block in job.blocks], sample, outputs)[1][0]


@contextmanager
def _outside_on(device: torch.device, job: Job) -> Iterator[None]:
    """Have all that lies outside of the blocks on the device; then put it back."""
    inside = {id(x) for b in job.blocks for x in (*b.module.parameters(), *b.module.buffers())}
    outside = [*job.model.parameters(), *job.model.buffers()]
    homes = [(x, x.data) for x in outside if id(x) not in inside and x.device != device]
    for tensor, home in homes:
        tensor.data = home.to(device)
    try:
        yield
    finally:
        for tensor, home in homes:
            tensor.data = home
