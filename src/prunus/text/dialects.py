"""Rows of data sets as texts: the fields to read are chosen by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol

from ..base.errors import CalibrationError
from .chats import Message, chat_text, is_blank, messages_of
from .questions import NoTextError, chosen_answer, question_of, string_of

Kind = Literal["text", "chat", "parts", "completion", "choices"]
Row = Any  # a string, a chat, or a mapping of fields


@dataclass(frozen=True)
class Dialect:
    """The names under which a kind of data set keeps its text.

    Attributes:
        kind: how the values become text. ``text``: as it is. ``chat``: see ``chats``. ``parts``:
            those that are not empty, a blank line between them. ``completion``: the second
            continues the first. ``choices``: a question and the right choice.
        slots: alternatives for one place each; a slot that begins with ``""`` may be empty.
    """

    kind: Kind
    slots: tuple[tuple[str, ...], ...]

    def fields(self, names: Iterable[str]) -> dict[int, str] | None:
        """Return the field for each slot among these names; None if a required one is missing."""
        have, found = set(names), {}
        for place, slot in enumerate(self.slots):
            name = next((name for name in slot if name in have), None)
            if name is not None:
                found[place] = name
            elif "" not in slot:
                return None
        return found


CONTEXT = ("", "passage", "context")
QUESTION = ("question", "query", "problem", "ctx")
SYSTEM = ("", "system", "system_prompt")
ANSWER = ("solution", "answer", "answers", "response")

DIALECTS: Sequence[Dialect] = (  # the first that fits a row's names
    Dialect("text", (("text",),)),
    Dialect("chat", (("messages", "conversations", "conversation"),)),
    Dialect("text", (("raw_content",),)),
    Dialect("text", (("content",),)),
    Dialect(  # Alpaca, Dolly
        "parts", (SYSTEM, ("instruction",), ("", "input", "context"), ("output", *ANSWER))
    ),
    Dialect(
        "choices", (CONTEXT, QUESTION, ("choices", "endings"), ("answerKey", "label", "answer"))
    ),
    Dialect("choices", (CONTEXT, QUESTION, ("question",), ("answerKey",))),  # ARC's own files
    Dialect("parts", (SYSTEM, CONTEXT, QUESTION, ANSWER)),
    Dialect("parts", (CONTEXT[1:], QUESTION)),
    Dialect("completion", (("prompt",), ("completion", "chosen", "response"))),
    Dialect("text", (("chosen",),)),
    Dialect("chat", (("data",),)),  # UltraChat
    Dialect("text", (("body",),)),
    Dialect("text", (("sentence",),)),  # Penn Treebank
)


class Reader(Protocol):
    """What reads the rows of a file: as texts (``RowReader``) or as prompts."""

    def texts(self, rows: Iterable[tuple[str, Row]], keep_empty: bool = False) -> list[str]:
        """Return the texts of rows with their positions."""
        ...

    def columns(self, where: str, names: Sequence[str]) -> list[str]:
        """Return which columns of a table to read."""
        ...


@dataclass
class RowReader:
    """A reader that turns rows into texts, and remembers what it read.

    Attributes:
        wanted: the field to read, whatever its name; None: by the table.
        tokenizer: whose chat template is used; None: chats are joined plainly.
        read: how many rows each choice of fields was read from.
        skipped: rows that were null or empty.
        refused: chats that the template does not take.
        names: all fields that were seen.
    """

    wanted: str | None = None
    tokenizer: Any = None
    read: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    refused: int = 0
    names: dict[str, None] = field(default_factory=dict)

    def texts(self, rows: Iterable[tuple[str, Row]], keep_empty: bool = False) -> list[str]:
        """Yield the texts of rows with their positions; null and empty ones are counted.

        ``keep_empty``: blank rows are text too, as where rows are scored as one text.
        """
        texts = []
        for where, row in rows:
            text = self._text(where, row)
            if text is not None and (keep_empty or text.strip()):
                texts.append(text)
            else:
                self.skipped += 1
        return texts

    def columns(self, where: str, names: Sequence[str]) -> list[str]:
        """Return which columns of a table to read."""
        self.names.update(dict.fromkeys(names))
        if self.wanted is not None:
            return [name for name in names if name == self.wanted]
        return list(choose(tuple(names), where)[1].values())

    def check(self, name: str) -> None:
        """Raise CalibrationError if no row had the field that was asked for."""
        if self.wanted is not None and self.wanted not in self.names:
            if not self.names:
                raise CalibrationError(
                    f"{name} has no fields, so --field {self.wanted} does not apply. Leave it out."
                )
            raise CalibrationError(
                f"{name} has no field {self.wanted!r}; it has {fields_listed(self.names)}. Give "
                "one of them as --field."
            )

    @property
    def label(self) -> str | None:
        """The fields that were read, the most frequent first; None if none had a name."""
        return ", ".join(label for label, _ in self.read.most_common()) or None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know about the rows."""
        if not self.refused:
            return ()
        return (
            f"the chat template refuses {self.refused} of the chats; their messages are joined by "
            "blank lines",
        )

    def _text(self, where: str, row: Row) -> str | None:
        if row is None or isinstance(row, str):
            return row
        if isinstance(row, Mapping):
            self.names.update(dict.fromkeys(map(str, row)))
            return self._of_fields(where, row)
        messages = messages_of(row) if row != [] else []
        if messages is None:
            raise CalibrationError(
                f"{where}: no text; a row is a string, a chat, or an object with fields. Got "
                f"{type(row).__name__}."
            )
        return self._chat(messages)

    def _of_fields(self, where: str, row: Mapping[str, Any]) -> str | None:
        if self.wanted is not None:
            if self.wanted not in row:
                return None
            kind: Kind = "text"
            fields = {0: self.wanted}
        else:
            kind, fields = choose(tuple(map(str, row)), where)
        label = "+".join(dict.fromkeys(fields.values()))
        self.read[label] += 1
        values = {place: row[name] for place, name in fields.items()}
        try:
            return self._rendered(kind, values)
        except NoTextError as error:
            raise CalibrationError(
                f"{where}: the field {label} holds {error}, which is no text. "
                f"The fields are {fields_listed(row)}; give one that has text as --field."
            ) from None

    def _rendered(self, kind: Kind, values: dict[int, Any]) -> str | None:
        if kind == "chat":
            messages = messages_of(values[0])
            if messages or not values[0]:
                return self._chat(messages or [])
            return string_of(values[0], lists=False)
        if kind == "completion":
            return self._completion(values[0], values[1])
        if kind == "choices":
            parts = [values.get(0), question_of(values[1]), chosen_answer(values[2], values[3])]
            return _joined(parts)
        if kind == "parts":
            return _joined([question_of(value) for _, value in sorted(values.items())])
        value = values[0]
        messages = None if isinstance(value, str) or _is_strings(value) else messages_of(value)
        return self._chat(messages) if messages else string_of(value)

    def _completion(self, prompt: Any, completion: Any) -> str | None:
        """Join prompt and completion, with a blank line unless one of them has space there."""
        if isinstance(completion, str) and (prompt is None or isinstance(prompt, str)):
            prompt = prompt or ""
            apart = prompt and not prompt[-1:].isspace() and not completion[:1].isspace()
            return f"{prompt}\n\n{completion}" if apart else prompt + completion
        after = _messages(completion, "assistant")
        before = (
            [] if after and after[0]["role"] in ("user", "system") else _messages(prompt, "user")
        )
        return self._chat([*before, *after])

    def _chat(self, messages: Sequence[Message]) -> str | None:
        if is_blank(messages):
            return None
        text, refused = chat_text(messages, self.tokenizer)
        self.refused += refused
        return text


