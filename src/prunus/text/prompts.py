"""Prompts: what the rows of a source ask, without any answer that they hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import CalibrationError
from ..base.words import number_of
from .chats import Message, is_blank, messages_of
from .dialects import CONTEXT, QUESTION, SYSTEM, Dialect, Row, choose, fields_listed
from .files import ending, is_plain, read_file, text_files
from .questions import NoTextError, listed_choices, question_of, string_of

ASKS: Sequence[Dialect] = (  # the first that fits a row's names
    Dialect("chat", (("messages", "conversations", "conversation"),)),
    Dialect("parts", (SYSTEM, ("instruction",), ("", "input", "context"))),
    Dialect("choices", (("",), CONTEXT, QUESTION, ("choices", "endings"))),
    Dialect("parts", (SYSTEM, CONTEXT, QUESTION)),
    Dialect("completion", (SYSTEM, ("prompt",))),
    Dialect("chat", (("data",),)),
    Dialect("text", (("text", "raw_content", "content", "body", "sentence"),)),
)
REPLIES = ("assistant",)


@dataclass(frozen=True)
class Prompts:
    """Prompts and their origin.

    Attributes:
        name: the SOURCE.
        chats: the messages of each; the last is not the model's.
        plain: whether all rows are plain text, which may as well be text to read.
        field: the fields of the rows that were read.
        skipped: rows that ask nothing.
    """

    name: str
    chats: list[list[Message]]
    plain: bool
    field: str | None
    skipped: int

    def line(self) -> str:
        """Return what to print before they are used."""
        first = str(self.chats[0][-1]["content"]).lstrip()[:60]
        rows = (
            f"; {number_of(self.skipped, 'row')} without a question skipped" if self.skipped else ""
        )
        field = f", field {self.field}" if self.field else ""
        return f"prompts: {self.name}: {len(self.chats)}{field}{rows}; the first begins {first!r}"


@dataclass
class PromptReader:
    """A reader that turns rows into prompts, as JSON of their messages.

    Attributes:
        wanted: the field to read, whatever its name; None: by the table.
        read: how many rows each choice of fields was read from; "" is a row without fields.
        skipped: rows that ask nothing.
        plain: whether all rows so far were plain text.
    """

    wanted: str | None = None
    read: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    plain: bool = True

    def texts(self, rows: Iterable[tuple[str, Row]], keep_empty: bool = False) -> list[str]:
        """Return the prompts of rows with their positions; those that ask nothing are counted."""
        found = []
        for where, row in rows:
            chat = _unanswered(self._chat(where, row))
            if chat and not is_blank(chat):
                found.append(json.dumps(chat))
            else:
                self.skipped += 1
        return found

    def columns(self, where: str, names: Sequence[str]) -> list[str]:
        """Return which columns of a table to read."""
        if self.wanted is not None:
            return [name for name in names if name == self.wanted]
        return list(choose(tuple(names), where, tuple(ASKS))[1].values())

    def _chat(self, where: str, row: Row) -> list[Message]:
        if row is None or isinstance(row, str):
            self.read[""] += 1
            return [_user(row)]
        if not isinstance(row, Mapping):
            self.plain = False
            return messages_of(row) or []
        names = tuple(map(str, row))
        if self.wanted is not None:
            if self.wanted not in row:
                raise CalibrationError(
                    f"{where} has no field {self.wanted!r}; it has {fields_listed(names)}. Give "
                    "one of them as --field."
                )
            kind, chosen = "chat", {0: self.wanted}
        else:
            kind, chosen = choose(names, where, tuple(ASKS))
        self.read["+".join(dict.fromkeys(chosen.values()))] += 1
        self.plain &= kind == "text"
        try:
            return _asked(kind, {place: row[name] for place, name in chosen.items()})
        except NoTextError as error:
            raise CalibrationError(
                f"{where}: the prompt's fields hold {error}, which is no text. The fields are "
                f"{fields_listed(names)}; give the one that asks as --field."
            ) from None


def read_prompts(source: str, field: str | None = None) -> Prompts:
    """Read the prompts of a file or folder; each line of a plain file that is not blank is one.

    Raises:
        CalibrationError: it does not exist, cannot be read, or asks nothing.
    """
    path, reader = Path(source).expanduser(), PromptReader(field)
    if not path.exists():
        raise CalibrationError(f"{source[:200]} does not exist. Give an existing file of prompts.")
    inside = [p for p in path.rglob("*") if ending(p) is not None] if path.is_dir() else [path]
    found: list[str] = []
    for file in text_files(inside) or [path]:
        texts = read_file(file, reader, False)
        if is_plain(file):
            lines = texts[0].splitlines()
            texts = reader.texts((f"{file}, line {i}", line) for i, line in enumerate(lines, 1))
        found += texts
    return finished(source, found, reader)


def given_prompts(name: str, rows: Sequence[Row], field: str | None = None) -> Prompts:
    """Return the prompts of rows that were given in Python."""
    reader = PromptReader(field)
    found = reader.texts((f"{name}, row {i}", row) for i, row in enumerate(rows, 1))
    return finished(name, found, reader)


def finished(name: str, found: list[str], reader: PromptReader) -> Prompts:
    """Return prompts with what is known of them.

    Raises:
        CalibrationError: there is none.
    """
    if not found:
        raise CalibrationError(
            f"{name} asks nothing: no prompt in {number_of(reader.skipped, 'row')}. Give a file "
            f"with prompts, or say which field holds them: --field NAME."
        )
    label = ", ".join(label for label, _ in reader.read.most_common() if label) or None
    return Prompts(name, [json.loads(chat) for chat in found], reader.plain, label, reader.skipped)


def _asked(kind: str, values: dict[int, Any]) -> list[Message]:
    """Return the messages of one row, whose answer may still be at their end."""
    if kind == "chat":
        value = values[0]
        messages = messages_of(value) if value else []
        return messages if messages is not None else [_user(string_of(value))]
    if kind == "text":
        return [_user(string_of(values[0]))]
    system = question_of(values.pop(0, None))
    before = [{"role": "system", "content": system}] if system else []
    if kind == "completion" and not isinstance(values[1], str):
        return [*before, *(messages_of(values[1]) or [])]
    if kind == "choices":
        values[3] = listed_choices(values[3])
    parts = [question_of(value) for _, value in sorted(values.items())]
    return [*before, _user("\n\n".join(part for part in parts if part and part.strip()))]


def _user(text: str | None) -> Message:
    return {"role": "user", "content": (text or "").strip()}


def _unanswered(chat: list[Message]) -> list[Message]:
    """Return the chat up to the last thing that was said to the model."""
    while chat and chat[-1]["role"] in REPLIES:
        chat = chat[:-1]
    return chat if any(m["role"] == "user" and m["content"] for m in chat) else []
