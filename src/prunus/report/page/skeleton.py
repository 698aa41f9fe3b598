"""The page itself: a title, the numbers that matter, sections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..._version import __version__
from .rendering import render, stylesheet


@dataclass(frozen=True)
class Number:
    """A number of the summary at the top.

    Attributes:
        value: as it is shown, with its unit: ``50.0 %``.
        label: what it is, in a few words.
        note: what it is compared with, or of what it is a share.
    """

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what is below it.

    Attributes:
        title: the heading, which is also the address of the section within the page.
        parts: what ``prose``, ``table``, ``heat_map``, ``line_chart`` … return, in their order.
    """

    title: str
    parts: Sequence[Markup]

    @property
    def anchor(self) -> str:
        """Name of the section in addresses."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def page(
    title: str,
    sections: Sequence[Section],
    *,
    kind: str = "",
    lead: str = "",
    numbers: Sequence[Number] = (),
    made_by: str = "prunus report",
) -> str:
    """Return a whole HTML page that needs no other file and makes no request.

    It has styles for light and dark, narrow and wide screens, and paper. It holds no script, and
    its Content-Security-Policy forbids every request. Strings are escaped; ``Markup`` (what the
    other functions of this folder return) goes in as it is.

    Args:
        title: the largest heading, and the title of the window.
        sections: in their order; those without parts are left out.
        kind: one or two words above the title, such as ``Pruned checkpoint``.
        lead: one or two sentences below the title.
        numbers: four or five numbers at the top.
        made_by: the command, for the last line.

    >>> "<h1>A table</h1>" in page("A table", [])
    True
    """
    return render(
        "page.html",
        title=title,
        sections=[section for section in sections if any(section.parts)],
        kind=kind,
        lead=lead,
        numbers=numbers,
        made_by=made_by,
        version=__version__,
        styles=stylesheet(),
    )
