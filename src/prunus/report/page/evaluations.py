"""What ``prunus eval --json`` wrote, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import InputError, first_line
from .words import count, percent, without_folders


@dataclass(frozen=True)
class Measured:
    """One text on which a model was evaluated.

    Attributes:
        name: of the model: that of the file without its ending.
        text: what was scored.
        quantity: what ``value`` is.
        value: the perplexity.
        accuracy: of last words, as it is shown; "": windows were scored.
        how: windows, their length, how the text lies.
    """

    name: str
    text: str
    quantity: str
    value: float
    accuracy: str
    how: str


def read_evaluation(path: Path) -> list[Measured]:
    """Read a file with what ``prunus eval --json`` printed.

    Raises:
        InputError: it cannot be read, or is no such object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [_measured(path.stem, x) for x in _texts(content)]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}. {CURE}") from None
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path} holds no evaluation. {CURE}") from None
    if not found:
        raise InputError(f"{path} holds no perplexity. {CURE}")
    return found


CURE = "Give what `prunus eval … --json > FILE` writes."


def _texts(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object with a perplexity: the object itself, or those in its lists."""
    if isinstance(content, list):
        for part in content:
            yield from _texts(part)
    elif isinstance(content, dict):
        if "perplexity" in content:
            yield content
        else:
            for part in content.values():
                yield from _texts(part)


def _measured(name: str, found: Mapping[str, Any]) -> Measured:
    words = found.get("accuracy") is not None
    thing = count(found["windows"], "passage" if words else "window")
    upto = "up to " if words else ""
    reading = f", {found['reading']}" if found.get("reading") and not words else ""
    return Measured(
        name=name,
        text=without_folders(str(found["source"])),
        quantity="perplexity of the last word" if words else "perplexity",
        value=float(found["perplexity"]),
        accuracy=percent(float(found["accuracy"])) if words else "",
        how=f"{thing} of {upto}{found['length']:,} tokens{reading}",
    )
