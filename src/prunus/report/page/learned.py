"""Shares that were learned or searched for: how the loss fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..plots import learned_points
from .charts import Line, line_chart
from .rendering import beside, prose
from .skeleton import Section
from .words import count


def learning(curves: Sequence[Mapping[str, Any]]) -> Section:
    """Return the section on BESA's learning; without curves it is empty."""
    curves = [curve for curve in curves if curve["loss"]]
    if not curves:
        return Section("Learned shares", [])
    last = [(curve["blocks"][0], curve["loss"][-1]) for curve in curves]
    best, mean = min(last, key=lambda x: x[1]), sum(loss for _, loss in last) / len(last)
    said = prose(
        f"How much of each layer is removed was learned, {count(len(curves), 'unit')} one after "
        f"the other, by the error at the unit's output. The loss is in terms of that of the "
        f"uniform mask, which is 1. It ended at {mean:.2f} in the mean, and at {best[1]:.2f} in "
        f"block {best[0]}, the lowest."
    )
    over_steps = line_chart(
        [_line(curve, i / max(len(curves) - 1, 1), len(curves)) for i, curve in enumerate(curves)],
        caption="The loss of every unit while it learned, means over 16 steps. Curves that are "
        "still falling at the end could have learned longer.",
        x="step",
        y="loss, of the uniform mask's",
        reference=1,
    )
    over_depth = line_chart(
        [Line(last, dots=True)],
        caption="The loss at the end, over depth. Low blocks gained the most from shares of their "
        "own.",
        x="block",
        y="loss, of the uniform mask's",
        reference=1,
    )
    return Section("Learned shares", [said, beside(over_steps, over_depth)])


def searching(search: Mapping[str, Any] | None) -> Section:
    """Return the section on the search for shares of blocks or layers; without one it is empty."""
    if search is None:
        return Section("Searched shares", [])
    best, uniform = search["best"], search["uniform"]
    said = prose(
        f"How much of each block is removed was searched for: candidates were compared with the "
        f"dense model on {count(search['tokens'], 'token')} of held-out calibration text. The best "
        f"diverges from it by {best:.3g} nats a token; with equal shares it is {uniform:.3g}."
    )
    points = list(zip(search["steps"], search["loss"], strict=True))
    chart = line_chart(
        [Line(points, dots=search["over"] == "slope")],
        caption="The divergence from the dense model. Dotted: that of equal shares.",
        x=search["over"],
        y="KL in nats",
        reference=uniform,
    )
    return Section("Searched shares", [said, chart])


def _line(curve: Mapping[str, Any], depth: float, curves: int) -> Line:
    """Return a curve; the first and the last of all are named."""
    label = f"block {curve['blocks'][0]}" if depth in (0, 1) else ""
    return Line(learned_points(curve), label, depth if curves > 1 else "plum")
