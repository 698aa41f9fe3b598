"""What one token costs: multiply-adds, counted by running it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..blocks import Block
from ..experts import one_by_one
from ..replay import Trace, trace
from ..survey import any_tokens
from ..weights import Weights


@dataclass(frozen=True)
class OneToken:
    """A forward of one token alone, so that attention to others is next to nothing.

    Attributes:
        multiply_adds: of the whole dense model.
        traced: what its blocks were given.
    """

    multiply_adds: int
    traced: Trace

    @classmethod
    def through(cls, weights: Weights, blocks: list[Block]) -> OneToken:
        """The model as it is."""
        model, modules = weights.model, {block.name: block.module for block in blocks}
        token = any_tokens(model)[:, :1].to(model.device)
        with _counter() as counter, one_by_one(model), weights.passing(list(modules)):
            traced = trace(model, modules, token)
        return cls(int(counter.get_total_flops()) // 2, traced)

    @torch.no_grad()
    def of(self, block: Block, device: torch.device) -> int:
        """Of a block that is at hand there, as it is now."""
        call, hidden = self.traced.calls[block.index], self.traced.inputs[block.index]
        with _counter() as counter, one_by_one(block.weights.model):
            call(block.module, hidden.to(device, copy=True))
        return int(counter.get_total_flops()) // 2


def _counter() -> FlopCounterMode:
    """It sees experts only where they run one by one."""
    return FlopCounterMode(display=False)
