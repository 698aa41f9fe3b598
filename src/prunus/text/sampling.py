"""The papers' sampling: windows of token ids from documents longer than a window."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..base.errors import CalibrationError
from ..base.words import number_of
from .documents import Documents

DIGESTED = 1024  # windows that are copied at once
OVERLAPPING = 0.9  # share of distinct tokens below which it is said


@dataclass(frozen=True)
class Answered:
    """How the model answered prompts.

    Attributes:
        prompts: how many were answered.
        prompt_tokens: of all prompts, through the chat template.
        tokens: of all answers.
        ended: how many answers ended by themselves.
        longest: tokens of an answer at most.
        temperature: of the sampling; 0: greedy.
        top_p: share of the probability that was sampled from.
        longer: prompts that were left out, for they left no room for an answer.
        refused: prompts that the chat template did not take.
        seconds: that the answers took.
    """

    prompts: int
    prompt_tokens: int
    tokens: int
    ended: int
    longest: int
    temperature: float
    top_p: float
    longer: int = 0
    refused: int = 0
    seconds: float = field(default=0.0, compare=False)

    @property
    def mean(self) -> float:
        """The mean length of an answer in tokens."""
        return self.tokens / self.prompts

    def __str__(self) -> str:
        how = f"temperature {self.temperature:g}" if self.temperature else "greedy"
        how += f", top-p {self.top_p:g}" if self.temperature and self.top_p < 1 else ""
        left = [f"{self.longer} too long"] * bool(self.longer)
        left += [f"{self.refused} refused by the chat template"] * bool(self.refused)
        return (
            f"answered by the model ({how}): {self.mean:.1f} tokens in the mean, {self.ended} "
            f"ended before {self.longest}{'; left out: ' + ', '.join(left) if left else ''}"
        )


@dataclass(frozen=True)
class Protocol:
    """The text that the statistics were gathered on: printed, and recorded with the checkpoint.

    Attributes:
        source: the SOURCE and its files.
        samples: windows.
        length: tokens per window.
        seed: of the draws.
        documents: how many the source has; 0 for text that the model wrote.
        documents_used: how many distinct ones the windows are from.
        concatenated: whether documents were too short, so that windows run across their ends.
        sha256: of the token ids as little-endian int64, window after window.
        field: the fields of the rows that were read; None: whole texts.
        split: the part of a data set that was read; None: it has no parts.
        skipped: rows that were null or empty.
        bos: whether every window begins with the beginning-of-text token (yes), none has one (no),
            or those that begin where a document does, if the tokenizer says so (auto).
        answers: of prompts, how the model answered them; ``length`` is then that of the longest
            conversation, and ``sha256`` of each one's length and token ids.
        share: of the statistics' weight that the tokens of answers have; 0: all count alike.
        parts: where there are several sources, each by itself.
        distinct: share of the windows' tokens that is left when those that several windows have are
            counted once.
    """

    source: str
    samples: int
    length: int
    seed: int
    documents: int
    documents_used: int
    concatenated: bool
    sha256: str
    field: str | None = None
    split: str | None = None
    skipped: int = 0
    bos: str = "auto"
    answers: Answered | None = None
    share: float = 0.0
    parts: tuple[Protocol, ...] = ()
    distinct: float = 1.0

    @property
    def answered(self) -> tuple[Answered, ...]:
        """How prompts were answered, source by source."""
        return tuple(x.answers for x in self.parts or (self,) if x.answers is not None)

    def __str__(self) -> str:
        weight = f"answers have {self.share:g} of the weight; " if self.share else ""
        end = f"{weight}seed {self.seed}; sha256 {self.sha256[:12]}"
        if self.parts:
            each = "; ".join(f"[{part}]" for part in self.parts)
            return (
                f"{number_of(self.samples, 'sample')} of {len(self.parts)} sources: {each}; {end}"
            )
        if self.answers is not None:
            few = f"{self.documents_used} of {number_of(self.documents, 'prompt')}"
            return f"{self.source}: {few}, {self.answers}; {end}"
        origin = f"from {self.documents_used} of {number_of(self.documents, 'document')}"
        if self.concatenated:
            origin += " run together, since none is longer than a window"
        if not self.documents:
            origin = "written by the model"
        if self.distinct < OVERLAPPING:
            origin += f", which overlap: {self.distinct:.0%} of their tokens are distinct"
        return (
            f"{self.source}: {number_of(self.samples, 'window')} of {self.length} tokens {origin}; "
            f"{self._choices()}seed {self.seed}; sha256 {self.sha256[:12]}"
        )

    def _choices(self) -> str:
        """Return the choices that differ between texts."""
        bos = None if self.bos == "auto" else self.bos
        chosen = {"field": self.field, "split": self.split, "bos": bos}
        return "".join(f"{name} {value}; " for name, value in chosen.items() if value is not None)


def sample_windows(
    documents: Documents,
    tokenize: Callable[[str], Sequence[int]],
    *,
    samples: int,
    length: int,
    seed: int,
    first: int | None = None,
) -> tuple[Tensor, Protocol]:
    """Draw token ids (samples, length) as Wanda, SparseGPT, RIA and DaSS draw theirs.

    Per sample: a document uniformly with replacement, drawn again until it has more than
    ``length`` tokens; then a window at ``randint(0, tokens − length − 1)``. A single document, such
    as the joined text of WikiText-2 or Penn Treebank, is not drawn. The draws are those of
    ``random.seed(seed)`` in the authors' code, so the same documents and tokenizer give the same
    windows. Where no document is long enough (the authors' code then never ends), all are run
    together in a random order and windows are drawn from the whole.

    With a ``first`` token every window begins with it, and has one token of text less.

    Raises:
        CalibrationError: less text than one window.
    """
    width = length if first is None else length - 1  # tokens that are drawn for a window
    draw = random.Random(seed)
    ids_of: dict[int, array[int]] = {}  # 8 bytes a token; a list takes 36
    long_enough: set[int] = set()
    spans: list[tuple[int, int]] = []  # document and first token of each window
    run_together = drawn = 0
    last = len(documents.texts) - 1
    ids_ST = torch.empty(samples, length, dtype=torch.int64)
    if first is not None:
        ids_ST[:, 0] = first
    windows_ST = ids_ST[:, length - width :]
    while drawn < samples:
        if len(ids_of) == len(documents.texts) and not long_enough:
            ids, run_together = _run_together(list(ids_of.values()), draw, samples * width)
            spans = [(0, start) for start in _draw_windows(windows_ST, ids, documents.name, draw)]
            break
        index = draw.randint(0, last) if last else 0  # randint(0, 0) would use random bits up
        if index not in ids_of:
            ids_of[index] = array("q", tokenize(documents.texts[index]))
            if len(ids_of[index]) > width:
                long_enough.add(index)
            elif long_enough:
                ids_of[index] = array("q")  # too short, and not needed to run together any more
        if index in long_enough:
            start = draw.randint(0, len(ids_of[index]) - width - 1)
            window = ids_of[index][start : start + width]
            windows_ST[drawn] = torch.frombuffer(window, dtype=torch.int64)
            drawn += 1
            spans.append((index, start))
    count = len(documents.texts)
    protocol = Protocol(
        documents.name,
        samples,
        length,
        seed,
        count,
        run_together or len({index for index, _ in spans}),
        bool(run_together),
        digest(ids_ST),
        documents.field,
        documents.split,
        documents.skipped,
        "auto" if first is None else "yes",
        distinct=_distinct(spans, width),
    )
    return ids_ST, protocol


def _distinct(spans: Sequence[tuple[int, int]], width: int) -> float:
    """Return the share of the windows' tokens that is left when each is counted once.

    >>> _distinct([(0, 0), (0, 5), (1, 5)], 10)
    0.8333333333333334
    """
    ordered = sorted(spans)
    new = [
        width if index != before else min(start - last, width)
        for (before, last), (index, start) in zip([(-1, 0), *ordered], ordered, strict=False)
    ]
    return sum(new) / (len(spans) * width)


def digest(ids_ST: Tensor) -> str:
    """Compute the SHA-256 of token ids, the same on every machine."""
    found = hashlib.sha256()
    for part in ids_ST.split(DIGESTED):
        found.update(part.cpu().to(torch.int64).numpy().astype("<i8").tobytes())
    return found.hexdigest()


def _run_together(
    all_ids: list[array[int]], draw: random.Random, wanted: int
) -> tuple[array[int], int]:
    """Join documents in random order until there are four times as many tokens as wanted.

    Returns the tokens, and how many documents they are from.
    """
    draw.shuffle(all_ids)
    stream = array("q")
    used = 0
    while used < len(all_ids) and len(stream) < 4 * wanted:
        stream.extend(all_ids[used])
        used += 1
    return stream, used


def _draw_windows(ids_ST: Tensor, ids: array[int], name: str, draw: random.Random) -> Iterator[int]:
    """Fill ``ids_ST`` with windows of ``ids``; give the start of each."""
    length = ids_ST.shape[1]
    if len(ids) < length:
        raise CalibrationError(
            f"{name} has {len(ids)} tokens in all, fewer than one window of {length}. "
            f"Give more text, or --length {max(len(ids), 1)} or less."
        )
    ids_T = torch.frombuffer(ids, dtype=ids_ST.dtype)
    for sample in range(len(ids_ST)):
        start = draw.randint(0, len(ids) - length)
        ids_ST[sample] = ids_T[start : start + length]
        yield start
