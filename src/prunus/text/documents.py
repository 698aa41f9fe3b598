"""Texts, and what is known about their origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base.words import number_of

Split = Literal["calibration", "evaluation"]
AS_IT_LIES = "as it lies"
JOINED = {"\n\n": "blank lines", " ": "spaces"}
SHOWN = 60  # characters of the first document that are printed


@dataclass(frozen=True)
class Documents:
    """Texts and their origin.

    Attributes:
        name: the SOURCE and the files read.
        texts: one string per document; for calibration, none is blank.
        joiner: what stands between documents where they are scored as one text.
        windows: how many windows are scored at most; None: all.
        field: the fields of the rows that were read; None: whole files.
        split: the part of a data set that was read, by its own name; None: it has no parts.
        skipped: rows that were null or empty.
        remarks: what else the user should know of them, a sentence each.
        last_word: whether they are passages whose last word is scored, as LAMBADA's.
    """

    name: str
    texts: list[str]
    joiner: str = "\n\n"
    windows: int | None = None
    field: str | None = None
    split: str | None = None
    skipped: int = 0
    remarks: tuple[str, ...] = ()
    last_word: bool = False

    @property
    def reading(self) -> str:
        """How the documents are one text where they are scored."""
        if len(self.texts) == 1:
            return AS_IT_LIES
        return f"{len(self.texts)} rows joined by {JOINED.get(self.joiner, repr(self.joiner))}"

    def joined(self) -> str:
        """Return all documents as one text, as perplexity is measured."""
        return self.joiner.join(self.texts)

    def lines(self) -> list[str]:
        """Return what to print before they are used: a summary, then the remarks."""
        first = next((text for text in self.texts if text.strip()), "").lstrip()
        parts = [number_of(len(self.texts), "document")]
        if self.field is not None:
            parts.append(f"field {self.field}")
        if self.split is not None:
            parts.append(f"split {self.split}")
        if self.skipped:
            parts.append(f"{number_of(self.skipped, 'null or empty row')} skipped")
        summary = f"text: {self.name}: {', '.join(parts)}; the first begins {first[:SHOWN]!r}"
        return [summary, *self.remarks]
