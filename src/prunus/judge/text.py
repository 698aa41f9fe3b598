"""Read the text of an evaluation, turn it into token ids, and record it with the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import CalibrationError, InputError
from ..model.blocks import context_length
from ..text import Documents, read_documents
from ..text.bos import first_token, missing_bos, stream_with
from ..text.files import is_plain
from ..text.given import Given, Texts
from ..text.known import stripped
from ..text.tokens import checked, needed, tokenize, window_length
from .against import score_windows
from .last_word import Passage, check_fit, last_words, passages_of
from .perplexity import Evaluation


@dataclass(frozen=True)
class Asked:
    """What is to be scored.

    Attributes:
        content: documents, or token ids: of one text (1-D), or window by window (2-D).
        bos: whether windows begin with the beginning-of-text token.
        last_word: whether the last words of passages are scored, instead of windows.
    """

    content: Documents | Tensor
    bos: str
    last_word: bool = False

    @property
    def name(self) -> str:
        """What the result calls it."""
        return self.content.name if isinstance(self.content, Documents) else "tokens given"

    def most(self, windows: int | None) -> int | None:
        """Return how many windows to score, at most those that the papers score of a known text."""
        known = self.content.windows if isinstance(self.content, Documents) else None
        return windows if known is None else min(windows or known, known)

    def tokens(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        length: int | None,
        say: Callable[[str], None],
    ) -> tuple[Tensor, int]:
        """Return all token ids, one window after the other, and the length of a window."""
        if not isinstance(self.content, Documents):
            return _given(self.content, model, length)
        ids = tokenize(tokenizer, self.content.joined(), self.bos)
        ids_T = checked(torch.tensor(ids, dtype=torch.int64), model)
        length = window_length(model, length)
        first = first_token(tokenizer, self.bos)
        if first is not None and length > 1:
            ids_T = stream_with(ids_T, first, length)
        whole = len(ids_T) // length if length > 0 else 0
        if whole:
            windows_NL = ids_T[: whole * length].view(whole, length)
            if warning := missing_bos(model, tokenizer, windows_NL, self.bos):
                say(warning)
        return ids_T, length

    def scorer(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        length: int | None,
        windows: int | None,
        say: Callable[[str], None],
    ) -> Callable[..., Evaluation]:
        """Return what scores the text, by ``scorer(scored=…)``; the text is checked now.

        Windows can be compared with a dense model: see ``score_windows``.

        Raises:
            CalibrationError: a passage of a single word; no window or passage is asked for.
            InputError: a length of windows where there are none, or one above the context.
        """
        if self.last_word:
            passages = self._passages(tokenizer, length, windows)
            for passage in passages:
                checked(torch.tensor(passage.ids), model)
            longest = context_length(model)
            check_fit(passages, longest, self.name)
            return partial(last_words, model, passages, longest=longest, source=self.name)
        ids_T, length = self.tokens(model, tokenizer, length, say)
        most = self.most(windows)
        return partial(score_windows, model, ids_T, length=length, windows=most, source=self.name)

    def _passages(self, tokenizer: Any, length: int | None, most: int | None) -> list[Passage]:
        assert isinstance(self.content, Documents)
        if length is not None:
            raise InputError(
                f"Last words are scored passage by passage, so --length {length} does not apply. "
                "Leave it out, or score windows with --no-last-word."
            )
        if most is not None and most < 1:
            raise CalibrationError(f"At least one passage is scored; got windows {most}.")
        texts = [text for text in self.content.texts if text.strip()][:most]
        return passages_of(texts, tokenizer, self.bos, self.name)

    def described(self, found: Evaluation) -> Evaluation:
        """Return the result with a note of what was read."""
        if not isinstance(self.content, Documents):
            return found
        content = self.content
        reading = "last words" if self.last_word else content.reading
        return replace(
            found, field=content.field, split=content.split, bos=self.bos, reading=reading
        )


def read_text(
    text: str | Path | Given,
    tokenizer: Any,
    field: str | None,
    bos: str,
    data_dir: str | Path | None,
    say: Callable[[str], None],
    last_word: bool | None = None,
) -> Asked:
    """Read the text that is to be scored, and say what was read.

    Where the last words of a plain file are scored, each line is a passage.

    Raises:
        CalibrationError: it cannot be read, or is not a text.
        InputError: no tokenizer, or one that cannot do what ``bos`` asks for.
    """
    if isinstance(text, Tensor):
        if (bos, field) != ("auto", None):
            raise InputError("bos and field are for text; token ids are taken as they are.")
        if last_word:
            raise InputError("last_word is for passages of text, not for token ids.")
        return Asked(text, bos)
    if text == "self":
        raise CalibrationError("Text that the model writes itself cannot judge it; give a file.")
    if isinstance(text, str) and not text.strip():
        raise CalibrationError("The text's source is empty. Give a file, a folder, or a name.")
    first_token(needed(tokenizer), bos)  # raises where there is none
    if isinstance(text, Texts):
        documents = text.documents("evaluation", field, tokenizer)
    else:
        documents = read_documents(
            str(text), "evaluation", data_dir, field=field, tokenizer=tokenizer
        )
    if last_word and isinstance(text, str | Path) and is_plain(Path(text)):
        rows = [row for whole in documents.texts for row in stripped(whole) if row]
        said = f"{documents.name}: each line is a passage"  # and not scored as it lies
        documents = replace(documents, texts=rows, remarks=(said,))
    for line in documents.lines():
        say(line)
    return Asked(documents, bos, documents.last_word if last_word is None else last_word)


def _given(ids: Tensor, model: PreTrainedModel, length: int | None) -> tuple[Tensor, int]:
    """Return token ids as one text, and the length of a window.

    Of several rows each is a window. One row is a text, as people tokenise a whole test set; where
    it is shorter than the usual window, it is one.
    """
    ids_T = checked(ids.reshape(-1), model)
    if ids.ndim == 2 and len(ids) > 1:
        if length not in (None, ids.shape[1]):
            raise InputError(
                f"text has rows of {ids.shape[1]} tokens, a window each, and length is {length}. "
                "Leave length out, or give one row."
            )
        return ids_T, window_length(model, ids.shape[1])
    if length is None:
        return ids_T, min(window_length(model, None), len(ids_T))
    return ids_T, window_length(model, length)
