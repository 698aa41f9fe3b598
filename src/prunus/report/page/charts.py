"""Charts as SVG: lines that are stretched to the page, and text that is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .rendering import render

HEIGHT = 100  # of the plane that lines are drawn in; it is as wide as it is high


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        points: (x, y), by rising x.
        label: its name in the legend; "": it is not in the legend.
        tone: ``plum``, ``ochre``, ``leaf`` or ``grey``; or a number from 0 (grey) to 1 (plum), for
            curves that have an order.
        dots: whether every point has a dot.
    """

    points: Sequence[tuple[float, float]]
    label: str = ""
    tone: str | float = "plum"
    dots: bool = False

    @property
    def colour(self) -> str:
        """Its colour in terms of the page's."""
        if isinstance(self.tone, str):
            return f"var(--{self.tone})"
        return f"color-mix(in oklab, var(--plum) {100 * self.tone:.0f}%, var(--grey))"


def line_chart(
    lines: Sequence[Line],
    *,
    caption: str,
    x: str,
    y: str,
    y_ends: tuple[float, float] | None = None,
    reference: float | None = None,
    small: bool = False,
) -> Markup:
    """Return curves with axes; a chart without points is empty.

    Args:
        lines: the curves, those on top last.
        caption: what to see, above it.
        x: what the x-axis shows.
        y: what the y-axis shows.
        y_ends: ends of the y-axis; None: 0 to the highest value.
        reference: height of a dotted line across, such as 1.
        small: for charts of which several are side by side.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup()
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    low, high = y_ends or (0.0, max([p[1] for p in points] + [reference or 0.0]))
    whole = all(float(p[0]).is_integer() for p in points)
    across = ticks(left, right, 4 if small else 8, least=1.0 if whole else 0.0)
    up = ticks(low, high, 3 if small else 5)
    high = max(high, up[-1])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return _share(point[0], left, right), HEIGHT - _share(point[1], low, high)

    return render(
        "line_chart.html",
        lines=[(line, _path([place(p) for p in line.points])) for line in lines],
        dots=[(line, place(p)) for line in lines if line.dots for p in line.points],
        across=[(number(t), _share(t, left, right)) for t in across],
        up=[(number(t), HEIGHT - _share(t, low, high)) for t in up],
        reference=None if reference is None else HEIGHT - _share(reference, low, high),
        caption=caption,
        x=x,
        y=y,
        small=small,
    )


def ticks(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """Return about ``most`` round numbers from low to high, with steps of ``least`` or more.

    The last may lie above ``high``, so that the highest point is within the axis.

    >>> ticks(0, 0.31, 5)
    [0.0, 0.1, 0.2, 0.3, 0.4]
    """
    if high <= low:
        return [low]
    rough = max((high - low) / most, least)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Format a number of an axis, without zeros at its end.

    >>> number(0.25), number(12000)
    ('0.25', '12,000')
    """
    return f"{value:,.10g}"


def _share(value: float, low: float, high: float) -> float:
    """Return how far a value is from low to high, in per cent."""
    return round(100 * (value - low) / (high - low), 2) if high > low else 50.0


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""
