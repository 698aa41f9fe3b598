"""Greedy text of two models, and how far it is the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..model.blocks import context_length

PROMPTS, PROMPT, NEW = 16, 64, 64  # prompts, tokens of each, and tokens written behind each


def prompts(ids_T: Tensor, length: int, windows: int) -> Tensor:
    """Return the beginnings of up to 16 windows, evenly spread over those that are scored: (N, P).

    64 tokens of each, or half a window where that is less.
    """
    count = min(PROMPTS, windows)
    starts = [length * (i * windows // count) for i in range(count)]
    size = min(PROMPT, length // 2)
    return torch.stack([ids_T[start : start + size] for start in starts])


def to_write(model: Any, prompt: int) -> int:
    """Return how many tokens to write behind a prompt: 64, or what the model's context leaves."""
    limit = context_length(model) if hasattr(model, "config") else None
    return NEW if limit is None else max(min(NEW, limit - prompt), 1)


@torch.no_grad()
def greedy_prefixes(model: nn.Module, dense: nn.Module, prompts_NP: Tensor, new: int) -> list[int]:
    """Return how many greedy tokens behind each prompt are the same in both models, of ``new``.

    One model writes. Then both read what it wrote in one forward each: up to the first token that
    the other would have chosen otherwise both have the same context, so the other need not write.
    An end-of-text token counts like any other.
    """
    device = next(model.parameters()).device
    written_NS = write(model, prompts_NP.to(device), new)
    last = prompts_NP.shape[1] - 1
    own_NG, other_NG = (
        m(input_ids=written_NS, use_cache=False).logits[:, last:-1].argmax(-1)
        for m in (model, dense)
    )
    same_NG = (own_NG == other_NG).long()
    return [int(length) for length in same_NG.cumprod(-1).sum(-1)]


@torch.no_grad()
def write(model: nn.Module, prompts_NP: Tensor, new: int) -> Tensor:
    """Return the prompts with ``new`` greedy tokens behind each: (N, P + new)."""
    out = model(input_ids=prompts_NP, use_cache=True)
    written = [prompts_NP, out.logits[:, -1:].argmax(-1)]
    for _ in range(new - 1):
        out = model(input_ids=written[-1], use_cache=True, **cache_of(out))
        written.append(out.logits[:, -1:].argmax(-1))
    return torch.cat(written, 1)


def cache_of(out: Any) -> dict[str, Any]:
    """Return the cache that a step hands to the next one, under the name that its family uses."""
    for name in ("past_key_values", "cache_params", "state"):
        if getattr(out, name, None) is not None:
            return {name: out[name]}
    raise TypeError(f"{type(out).__name__} has no cache that decoding could go on from.")
