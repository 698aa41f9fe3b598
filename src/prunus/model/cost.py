"""Multiply-adds of one token, counted by running it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from .blocks import Block, find_blocks
from .experts import one_by_one
from .inspect import any_tokens
from .replay import Call, Recording, Trace, around, hidden_of, record, with_hidden


@dataclass
class OneToken:
    """A forward pass of one token alone, so that attention to others is almost nothing.

    It passes through one block after the other while each is at hand.

    Attributes:
        multiply_adds: of what it has been through.
        calls: of the blocks.
        inputs: of the blocks.
    """

    multiply_adds: int = 0
    calls: list[Call] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    _recording: Recording | None = None

    def through(self, block: Block, traced: Trace) -> None:
        """Continue through the next block, which is dense."""
        model = block.weights.model
        if self._recording is None:
            self._recording = record(model, find_blocks(model), [_token(model)], traced)
        self.calls.append(self._recording.calls[block.index][0])
        self.inputs.append(self._recording.hidden[0].clone())
        with _counting(model) as counter:
            self._recording.advance(block.index, block.module, model.device)
        self.multiply_adds += _half(counter)

    def around(self, model: PreTrainedModel, traced: Trace) -> None:
        """Count what lies outside of the blocks too."""
        ends = [with_hidden(output, hidden_of(output)[:, :1]) for output in traced.outputs]
        with _counting(model) as counter:
            around(model, list(find_blocks(model).values()), _token(model), ends)
        self.multiply_adds += _half(counter)

    def of(self, block: Block, device: torch.device) -> int:
        """Count the multiply-adds of a block that is at hand there, as it is now."""
        call, hidden = self.calls[block.index], self.inputs[block.index]
        with _counting(block.weights.model) as counter:
            call(block.module, hidden.to(device, copy=True))
        return _half(counter)


def _token(model: PreTrainedModel) -> Tensor:
    return any_tokens(model)[:, :1].to(model.device)


@contextmanager
def _counting(model: PreTrainedModel) -> Iterator[FlopCounterMode]:
    """Count operations; experts are seen only where they run one by one."""
    with torch.no_grad(), one_by_one(model), FlopCounterMode(display=False) as counter:
        yield counter


def _half(counter: FlopCounterMode) -> int:
    """Convert operations to multiply-adds, which are two operations each."""
    return int(counter.get_total_flops()) // 2
