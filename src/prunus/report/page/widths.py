"""Heads and neurons that were removed, and which heads attend alike."""

from __future__ import annotations

import math
from collections.abc import Iterator

from markupsafe import Markup

from ...base.words import number_of
from ..report import PruningReport
from ..unit_plots import alike, closest_fifth, kept_heads
from ..units import BlockChange, UnitsReport
from .rendering import prose, render
from .skeleton import Section
from .tables import Cell, table
from .words import millions, percent

OUTPUTS = {"heads": "attention", "neurons": "MLP"}
MIDDLE, RADIUS, OUTSIDE = 60, 38, 50  # of a panel of 120 × 120


def heads_and_neurons(report: PruningReport) -> Section:
    """Return the section on what is left of each block; without it, it is empty."""
    units = report.structured
    if units is None:
        return Section("Heads and neurons", [])
    before, after = units.parameters
    said = prose(
        f"{before:,} parameters became {after:,}. Removed were {units.shares}.",
        *([f"Which of them: {units.bound}."] if units.bound else []),
    )
    return Section("Heads and neurons", [said, _table(units), _recovery(report), _graph(units)])


def _table(units: UnitsReport) -> Markup:
    columns = ["block", "heads", "key/value heads", "neurons", "parameters", "removed"]
    kept = any(block.kept_heads is not None for block in units.blocks)
    rows = []
    for block in units.blocks:
        pairs = (block.heads, block.kv_heads, block.neurons)
        row: list[str | Cell] = [str(block.block), *map(_change, pairs)]
        row += [_change(block.parameters), Cell(percent(block.removed), bar=block.removed)]
        rows.append([*row, _squares(block)] if kept else row)
    legend = ""
    if kept:
        columns.append("groups of heads")
        legend = "A square is a group of query heads that share a key/value head, or a query head "
        legend += "where those were removed alone. Filled: kept; hollow: removed."
    return table(columns, rows, caption="Widths of each block, before and after.", legend=legend)


def _change(pair: tuple[int, int] | None) -> str:
    if pair is None:
        return "as before"
    before, after = (millions(x) for x in pair)
    return before if pair[0] == pair[1] else f"{before}\u00a0→\u00a0{after}"


def _squares(block: BlockChange) -> Markup:
    """Draw which groups of heads were kept."""
    if block.kept_heads is None or block.heads is None or block.kv_heads is None:
        return Markup()
    groups, left = block.kv_heads
    alone = groups == left and len(block.kept_heads) == block.heads[1]  # query heads went
    total = block.heads[0] if alone else groups
    kept = set(block.kept_heads)
    squares = [
        (100 if i in kept else 0, i not in kept, f"{i}: {'kept' if i in kept else 'removed'}")
        for i in range(total)
    ]
    gone = ", ".join(str(i) for i in range(total) if i not in kept) or "none"
    return render("squares.html", squares=squares, hue="plum", said=f"removed: {gone}")


def _recovery(report: PruningReport) -> Markup:
    """Return errors on text that was held out, before and after layers were solved anew."""
    found: dict[str, list[tuple[float, float]]] = {}
    modules = {(layer.block, layer.pattern): layer for layer in report.layers}  # notes are alike
    for layer in modules.values():
        for stage in ("recovery", "repair"):
            for pair in _solved(layer.notes.get(stage)):
                found.setdefault(layer.pattern, []).append(pair)
    rows: list[list[str | Cell]] = []
    for unit, pairs in found.items():
        before, after = (sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
        less = percent(1 - after / before) if before else "–"
        rows.append([OUTPUTS.get(unit, unit), f"{before:.3f}", f"{after:.3f}", less])
    if not rows:
        return Markup()
    return table(
        ("output of", "before", "after", "less"),
        rows,
        caption="Recovery: the error on calibration text that was held out, the mean over blocks.",
    )


def _solved(notes: object) -> Iterator[tuple[float, float]]:
    """Yield (before, after) of every layer that was solved."""
    if isinstance(notes, dict):
        if {"held_out_before", "held_out_after"} <= notes.keys():
            yield float(notes["held_out_before"]), float(notes["held_out_after"])
        else:
            for part in notes.values():
                yield from _solved(part)


def _graph(units: UnitsReport) -> Markup:
    """Draw which heads attend alike, in a panel for each block that was looked at."""
    threshold = closest_fifth(units)
    panels = [
        _panel(block, threshold)
        for block in units.blocks
        if block.divergence is not None and len(block.divergence) > 1
    ]
    if not panels:
        return Markup()
    return render("heads.html", panels=panels, threshold=f"{threshold:.3g}")


def _panel(block: BlockChange, threshold: float) -> Markup:
    divergence = block.divergence or []
    stay = kept_heads(block)
    places = [2 * math.pi * head / len(divergence) for head in range(len(divergence))]

    def at(angle: float, radius: float) -> tuple[float, float]:
        return (
            round(MIDDLE + radius * math.sin(angle), 1),
            round(MIDDLE - radius * math.cos(angle), 1),
        )

    gone = [head for head in range(len(divergence)) if head not in stay]
    pairs = alike(divergence, threshold)
    return render(
        "heads_panel.html",
        block=block.block,
        joined=number_of(len(pairs), "pair"),
        edges=[(at(places[i], RADIUS), at(places[j], RADIUS)) for i, j in pairs],
        heads=[
            (i, at(angle, RADIUS), at(angle, OUTSIDE), i in stay) for i, angle in enumerate(places)
        ],
        gone=", ".join(map(str, gone)) or "none",
    )
