"""The look at a model before anything is changed: its blocks, and the proof that they replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from .causality import check_causal
from .experts import one_by_one
from .replay import Hidden, Recording, Trace, check_chain, check_replay, record, trace
from .roles import probe_block
from .samples import Processed, Sample, Samples, each
from .weights import InMemory, Weights

PROBE_TOKENS = 64


def inspect(
    model: PreTrainedModel,
    sample: Tensor | Sample,
    weights: Weights | None = None,
    further: Callable[[Block, Trace], None] = lambda block, traced: None,
) -> tuple[list[Block], Trace]:
    """Find the blocks with sites and roles, and prove that they can be replayed.

    Args:
        model: in eval mode, on one device.
        sample: token ids (1, T), of which the first 64 are used, or a whole sample.
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
    if isinstance(sample, Tensor):
        sample = sample[:1, :PROBE_TOKENS]
    with one_by_one(model):
        with weights.passing(list(modules)):
            traced = trace(model, modules, sample)
        recording = record(model, modules, [sample], traced)
        check_chain(list(modules), recording, traced)
        blocks = []
        for index, (name, module) in enumerate(modules.items()):
            with weights.at_hand(name):
                check_finite(linears[name])
                check_replay(index, name, module, recording, traced)
                call, hidden = traced.calls[index], traced.inputs[index]
                check_causal(name, module, call, hidden)
                block = probe_block(index, name, module, linears[name], call, hidden, weights)
                further(block, traced)
                blocks.append(block)
    return blocks, traced


def start(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    traced: Trace,
    samples: Samples,
    hidden: Hidden | None = None,
) -> Recording:
    """Record the calibration samples up to the first block; their inputs go into ``hidden``."""
    modules = {block.name: block.module for block in blocks}
    return record(model, modules, each(samples), traced, hidden)


def first_of(samples: Samples | None, model: PreTrainedModel) -> Tensor | Sample:
    """Return the calibration sample for the look at a model; arbitrary tokens if there is none."""
    if samples is None:
        return any_tokens(model)
    return samples.samples[0] if isinstance(samples, Processed) else samples


def any_tokens(model: PreTrainedModel) -> Tensor:
    """Return token ids (1, 64) for a look at a model without text; none stands for an image."""
    config = model.config
    vocabulary = int(config.get_text_config().vocab_size)
    ids = torch.randint(0, vocabulary, (1, 64), generator=torch.Generator().manual_seed(0))
    if config.get_text_config() is config:
        return ids
    special = _special(config.to_dict())
    free = next(token for token in range(vocabulary) if token not in special)
    return ids.apply_(lambda token: free if token in special else token)


def _special(config: Mapping[str, Any]) -> set[int]:
    """Collect all ids that a config names, such as ``image_token_id``."""
    found = {v for k, v in config.items() if "token" in str(k) and isinstance(v, int)}
    inner = (_special(v) for v in config.values() if isinstance(v, Mapping))
    return found.union(*inner)
