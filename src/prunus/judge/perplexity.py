"""Perplexity by the protocol of the pruning papers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..base.errors import CalibrationError, NumericalError

CHUNK = 256  # tokens whose log-softmax is held at once: a vocabulary of 128k is 1 GB per 2048


@dataclass(frozen=True)
class Agreement:
    """How near a pruned model is to its dense one, at the tokens that the perplexity scores.

    Attributes:
        model: the dense one.
        perplexity: of the dense model, on the same windows.
        kl: mean KL(dense ‖ pruned) per token, in nats.
        top_token: share of tokens at which both have the same likeliest next token.
        best_five: mean of |A ∩ B| / 5 over tokens, A and B the five likeliest of either.
        prefix_mean: greedy tokens behind a prompt that are the same in both, mean over prompts.
        prefix_median: the same, median.
        prefix_most: tokens that were written behind each prompt.
        prompts: how many, each the beginning of a window, evenly spread.
        prompt_tokens: of each.
    """

    model: str
    perplexity: float
    kl: float
    top_token: float
    best_five: float
    prefix_mean: float
    prefix_median: float
    prefix_most: int
    prompts: int
    prompt_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """A perplexity and how it was measured.

    Attributes:
        perplexity: ``exp`` of the mean, over windows, of the mean negative log-likelihood; or, of
            last words, of the mean over passages of the word's.
        windows: how many were scored; or how many passages.
        length: tokens per window; or of the longest passage.
        tokens: in the whole text; the rest after the last whole window is not scored.
        tokens_per_second: scored tokens over the time of the forward passes.
        source: the text.
        field: the fields of its rows that were read; None: it has none.
        split: the part of a data set that it is; None: it has no parts.
        bos: whether every window begins with the beginning-of-text token (yes), none does (no), or
            the first does, if the tokenizer puts it there (auto). It is one of the window's tokens.
        reading: how the text lies: "as it lies", or its rows and what joins them; None: token ids.
        accuracy: share of passages whose last word the model finds; None: windows were scored.
        against: how near the model is to its dense one; None: there was none to compare with.
        warning: why the perplexity of a dense model cannot be trusted; None: nothing is wrong.
    """

    perplexity: float
    windows: int
    length: int
    tokens: int
    tokens_per_second: float
    source: str
    field: str | None = None
    split: str | None = None
    bos: str = "auto"
    reading: str | None = None
    accuracy: float | None = None
    against: Agreement | None = None
    warning: str | None = None


@torch.no_grad()
def perplexity(
    model: nn.Module,
    ids_T: Tensor,
    *,
    length: int,
    windows: int | None = None,
    source: str = "",
    scored: Callable[[int, int, float], None] = lambda done, total, perplexity: None,
    seen: Callable[[Tensor, Tensor], None] | None = None,
) -> Evaluation:
    """Score a tokenised text window by window.

    ``PPL = exp( Σ_w ℓ_w · L / (n · L) )`` with ``ℓ_w`` the mean cross-entropy of the L − 1
    predicted tokens of window w: non-overlapping windows, remainder dropped, logits in float32.
    That is Wanda's and SparseGPT's formula (exp of the mean of window means).

    Args:
        model: on its device, in eval mode.
        ids_T: the whole text, tokenised once.
        length: L; the papers use 2048 (Wanda on LLaMA-2: 4096; FLAP, LLM-Pruner: 128).
        windows: score the first n only; None scores all.
        source: named in the result.
        scored: called after every window with (done, total, perplexity so far).
        seen: given every window's token ids (1, T) and logits (T, V).

    Raises:
        CalibrationError: less text than one window, or a length or number that makes no sense.
        NumericalError: the model puts out NaN or inf.
    """
    available = len(ids_T) // length if length >= 2 else 0
    if length < 2 or (windows is not None and windows < 1):
        raise CalibrationError(
            f"A window has at least 2 tokens and at least one is scored; got length {length}, "
            f"windows {windows}."
        )
    if not available:
        raise CalibrationError(
            f"{source or 'The text'} has {len(ids_T)} tokens, fewer than one window of {length}. "
            f"Give more text, or --length {len(ids_T)} or less."
        )
    total = min(available, windows or available)
    device = next(model.parameters()).device
    loss_sum, seconds = 0.0, 0.0
    for window in range(total):
        ids_BT = ids_T[None, window * length : (window + 1) * length].to(device)
        begun = time.perf_counter()
        logits_TV = model(input_ids=ids_BT, use_cache=False).logits[0]
        loss_sum += mean_loss(logits_TV, ids_BT[0])
        seconds += time.perf_counter() - begun
        if not math.isfinite(loss_sum):
            raise NumericalError(
                f"The model puts out NaN or inf in window {window} of {source or 'the text'}; "
                "evaluate it in a wider dtype (--dtype float32), or check it with prunus verify."
            )
        if seen is not None:
            seen(ids_BT, logits_TV)
        scored(window + 1, total, exp(loss_sum / (window + 1)))
    return Evaluation(
        exp(loss_sum / total), total, length, len(ids_T), total * length / seconds, source
    )


def mean_loss(logits_TV: Tensor, ids_T: Tensor) -> float:
    """Mean cross-entropy of predicting each next token, in float32."""
    total = 0.0
    for chunk_TV, next_T in zip(logits_TV[:-1].split(CHUNK), ids_T[1:].split(CHUNK), strict=True):
        total += float(cross_entropy(chunk_TV.float(), next_T, reduction="sum"))
    return total / (len(ids_T) - 1)


def exp(loss: float) -> float:
    """Return the perplexity of a mean loss."""
    return math.exp(loss) if loss < 700 else math.inf
