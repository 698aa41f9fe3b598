"""Whether a dense model's perplexity can be that of a model that works."""

from __future__ import annotations

import math
from collections import Counter

from torch import Tensor


def counts_perplexity(windows_NL: Tensor, vocabulary: int) -> float:
    """Perplexity of a model that only counts the tokens before, by the protocol of ``perplexity``.

    In each window, with n tokens read, d different ones, and n_v of the token v:
    P(v) = n_v / (n + d) if n_v > 0, else d / (n + d) / V. It begins near a uniform guess and comes
    near a unigram model of the window. The entropy of the window's own counts would be far too low
    a bound for a short one: there most tokens come once.

    Reference: Witten and Bell 1991, The zero-frequency problem, method C.

    >>> import torch
    >>> round(counts_perplexity(torch.tensor([[3, 3, 5]]), 8), 3)  # (1/2 · 1/3 · 1/8)^(−1/2)
    6.928
    """
    losses = []
    for first, *others in windows_NL.tolist():
        seen, loss = Counter([first]), 0.0
        for read, token in enumerate(others, 1):
            known = seen[token] or len(seen) / vocabulary
            loss -= math.log(known / (read + len(seen)))
            seen[token] += 1
        losses.append(loss / len(others))
    return math.exp(sum(losses) / len(losses))


def worse_than_counts(perplexity: float, windows_NL: Tensor, vocabulary: int) -> str | None:
    """Return a sentence if a dense model predicts windows worse than counts do; otherwise None.

    Counts know the same tokens as the model, and nothing of a language. Any model that was trained
    on text like this beats them, whatever its tokenizer and the length.
    """
    bound = counts_perplexity(windows_NL, vocabulary)
    if perplexity <= bound:
        return None
    return (
        f"warning: a dense perplexity of {perplexity:,.1f} is worse than {bound:,.1f}, which "
        "counting the tokens before reaches alone. If this model is not pruned, its tokenizer may "
        "belong to another model, its dtype may be too narrow (try --dtype float32), or the text "
        "is in a language that it never saw."
    )
