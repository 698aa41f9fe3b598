"""Calibration text that the model writes itself: no data needed.

Source: Li et al. 2024, "Greedy Output Approximation" (GOA), section 4, its data-free variant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from .sampling import Protocol, digest

BATCH = 16


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    samples: int,
    length: int,
    seed: int,
    wrote: Callable[[int], None] = lambda samples: None,
) -> tuple[Tensor, Protocol]:
    """Sample token ids (samples, length) from the dense model at temperature 1.

    Each window starts with the beginning-of-text token, or with a random token where the tokenizer
    has none, and never ends early. The global random state is left as it was.
    """
    device = model.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        start_ST = _first_tokens(model, tokenizer, samples).to(device)
        config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            min_new_tokens=length - 1,
            max_new_tokens=length - 1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id
            if tokenizer.pad_token_id is not None
            else tokenizer.eos_token_id,
        )
        windows = []
        for batch_BT in start_ST.split(BATCH):
            written_BT = batch_BT
            if length > 1:
                with own_generation_config(model):
                    written_BT = model.generate(  # type: ignore[operator]
                        batch_BT,
                        attention_mask=torch.ones_like(batch_BT),
                        generation_config=config,
                    )
            windows.append(written_BT.cpu())
            wrote(len(batch_BT))
    ids_ST = torch.cat(windows)
    return ids_ST, Protocol("self", samples, length, seed, 0, 0, False, digest(ids_ST))


@contextmanager
def own_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Drop the checkpoint's temperature, top-p and penalties, which fill what a config omits."""
    theirs = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = theirs


def _first_tokens(model: PreTrainedModel, tokenizer: Any, samples: int) -> Tensor:
    if tokenizer.bos_token_id is not None:
        return torch.full((samples, 1), tokenizer.bos_token_id)
    vocabulary = min(len(tokenizer), int(model.config.get_text_config().vocab_size))
    return torch.randint(0, vocabulary, (samples, 1))
