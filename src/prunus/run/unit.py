"""Recorded calls of blocks, replayed with other weights and a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ..maths.contracts import Precision
from ..model.blocks import Block
from ..model.replay import Hidden, Recording


@dataclass(frozen=True)
class Unit:
    """Consecutive blocks whose error is measured behind the last: a ``Replay``.

    Attributes:
        blocks: at hand.
        recording: at the first of them, on the pruned stream.
        targets: what should come out of the last.
        device: where they are.
        fixed: weights (O, I) in place of the blocks' own, by layer name, whatever else is given.
        precision: what matrices are multiplied in, see ``Precision``.
    """

    blocks: Sequence[Block]
    recording: Recording
    targets: Hidden
    device: torch.device
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    precision: Precision = "model"

    @property
    def samples(self) -> int:
        """How many calls were recorded, in all processes."""
        return self.recording.samples

    def has(self, sample: int) -> bool:
        """Whether this process has that one."""
        return 0 <= sample - self.recording.first < len(self.recording.hidden)

    def forward(self, sample: int, weights: Mapping[str, Tensor]) -> Tensor:
        """Run the calls one behind the other, with these weights in place of the blocks' own."""
        here = sample - self.recording.first
        hidden = self.recording.hidden[here].to(self.device)
        for block in self.blocks:
            call = self.recording.calls[block.index][here]
            with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bfloat16"):
                hidden = call(replaced(block, {**weights, **self.fixed}), hidden)
        return hidden

    def target(self, sample: int) -> Tensor:
        """Return what should come out."""
        return self.targets[sample - self.recording.first].to(self.device)


def replaced(block: Block, weights: Mapping[str, Tensor]) -> Any:
    """Return a call of the block with some of its weights replaced.

    ``weights`` are (O, I) by layer name; other parameters are as stored, by their full names.
    """
    own: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    stacks: dict[str, list[Tensor]] = {}
    prefix = f"{block.name}."
    parameters = dict(block.module.named_parameters())
    for layer in block.layers:
        weight = weights.get(layer.name)
        if weight is None:
            continue
        name = layer.parameter.removeprefix(prefix)
        stored = (weight.T if layer.transposed else weight).to(parameters[name].dtype)
        if layer.expert is None:
            own[name] = stored
        else:
            experts.setdefault(name, {})[layer.expert] = stored
    for name, found in experts.items():
        whole = parameters[name].detach()
        stacks[name] = [found.get(i, whole[i]) for i in range(len(whole))]
    own |= {name: torch.stack(stack) for name, stack in stacks.items()}
    for name, tensor in weights.items():
        inside = name.removeprefix(prefix)
        if inside in parameters and inside not in own:
            own[inside] = tensor.to(parameters[inside].dtype)
    return lambda *args, **kwargs: functional_call(block.module, own, args, kwargs)
