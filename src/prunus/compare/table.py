"""What a comparison found: means and spreads over seeds, the best of each column, costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Literal

from .grid import PERPLEXITY, Grid
from .log import Run

Mark = Literal["", "best", "second"]
LOW = (PERPLEXITY, "KL")  # first words of measures of which less is better
COSTS = ("removed", "MiB a token reads", "of dense", "pruning (s)", "judging (s)", "peak (GiB)")


def better(measure: str, one: float, other: float) -> bool:
    """Whether one value of a measure is better than another; NaN is never."""
    return one < other if measure.split()[0] in LOW else one > other


@dataclass(frozen=True)
class Value:
    """A measure over the seeds of a cell.

    Attributes:
        mean: over the seeds.
        low: the lowest.
        high: the highest.
        seeds: how many.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Value:
        """Summarise the values of all seeds."""
        return cls(mean(values), min(values), max(values), len(values))

    def meets(self, other: Value) -> bool:
        """Whether the ranges meet: then seeds do not tell the two apart."""
        return self.low <= other.high and other.low <= self.high

    def shown(self, measure: str) -> str:
        """Return the mean, and half the range over seeds where there are several."""
        spread = (self.high - self.low) / 2
        digits = _digits(measure, self.mean)
        text = f"{self.mean:.{digits}f}"
        return f"{text} ± {spread:.{digits}f}" if self.seeds > 1 else text


def _digits(measure: str, value: float) -> int:
    if measure.startswith(PERPLEXITY):
        return 2 if value < 100 else 1
    return 1 if measure.startswith("greedy") else 3


@dataclass(frozen=True)
class Cell:
    """A cell of a printed table: its text, and whether it is the best of its column."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Sheet:
    """One printed table.

    Attributes:
        title: what it shows.
        head: names of the columns.
        rows: cells, the first of each row its name.
        note: how to read it.
    """

    title: str
    head: list[str]
    rows: list[list[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """The runs of a grid.

    Attributes:
        grid: what was asked.
        dense: the dense model.
        runs: all others.
        failed: why cells are empty, by row and column.
        model: its name.
    """

    grid: Grid
    dense: Run
    runs: list[Run]
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    model: str = "the model"

    @property
    def measures(self) -> list[str]:
        """Everything that was measured, in its order."""
        return list(dict.fromkeys(name for x in [*self.runs, self.dense] for name in x.quality))

    def value(self, row: str, column: str, measure: str) -> Value | None:
        """Return a measure over all seeds of a cell; None where there is no run."""
        found = [run.quality[measure] for run in self._runs(row, column) if measure in run.quality]
        return Value.of(found) if found else None

    def marks(self, measure: str) -> dict[tuple[str, str], Mark]:
        """Return the best and the second best cells of each column.

        The best has the best mean, and so is every cell whose range over seeds meets its range.
        The second best is found in the same way among the others.
        """
        found: dict[tuple[str, str], Mark] = {}
        for column in self.grid.columns:
            values = {row: self.value(row, column, measure) for row in self.grid.rows}
            left = {row: value for row, value in values.items() if value is not None}
            for mark in ("best", "second"):
                tied = _first(measure, left)
                found.update({(row, column): mark for row in tied})
                left = {row: value for row, value in left.items() if row not in tied}
        return found

    def sheets(self) -> list[Sheet]:
        """Return a table for each measure, the first with a note, and one of costs."""
        notes = [self._note(), *("" for _ in self.measures[1:])]
        sheets = [self._sheet(x, note) for x, note in zip(self.measures, notes, strict=True)]
        return [*sheets, self._costs()]

    def _note(self) -> str:
        several = any(len(self._runs(*place)) > 1 for place in self._places())
        note = "Best and second best of each column are marked."
        if several:
            note += " ± is half the range over seeds; where ranges meet, cells are tied."
        return note

    def _sheet(self, measure: str, note: str) -> Sheet:
        marks = self.marks(measure)
        known = self.dense.quality.get(measure)
        rows = []
        if known is not None:
            dense = Cell(Value.of([known]).shown(measure))
            rows = [[Cell("dense"), *(dense for _ in self.grid.columns)]]
        for row in self.grid.rows:
            cells = [Cell(row)]
            for column in self.grid.columns:
                value = self.value(row, column, measure)
                text = "—" if value is None else value.shown(measure)
                cells.append(Cell(text, marks.get((row, column), "")))
            rows.append(cells)
        return Sheet(measure, ["", *self.grid.columns], rows, note)

    def _costs(self) -> Sheet:
        rows = [_cost(["dense", ""], [self.dense], self.dense)]
        for row, column in self._places():
            runs = self._runs(row, column)
            if runs:
                rows.append(_cost([row, column], runs, self.dense))
        note = (
            "What a token reads: all weights once, zeros left out, with one bit a weight for where "
            "they are. Ordinary checkpoints store zeros as numbers and read as much as the dense "
            "model."
        )
        return Sheet("cost", ["", "", *COSTS], rows, note)

    def _places(self) -> Iterable[tuple[str, str]]:
        return ((row, column) for row in self.grid.rows for column in self.grid.columns)

    def _runs(self, row: str, column: str) -> list[Run]:
        return [run for run in self.runs if (run.row, run.column) == (row, column)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for machines."""
        return {
            "model": self.model,
            "grid": self.grid.model_dump(),
            "dense": vars(self.dense),
            "runs": [vars(run) for run in self.runs],
            "values": [
                {"row": row, "column": column, "measure": measure, **vars(value)}
                for row, column in self._places()
                for measure in self.measures
                if (value := self.value(row, column, measure)) is not None
            ],
            "failed": [
                {"row": row, "column": column, "why": why}
                for (row, column), why in self.failed.items()
            ],
        }


def _first(measure: str, values: dict[str, Value]) -> set[str]:
    """Return the rows with the best mean, and those whose ranges meet its range."""
    if not values:
        return set()
    best = next(iter(values.values()))
    for value in values.values():
        if better(measure, value.mean, best.mean):
            best = value
    return {row for row, value in values.items() if value.meets(best)}


def _cost(names: list[str], runs: Sequence[Run], dense: Run) -> list[Cell]:
    size = runs[0].token_bytes
    texts = [
        f"{mean(run.sparsity for run in runs):.1%}",
        "" if size is None else f"{size / 2**20:,.1f}",
        "" if size is None or not dense.token_bytes else f"{size / dense.token_bytes:.2f}",
        *(
            f"{mean(seconds):,.0f}" if any(seconds) else ""
            for seconds in ([r.seconds for r in runs], [r.judged_seconds for r in runs])
        ),
        f"{max(r.peak_bytes for r in runs) / 2**30:.1f}" if any(r.peak_bytes for r in runs) else "",
    ]
    return [Cell(text) for text in [*names, *texts]]
