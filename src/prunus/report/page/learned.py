"""Shares that were learned or searched for, blocks that were reconstructed: how the loss fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...base.words import number_of
from ..plots import held_out_points, learned_points, part_name
from .charts import Line, line_chart
from .rendering import beside, prose
from .skeleton import Section


def learning(curves: Sequence[Mapping[str, Any]]) -> Section:
    """Return the section on BESA's learning; without curves it is empty."""
    curves = [curve for curve in curves if curve["loss"]]
    if not curves:
        return Section("Learned shares", [])
    last = [(curve["blocks"][0], curve["loss"][-1]) for curve in curves]
    best, mean = min(last, key=lambda x: x[1]), sum(loss for _, loss in last) / len(last)
    said = prose(
        f"How much of each layer is removed was learned, {number_of(len(curves), 'unit')} one "
        f"after the other, by the error at the unit's output. The loss is in terms of that of the "
        f"uniform mask, which is 1. It ended at {mean:.2f} in the mean, and at {best[1]:.2f} in "
        f"block {best[0]}, the lowest."
    )
    over_steps = line_chart(
        _lines([(f"block {curve['blocks'][0]}", learned_points(curve)) for curve in curves]),
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
        f"dense model on {number_of(search['tokens'], 'token')} of held-out calibration text. The "
        f"best diverges from it by {best:.3g} nats a token; with equal shares it is {uniform:.3g}."
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


def reconstruction(parts: Sequence[Mapping[str, Any]]) -> Section:
    """Return the section on reconstructed blocks; without any it is empty."""
    if not parts:
        return Section("Reconstruction", [])
    left = [(part["block"], min(part["held"])) for part in parts]
    best, mean = min(left, key=lambda x: x[1]), sum(loss for _, loss in left) / len(left)
    same = sum(loss == 1 for _, loss in left)
    kept = (
        f" {number_of(same, 'part')} kept its old weights, because none were better."
        if same
        else ""
    )
    said = prose(
        "When a block was pruned, its kept weights learned from the error of what it puts out, on "
        "some samples of the calibration text. The others judged them: the held-out loss is in "
        f"terms of that of the block as it was pruned, which is 1. It ended at {mean:.2f} in the "
        f"mean, and at {best[1]:.2f} in block {best[0]}, the lowest.{kept}"
    )
    over_steps = line_chart(
        _lines([(part_name(part), held_out_points(part)) for part in parts]),
        caption="The held-out loss of every block after each pass over the other samples. Of a "
        "curve that rises again, the weights at its lowest point are kept.",
        x="step",
        y="held-out loss, of the pruned block's",
        reference=1,
    )
    last = [(part["block"], part["loss"][-1]) for part in parts if part["loss"]]
    over_depth = line_chart(
        [Line(left, "held out", dots=True), Line(last, "learned from", "ochre", dots=True)],
        caption="The loss at the end, over depth. Where that of the samples that were learned from "
        "is far lower, more text would help.",
        x="block",
        y="loss, of the pruned block's",
        reference=1,
    )
    return Section("Reconstruction", [said, beside(over_steps, over_depth)])


def _lines(named: Sequence[tuple[str, list[tuple[float, float]]]]) -> list[Line]:
    """Return curves in the order of depth; the first and the last of all are named."""
    ends, most = (0, len(named) - 1), max(len(named) - 1, 1)
    return [
        Line(points, name if i in ends else "", i / most if len(named) > 1 else "plum")
        for i, (name, points) in enumerate(named)
    ]
