"""Numbers and lists in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def number_of(number: int, thing: str) -> str:
    """Format a number of things.

    >>> number_of(1, "block"), number_of(210, "layer")
    ('1 block', '210 layers')
    """
    return f"{number:,} {thing}{'s' * (number != 1)}"


def a_few(names: Sequence[str], most: int = 3) -> str:
    """List the first few names.

    >>> a_few(["a", "b"]), a_few(["a", "b", "c", "d"])
    ('a, b', 'a, b, c …')
    """
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
