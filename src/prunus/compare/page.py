"""A comparison as a page of HTML, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ..base.words import number_of
from ..report.page import Cell as Marked
from ..report.page import Number, Section, bullets, facts, page, table
from .table import Cell, Sheet, Table

LEGEND = {"best": "best of its column", "second": "second best"}


def html(found: Table) -> str:
    """Return the page: a section for each measure, costs, the protocol, every run."""
    sections = [Section(sheet.title, [_sheet(sheet)]) for sheet in found.sheets()]
    return page(
        "Pruning methods by one protocol",
        [
            *sections,
            Section("Protocol", [_protocol(found)]),
            Section("Not run", _failures(found)),
            Section("Every run", [_runs(found)]),
        ],
        kind="Comparison",
        lead=f"{', '.join(_size(found))} of {found.model}.",
        numbers=_numbers(found),
        made_by="prunus compare",
    )


def _size(found: Table) -> list[str]:
    counts = {"row": found.grid.rows, "column": found.grid.columns, "run": found.runs}
    return [number_of(len(things), name) for name, things in counts.items()]


def _sheet(sheet: Sheet) -> Markup:
    rows = [[_marked(cell) for cell in row] for row in sheet.rows]
    return table(sheet.head, rows, legend=sheet.note)


def _marked(cell: Cell) -> Marked:
    return Marked(cell.text, cell.mark, note=LEGEND.get(cell.mark, ""))


def _numbers(found: Table) -> list[Number]:
    """Return the dense model's first measure, and the best of each column."""
    measure = found.grid.judge.first
    numbers = [Number(_said(found.dense.quality, measure), "dense", measure)]
    marks = found.marks(measure)
    for column in list(found.grid.columns)[:4]:
        best = [row for row in found.grid.rows if marks.get((row, column)) == "best"]
        values = {row: found.value(row, column, measure) for row in best}
        known = {row: value for row, value in values.items() if value is not None}
        if known:
            row = min(known, key=lambda name: known[name].mean)
            numbers.append(Number(f"{known[row].mean:.2f}", f"{row}, {column}", measure))
    return numbers


def _said(quality: Mapping[str, float], measure: str) -> str:
    return f"{quality[measure]:.2f}"


def _protocol(found: Table) -> Markup:
    recipe, judge = found.grid.recipe, found.grid.judge.model_dump(exclude_none=True)
    pairs = {
        "model": found.model,
        **{f"recipe: {name}": value for name, value in recipe.items()},
        "seeds": found.grid.seeds,
        **{f"judged on: {name}": value for name, value in judge.items() if value != []},
        **found.dense.versions,
    }
    return facts([(name, _words(value)) for name, value in pairs.items()])


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _failures(found: Table) -> list[Markup]:
    lines = [f"{row}, {column}: {why}" for (row, column), why in found.failed.items()]
    return [bullets(*lines)] if lines else []


def _runs(found: Table) -> Markup:
    head = ["", "", "seed", *found.measures, "calibration text"]
    rows = [
        [
            run.row,
            run.column.replace(" ", "\u00a0"),
            "" if run.seed is None else str(run.seed),
            *(f"{run.quality[x]:.4f}" if x in run.quality else "" for x in found.measures),
            (run.calibration or "none")[:12],
        ]
        for run in [found.dense, *found.runs]
    ]
    return table(head, rows, caption="As they were measured; the text by its hash.")
