"""Numbers in sentences."""

from __future__ import annotations


def number_of(number: int, thing: str) -> str:
    """Format a number of things.

    >>> number_of(1, "block"), number_of(210, "layer")
    ('1 block', '210 layers')
    """
    return f"{number:,} {thing}{'s' * (number != 1)}"