def choose(
    names: tuple[str, ...], where: str, table: Sequence[Dialect] = DIALECTS
) -> tuple[Kind, dict[int, str]]:
    """Choose how to read rows with these fields, and which of them, by a tuple of dialects.

    Raises:
        CalibrationError: none of the fields has a known name.
    """
    found = _first(names, table)
    if found is not None:
        return found
    raise CalibrationError(
        f"{where}: no text; expected an object with a field of a known name (text, content, "
        f"messages …); it has {fields_listed(names)}. Say which holds the text: --field NAME."
    )


@lru_cache(maxsize=256)
def _first(names: tuple[str, ...], table: Sequence[Dialect]) -> tuple[Kind, dict[int, str]] | None:
    for dialect in table:
        fields = dialect.fields(names)
        if fields is not None:
            return dialect.kind, fields
    return None


def fields_listed(names: Iterable[str]) -> str:
    """List names of fields of a sensible length: a file without a header has sentences instead."""
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(str, names)]
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return (", ".join(shown[:20]) or "none") + more


def _messages(value: Any, role: str) -> list[Message]:
    if value is None:
        return []
    messages = None if isinstance(value, str) else messages_of(value)
    return messages or [{"role": role, "content": string_of(value, lists=False) or ""}]


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _joined(parts: Sequence[str | None]) -> str:
    return "\n\n".join(part for part in parts if part is not None and part.strip())
