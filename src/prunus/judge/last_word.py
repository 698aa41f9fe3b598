"""Perplexity and accuracy of the last word of passages: how LAMBADA is scored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..base.errors import CalibrationError, NumericalError
from ..text.bos import first_token
from ..text.tokens import tokenize
from .perplexity import Evaluation, exp

AT_ONCE = 2048  # tokens: the memory of one window of the papers' perplexity


@dataclass(frozen=True)
class Passage:
    """A passage as token ids.

    Attributes:
        ids: of context and last word.
        predicted: how many at the end are the last word's.
    """

    ids: tuple[int, ...]
    predicted: int


def passages_of(texts: Sequence[str], tokenizer: Any, bos: str, name: str = "") -> list[Passage]:
    """Tokenize passages, and find which tokens are those of their last words.

    The last word is what follows the last space, with the space. Context and passage are tokenised
    each as a whole; the tokens that the passage has beyond those of the context are the word's.
    Blank texts are left out.

    Raises:
        CalibrationError: a passage of a single word, or none at all.
    """
    first = first_token(tokenizer, bos)
    begin = () if first is None else (first,)
    found = []
    for number, text in enumerate(texts, 1):
        text = text.rstrip()
        if not text.strip():
            continue
        context = text.rpartition(" ")[0].rstrip()
        before = tokenize(tokenizer, context, bos) if context else []
        ids = tokenize(tokenizer, text, bos)
        if not before or len(ids) <= len(before):
            raise CalibrationError(
                f"{name or 'The text'}, passage {number}: the last word is scored after the words "
                f"before it, and this passage is {text[:60]!r}. Give passages of several words."
            )
        found.append(Passage((*begin, *ids), len(ids) - len(before)))
    if not found:
        raise CalibrationError(f"{name or 'The text'} holds no passage.")
    return found


def check_fit(passages: Sequence[Passage], longest: int | None, name: str = "") -> None:
    """Raise CalibrationError unless the model can read one token before each last word."""
    most = max(passage.predicted for passage in passages)
    if longest is not None and most > longest:
        raise CalibrationError(
            f"A passage of {name or 'the text'} ends with a word of {most:,} tokens, and the model "
            f"reads {longest:,} at once. Give passages of words, with spaces between them."
        )


@torch.no_grad()
def last_words(
    model: nn.Module,
    passages: Sequence[Passage],
    *,
    longest: int | None = None,
    at_once: int = AT_ONCE,
    source: str = "",
    scored: Callable[[int, int, float], None] = lambda done, total, perplexity: None,
) -> Evaluation:
    """Score the last word of every passage, given the words before it.

    ``PPL = exp( −Σ_p log P(word_p | context_p) / n )``, where the probability of a word is the
    product of those of its tokens; the accuracy is the share of passages in which each token of the
    word is the likeliest. Both as lm-evaluation-harness has them for lambada_openai. Only passages
    of one length share a batch, so there is no padding.

    Args:
        model: on its device, in eval mode.
        passages: as ``passages_of`` makes them.
        longest: the model's context; of a longer passage the beginning is cut off. None: no limit.
        at_once: tokens in a batch, at most, of several passages.
        source: named in the result.
        scored: called after every batch with (done, total, perplexity so far).

    Raises:
        NumericalError: the model puts out NaN or inf.
    """
    device = next(model.parameters()).device
    loss_sum, right, done, read, seconds = 0.0, 0, 0, 0, 0.0
    for batch in _batches(passages, longest, at_once):
        ids_BT = torch.tensor([ids for ids, _ in batch], device=device)
        begun = time.perf_counter()
        logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
        for logits_TV, ids_T, (_, predicted) in zip(logits_BTV, ids_BT, batch, strict=True):
            loss, greedy = _word(logits_TV[-predicted:].float(), ids_T[-predicted:])
            loss_sum, right = loss_sum + loss, right + greedy
        seconds += time.perf_counter() - begun
        done, read = done + len(batch), read + ids_BT.numel()
        if not math.isfinite(loss_sum):
            raise NumericalError(
                f"The model puts out NaN or inf for a passage of {source or 'the text'}; evaluate "
                "it in a wider dtype (--dtype float32), or check it with prunus verify."
            )
        scored(done, len(passages), exp(loss_sum / done))
    return Evaluation(
        exp(loss_sum / done),
        windows=done,
        length=max(len(passage.ids) for passage in passages),
        tokens=sum(len(passage.ids) for passage in passages),
        tokens_per_second=read / seconds,
        source=source,
        accuracy=right / done,
    )


def _batches(
    passages: Sequence[Passage], longest: int | None, at_once: int
) -> Iterator[list[tuple[tuple[int, ...], int]]]:
    """Yield the ids and predicted tokens of passages of one length, by rising length."""
    keep = 0 if longest is None else longest + 1  # the last token is predicted, not read
    cut = [(passage.ids[-keep:], passage.predicted) for passage in passages]
    for length, group in groupby(sorted(cut, key=lambda x: len(x[0])), lambda x: len(x[0])):
        alike, size = list(group), max(1, at_once // length)
        for begin in range(0, len(alike), size):
            yield alike[begin : begin + size]


def _word(logits_TV: Tensor, ids_T: Tensor) -> tuple[float, bool]:
    """Return a word's negative log-likelihood, and whether it is the likeliest, in float32."""
    loss = float(cross_entropy(logits_TV, ids_T, reduction="sum"))
    return loss, bool((logits_TV.argmax(-1) == ids_T).all())
