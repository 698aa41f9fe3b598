"""Numbers and names as a page shows them."""

from __future__ import annotations

import re

from ..card import ALONG_OUTPUTS

GROUPS = {
    "layer": "any weights of a layer may be zero",
    "row": "the weights of each row (one output) compete with each other",
    "column": "the weights of each column (one input) compete with each other",
    "heads": "whole attention heads are removed",
    "neurons": "whole neurons of the MLP are removed",
}


def percent(share: float, digits: int = 1) -> str:
    """Format a share.

    >>> percent(0.5)
    '50.0%'
    """
    return f"{share:.{digits}%}"


def duration(seconds: float) -> str:
    """Format a time.

    >>> duration(0.4), duration(12.3), duration(184.7), duration(8000)
    ('0.4 s', '12.3 s', '3 min 5 s', '2 h 13 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Format a number of bytes.

    >>> size(269060552), size(5000)
    ('269.1 MB', '5.0 kB')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1000:.1f} kB"


def millions(count: int) -> str:
    """Format a number of parameters.

    >>> millions(134515008), millions(6_738_415_616), millions(90624)
    ('134.5 M', '6.74 B', '90,624')
    """
    if count >= 10**9:
        return f"{count / 10**9:.2f} B"
    return f"{count / 10**6:.1f} M" if count >= 10**6 else f"{count:,}"


def without_folders(text: str) -> str:
    """Return a text in which paths of this machine are cut to their last part.

    >>> without_folders("model: /home/me/models/llama")
    'model: llama'
    """
    return re.sub(
        r"(?<![\w./:])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\,;:]+[/\\])+(?=[^\s/\\,;:])", "", text
    )


def pattern(name: str) -> str:
    """Say what a pattern allows; an unknown one by its name.

    >>> pattern("2:4")
    '2 of every 4 consecutive inputs are kept'
    """
    found = re.fullmatch(r"(\d+):(\d+)(:output)?", name)
    if found is None:
        return GROUPS.get(name, name)
    along = "outputs" if found[3] else "inputs"
    said = f"{found[1]} of every {found[2]} consecutive {along} are kept"
    return f"{said}. The layers have {ALONG_OUTPUTS}" if found[3] else said
