"""Questions and answers as text, in the forms that data sets give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NoTextError(Exception):
    """A field that holds something other than text; the message is its kind."""


def string_of(value: Any, lists: bool = True) -> str | None:
    """Return the text that a field holds; strings of a list get a line each.

    Raises:
        NoTextError: it holds something else.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if lists and isinstance(value, list) and all(isinstance(x, str | None) for x in value):
        return "\n".join(x for x in value if x is not None)
    raise NoTextError(type(value).__name__)


def question_of(value: Any) -> str | None:
    """Return a question, its context or its answer in words.

    True and false become yes and no, numbers their digits; of several answers (SQuAD's ``text``
    among them) the first counts; ARC's questions have a ``stem``.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        for key in ("text", "stem", "value"):
            if key in value:
                return question_of(value[key])
    if isinstance(value, list):
        return question_of(value[0]) if value else None
    return string_of(value)


def chosen_answer(choices: Any, key: Any) -> str | None:
    """Return the right choice: by its label, its place from 0, its letter, or its text.

    None where the key names none of them, as in test sets whose answers are kept secret.
    """
    if isinstance(choices, Mapping) and "choices" in choices:
        choices = choices["choices"]
    texts, labels = _choices(choices)
    word = str(key)
    if word in labels:
        return texts[labels.index(word)]
    if word in texts and not isinstance(key, int):
        return word
    place = int(word) if word.isdigit() else "ABCDEFGHIJ".find(word) if len(word) == 1 else -1
    return texts[place] if 0 <= place < len(texts) else None


def listed_choices(choices: Any) -> str:
    """Return the choices as lines, each with its label or a letter."""
    if isinstance(choices, Mapping) and "choices" in choices:
        choices = choices["choices"]
    texts, labels = _choices(choices)
    named = labels if len(labels) == len(texts) else list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return "\n".join(f"{label}. {text}" for label, text in zip(named, texts, strict=False))


def _choices(choices: Any) -> tuple[list[str], list[str]]:
    """Return the texts of the choices, and their labels if they have any."""
    if isinstance(choices, Mapping) and "text" in choices:
        return [str(text) for text in choices["text"]], [
            str(label) for label in choices.get("label", [])
        ]
    if isinstance(choices, list) and all(isinstance(choice, Mapping) for choice in choices):
        texts = [str(choice.get("text", "")) for choice in choices]
        return texts, [str(choice.get("label")) for choice in choices]
    if isinstance(choices, list):
        return [str(choice) for choice in choices], []
    raise NoTextError(type(choices).__name__)
