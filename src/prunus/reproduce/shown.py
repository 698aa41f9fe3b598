"""Published numbers beside measured ones, as tables of text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..base.words import number_of
from .entry import DENSE, Entry, Measured


@dataclass(frozen=True)
class Sheet:
    """A table: a header, and rows of as many cells."""

    header: list[str]
    rows: list[list[str]]


def sheets(entry: Entry, measured: Measured | None = None) -> list[Sheet]:
    """Return the published and the measured numbers.

    Where they have labels in common it is one table, row by row below each other; else two.
    """
    published = entry.labels() if entry.published else []
    found = measured.labels() if measured else []
    if not published or not found or {*published} & {*found}:
        labels = list(dict.fromkeys([*published, *found]))
        return [_sheet(entry, measured, labels)] if labels else []
    return [_sheet(entry, None, published), _sheet(None, measured, found)]


def _sheet(entry: Entry | None, measured: Measured | None, labels: list[str]) -> Sheet:
    models = list(entry.published) if entry else []
    names = [*entry.rows] if entry else []
    names += [row for model in models for row in entry.published[model]] if entry else []
    names += [*measured.rows] if measured else []
    rows = []
    for row in sorted(dict.fromkeys(names), key=lambda name: name != DENSE):
        lines = []
        for model in models:
            numbers = entry.numbers(model, row) if entry else {}
            if numbers:
                lines.append([model, *(_exact(numbers.get(label)) for label in labels)])
        if measured and row in measured.rows:
            numbers = measured.rows[row]
            lines.append(["measured", *(_rounded(numbers.get(label)) for label in labels)])
        rows += [["" if i else row, *line] for i, line in enumerate(lines)]
    return Sheet(["", "", *labels], rows)


def agreement(entry: Entry, measured: Measured) -> list[str]:
    """Say for each model of the paper how many pairs of rows are in the order that it found.

    Only recipes count, not the dense model or what follows from a row (its sparsity beside its
    cycles); only labels for which both rows have a published and a measured number; and only pairs
    that differ in the paper.
    """
    said = []
    for model, rows in entry.published.items():
        same = total = 0
        named = [row for row in entry.rows or rows if row in rows and row in measured.rows]
        for one, other in combinations(named, 2):
            theirs = entry.numbers(model, one), entry.numbers(model, other)
            ours = measured.rows[one], measured.rows[other]
            for label in theirs[0]:
                gaps = [_gap(a.get(label), b.get(label)) for a, b in (theirs, ours)]
                if all(gap is not None for gap in gaps) and gaps[0]:
                    total, same = total + 1, same + (gaps[0] == gaps[1])
        if total:
            said.append(f"{model}: {same} of {total} pairs of rows in the same order")
    return said


def _gap(one: float | None, other: float | None) -> int | None:
    """Return the sign of the difference."""
    return None if one is None or other is None else (one > other) - (one < other)


def options(fields: Mapping[str, Any]) -> str:
    """Return recipe fields as `prunus prune` takes them."""
    words = []
    for name, value in fields.items():
        if name == "settings":
            words += [f"--set {path}={_word(found)}" for path, found in value.items()]
        elif value is True:
            words.append(f"--{name.replace('_', '-')}")
        else:
            words.append(f"--{name.replace('_', '-')} {_word(value)}")
    return " ".join(words)


def protocol(entry: Entry) -> list[str]:
    """Return what the paper measured with, a line for each thing."""
    asked = entry.protocol
    lines = [f"models: {', '.join(asked.models) or 'not named'}"]
    if asked.calibration is not None:
        windows = number_of(asked.samples, "window")
        lines.append(f"calibration: {windows} of {asked.length} tokens of {asked.calibration}")
    if asked.texts:
        lines.append(f"perplexity on: {', '.join(asked.texts)}")
    if asked.tasks:
        shots = f", {asked.shots} shots" if asked.shots else ""
        tasks = ", ".join(f"{name} ({metric})" for name, metric in asked.tasks.items())
        lines.append(f"tasks of lm-eval, per cent{shots}: {tasks}")
    return lines


def recipes(entry: Entry) -> list[tuple[str, str]]:
    """Return name and options of all columns and rows."""
    columns = [(name, options(fields)) for name, fields in entry.columns.items()]
    rows = [(name, options(fields)) for name, fields in entry.rows.items()]
    return [*((f"column {name}", said) for name, said in columns), *rows]


def to_dict(entry: Entry, measured: Measured) -> dict[str, Any]:
    """Return what ``--json`` prints of a run; infinite perplexities are null."""
    rows = {
        row: {k: v if v is not None and math.isfinite(v) else None for k, v in numbers.items()}
        for row, numbers in measured.rows.items()
    }
    return {
        "id": entry.id, "model": measured.model, "measured": rows, "published": entry.published,
        "labels": entry.labels(), "unlike": measured.unlike, "differs": entry.differs,
        "agreement": agreement(entry, measured), "files": measured.files,
        "failed": measured.failed,
    }  # fmt: skip


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _exact(number: float | None) -> str:
    return "" if number is None else f"{number:.8g}"


def _rounded(number: float | None) -> str:
    if number is None:
        return ""
    if abs(number) >= 1e6 or (number and abs(number) < 0.01):
        return f"{number:.2e}"
    return f"{number:.0f}" if number == round(number) else f"{number:.{2 if number >= 1 else 3}f}"
