"""The look at a model before anything is changed: its blocks, and the proof that they replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .blocks import (
    Block,
    check_finite,
    check_outside,
    check_outside_finite,
    find_blocks,
    find_linears,
)
from .experts import one_by_one
from .probe import probe_block
from .replay import Hidden, Recording, Trace, check_chain, check_replay, record, trace
from .weights import InMemory, Weights

PROBE_TOKENS = 64


def inspect(
    model: PreTrainedModel,
    ids: Tensor,
    weights: Weights | None = None,
    further: Callable[[Block, Trace], None] = lambda block, traced: None,
) -> tuple[list[Block], Trace]:
    """The blocks with sites and roles, after the proof that they can be replayed (law 5).

    Args:
        model: in eval mode, on one device.
        ids: token ids (1, T); the first 64 are used.
        weights: of the model; None: they are in memory.
        further: what else to do with each block while it is at hand.

    Raises:
        UnsupportedModelError: a structure that prunus cannot handle yet.
        NumericalError: NaN or inf in a weight or in a block's output.
    """
    weights = weights or InMemory(model)
    modules = find_blocks(model)
    check_outside(model, modules)
    check_outside_finite(model, modules)
    linears = {name: find_linears(name, module) for name, module in modules.items()}
    ids = ids[:1, :PROBE_TOKENS].to(model.device)
    with one_by_one(model):
        with weights.passing(list(modules)):
            traced = trace(model, modules, ids)
        check_chain(list(modules), traced)
        recording = record(model, modules, [ids], traced)
        blocks = []
        for index, (name, module) in enumerate(modules.items()):
            with weights.at_hand(name):
                check_finite(linears[name])
                check_replay(index, name, module, recording, traced)
                call, hidden = traced.calls[index], traced.inputs[index]
                block = probe_block(index, name, module, linears[name], call, hidden, weights)
                further(block, traced)
                blocks.append(block)
    return blocks, traced


def start(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    traced: Trace,
    ids_ST: Tensor,
    hidden: Hidden | None = None,
) -> Recording:
    """Record the calibration samples (S, T) up to the first block; their inputs into ``hidden``."""
    modules = {block.name: block.module for block in blocks}
    return record(
        model, modules, (ids_T[None].to(model.device) for ids_T in ids_ST), traced, hidden
    )


def any_tokens(model: PreTrainedModel) -> Tensor:
    """Token ids (1, 64), for a look at a model that needs no text."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return torch.randint(0, vocabulary, (1, 64), generator=torch.Generator().manual_seed(0))
