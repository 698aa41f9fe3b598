"""Tables and heat maps, as tables of HTML that a screen reader can read too."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from .rendering import render

Hue = Literal["plum", "ochre", "leaf"]
"""Colours of heat maps: plum for what was removed, ochre for errors, leaf for gains and tokens."""

NUMBER = re.compile(
    r"[−+<≈±-]?[\d.,]+([ \u202f]?(%|×|[µm]?s|h|min|[kMGT]i?B|B|[MB]))?( ± [\d.,]+)?"
)
EMPTY = ("", "–", "—", "none")
FAINTEST = 7  # per cent of a heat map's colour that its lowest value gets


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its text.

    Attributes:
        text: what it says.
        mark: ``best`` or ``second`` of its kind.
        bar: length of a bar behind the text, 0 to 1; None: no bar.
        note: what is shown when the pointer rests on it.
    """

    text: str
    mark: Literal["", "best", "second"] = ""
    bar: float | None = None
    note: str = ""


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    caption: str = "",
    legend: str = "",
) -> Markup:
    """Return a table, which scrolls in a box of its own where it is wider than the page.

    The first column names the rows. A column in which every cell is a number is aligned right.

    Args:
        columns: the headings.
        rows: as many cells each; plain strings, ``Markup`` (such as a ``link``) or ``Cell``.
        caption: what to see, above it.
        legend: what the marks or bars mean, below it.

    >>> made = table(["method", "perplexity"], [["mrp", Cell("38.9", "best")]])
    >>> '<td class="number best">38.9</td>' in made
    True
    """
    cells = [[x if isinstance(x, Cell) else Cell(x) for x in row] for row in rows]
    right = [i > 0 and all(_is_number(row[i].text) for row in cells) for i in range(len(columns))]
    return render(
        "table.html", columns=columns, rows=cells, right=right, caption=caption, legend=legend
    )


def facts(pairs: Sequence[tuple[str, str]], *, caption: str = "") -> Markup:
    """Return names and what belongs to them, line by line."""
    return render("facts.html", pairs=pairs, caption=caption)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    caption: str,
    said: Callable[[float], str],
    hue: Hue = "plum",
    scale: str = "",
    ends: tuple[float, float] | None = None,
    corner: str = "",
) -> Markup:
    """Return a table whose cells are coloured by their values, with the scale of colours below.

    Args:
        rows: headings of the rows.
        columns: headings of the columns.
        values: one for each row and column; None: an empty cell.
        caption: what to see, above it.
        said: a value as it is written in its cell.
        hue: colour of the highest value; the lowest has a trace of it.
        scale: what the colours mean, beside the scale.
        ends: values of the two ends of the scale; None: the lowest and the highest there are.
        corner: heading of the headings of the rows.
    """
    known = [value for line in values for value in line if value is not None]
    if not known:
        return Markup()
    low, high = ends or (min(known), max(known))
    cells = [
        [None if x is None else (said(x), strength(x, low, high)) for x in line] for line in values
    ]
    return render(
        "heat_map.html",
        rows=list(zip(rows, cells, strict=True)),
        columns=columns,
        caption=caption,
        hue=hue,
        scale=scale,
        low=said(low),
        high=said(high),
        faintest=FAINTEST,
        corner=corner,
    )


def strength(value: float, low: float, high: float) -> float:
    """Return the per cent of the colour that a value gets on a scale from low to high."""
    share = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 1.0
    return round(FAINTEST + (100 - FAINTEST) * share, 1)


def _is_number(text: str) -> bool:
    return text in EMPTY or NUMBER.fullmatch(text) is not None
