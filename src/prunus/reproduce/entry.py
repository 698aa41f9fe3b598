"""A table or figure of a paper as data: recipes, protocol, published numbers, what differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..compare.grid import joined
from ..recipe import Recipe

DENSE = "Dense"  # the row of the model as it is
AVERAGE, SECONDS = "average", "seconds"  # measures that are neither a text nor a task

Kind = Literal[
    "grid", "quantised", "cycles", "speed", "block-error", "one-layer", "heads",
    "retained-degree", "orders", "activation-ranks", "activation-sizes",
]  # fmt: skip
Numbers = dict[str, list[float | None]]
"""By row; None: not in the paper, or not known."""
Rows = dict[str, dict[str, float | None]]
"""Numbers by row and label."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PaperProtocol(_Strict):
    """How a paper measured.

    Attributes:
        models: of the paper.
        calibration: text SOURCE; None: none is read.
        samples: calibration windows.
        length: tokens per window, of calibration and evaluation alike.
        texts: SOURCEs whose perplexity is measured.
        tasks: names in lm-eval, each with the metric that the paper reports, in per cent.
        shots: examples before each item of a task.
        seeds: how many runs a cell is the mean of.
        blocks: number of blocks that ``blocks`` and ``skip_blocks`` of the recipes are meant for;
            None: the recipes name none.
    """

    models: list[str]
    calibration: str | None
    samples: int = Field(ge=1)
    length: int = Field(ge=2)
    texts: list[str] = []
    tasks: dict[str, Literal["acc", "acc_norm"]] = {}
    shots: int = Field(0, ge=0)
    seeds: int = Field(1, ge=1)
    blocks: int | None = None


class Entry(_Strict):
    """One table or figure.

    Attributes:
        id: paper and place, such as ``ria/table-2``.
        title: as the paper has it.
        shows: what it is about, in a sentence.
        kind: what measures it: ``run.KINDS``.
        protocol: how the paper measured it.
        columns: recipe fields by the name of a column.
        rows: recipe fields by the name of a row; they replace those of the column, and settings
            are joined.
        only: the columns of a row that does not have them all.
        measures: what is measured in every cell: texts and tasks of the protocol, ``average`` of
            the tasks, ``seconds``.
        header: names of the published numbers where they are not those of columns and measures.
        options: of the kind.
        published: numbers by model and row, each row column by column, and in a column measure by
            measure; the row Dense has each measure once.
        said: what the paper states of it in words.
        missing: which published numbers are not here, and why.
        differs: what the authors' code, or this one, does differently.
        cannot: what cannot run everywhere, and the part that can.
    """

    id: str = Field(pattern=r"^[a-z]+/[a-z0-9]+(-[a-z0-9]+)*$")
    title: str
    shows: str
    kind: Kind
    protocol: PaperProtocol
    columns: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    only: dict[str, list[str]] = {}
    measures: list[str] = []
    header: list[str] = []
    options: dict[str, Any] = {}
    published: dict[str, Numbers] = {}
    said: list[str] = []
    missing: str = ""
    differs: list[str] = []
    cannot: list[str] = []

    @property
    def paper(self) -> str:
        """The first half of the id."""
        return self.id.partition("/")[0]

    def cells(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield row, column and recipe fields of every run."""
        for row, fields in self.rows.items():
            for column in self.only.get(row, [*self.columns] or [""]):
                yield row, column, joined(self.columns.get(column, {}), fields)

    def labels(self) -> list[str]:
        """Return the names of a row's published numbers."""
        if self.header:
            return self.header
        return [self.label(column, measure) for column in self.columns for measure in self.measures]

    def label(self, column: str, measure: str) -> str:
        """Return the name of a number: its column, its measure, or both where there are more."""
        if len(self.columns) < 2:
            return measure
        return column if len(self.measures) < 2 else f"{column}, {measure}"

    def numbers(self, model: str, row: str) -> dict[str, float | None]:
        """Return the published numbers of a row by label; those of Dense are in every column."""
        found, labels = self.published[model].get(row, []), self.labels()
        if row == DENSE and found:
            found = found * (len(labels) // len(found))
        return dict(zip(labels, found, strict=False))

    @model_validator(mode="after")
    def _fits(self) -> Entry:
        """Build every recipe, and count every row of numbers."""
        for name, columns in self.only.items():
            self._known(f"only: {name}", [name], self.rows)
            self._known(f"only: {name}", columns, self.columns)
        if self.kind == "grid":
            protocol = self.protocol
            known = [*protocol.texts, *protocol.tasks, AVERAGE, SECONDS]
            self._known("measures", self.measures, known)
            if not (self.rows and self.columns and self.measures):
                raise ValueError(f"{self.id}: a grid has rows, columns and measures")
        for row, column, fields in self.cells():
            try:
                Recipe.of(**fields).build()
            except ValueError as error:
                raise ValueError(f"{self.id}, {row}, {column}: {error}") from None
        for model, rows in self.published.items():
            if self.kind == "grid":
                self._known(f"published: {model}", rows, [DENSE, *self.rows])
            for row, found in rows.items():
                self._counted(model, row, len(found))
        return self

    def _counted(self, model: str, row: str, found: int) -> None:
        expected = {len(self.labels())}
        if row == DENSE and self.measures:
            expected = {len(self.measures)}
        if found not in expected:
            raise ValueError(
                f"{self.id}: {model}, {row} has {found} numbers instead of {expected.pop()}"
            )

    def _known(self, where: str, names: Any, known: Any) -> None:
        for name in names:
            if name not in known:
                raise ValueError(f"{self.id}, {where}: no {name!r} in {', '.join(known)}")


@dataclass(frozen=True)
class Measured:
    """What was measured of an entry.

    Attributes:
        model: what was pruned.
        rows: numbers by row and label.
        unlike: where the run differs from the paper's protocol, as sentences.
        files: pictures and checkpoints that were written.
        failed: cells that have no number, and why.
    """

    model: str
    rows: Rows
    unlike: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def labels(self) -> list[str]:
        """Return the names of the numbers, in order."""
        return list(dict.fromkeys(label for row in self.rows.values() for label in row))
