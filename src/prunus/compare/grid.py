"""What a comparison asks: rows of methods, columns of patterns, seeds, and one protocol for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..base.errors import InputError
from ..base.yaml import read_mapping
from ..methods.presets import PRESETS
from ..methods.words import complaint
from ..recipe import Recipe

RANDOM = "random"  # the method that draws without text
PERPLEXITY = "perplexity"
Fields = dict[str, Any]
Named = dict[str, Fields]


class Protocol(BaseModel):
    """How every model of a comparison is judged, the dense one too.

    Attributes:
        text: sources of text whose perplexity is measured, as ``prunus eval --text`` takes them.
        length: tokens per window.
        windows: how many are scored; None: all.
        tasks: of lm-eval.
        shots: examples before each question; None: the task's own.
        limit: questions of each task; None: all.
        data_dir: where named texts and tasks lie as files.
        against: whether the models' predictions are compared with the dense model's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text: list[str] = Field(["builtin"], description="sources of text")
    length: int | None = Field(None, ge=2, description="tokens per window")
    windows: int | None = Field(None, ge=1, description="how many are scored")
    tasks: list[str] = Field([], description="tasks of lm-eval")
    shots: int | None = Field(None, ge=0, description="examples before each question")
    limit: int | None = Field(None, ge=1, description="questions of each task")
    data_dir: str | None = Field(None, description="where texts and tasks lie as files")
    against: bool = Field(True, description="compare predictions with the dense model's")

    @field_validator("text", "tasks", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _asks(self) -> Protocol:
        if not self.text and not self.tasks:
            raise ValueError("text and tasks are both empty")
        return self

    @property
    def texts(self) -> dict[str, str]:
        """Each source of text by its short name: of a path the last part, where that is clear."""
        short = [Path(text).name for text in self.text]
        return {
            name if short.count(name) == 1 else text: text
            for name, text in zip(short, self.text, strict=True)
        }

    @property
    def first(self) -> str:
        """The measure by which the best run is chosen: of the first text, else the first task."""
        return f"{PERPLEXITY} {next(iter(self.texts))}" if self.text else f"acc {self.tasks[0]}"


class Grid(BaseModel):
    """A comparison as data.

    Attributes:
        rows: recipe fields by the name of a row; they replace those of the column. Names alone
            are methods and presets.
        columns: recipe fields by the name of a column. Names alone are sparsities or patterns.
        only: the columns of a row that does not have them all.
        seeds: of every cell in which chance plays a part; a row with a ``seed`` has that one alone.
        recipe: fields of every recipe: the calibration text, its samples, their length, dtype …
        judge: how the models are judged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rows: Named = Field(min_length=1, description="recipe fields by row, or a list of methods")
    columns: Named = Field(
        {"50 %": {"sparsity": 0.5}},
        min_length=1,
        description="recipe fields by column, or a list of sparsities and patterns",
    )
    only: dict[str, list[str]] = Field({}, description="columns of a row, by row")
    seeds: list[int] = Field([0], min_length=1, description="a list of seeds")
    recipe: Fields = Field({}, description="recipe fields of every cell")
    judge: Protocol = Field(
        default_factory=lambda: Protocol.model_validate({}), description="how models are judged"
    )

    @field_validator("rows", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return {str(x): {"preset" if x in PRESETS else "method": x} for x in value}

    @field_validator("columns", mode="before")
    @classmethod
    def _patterns(cls, value: Any) -> Any:
        return dict(map(column, value)) if isinstance(value, list) else value

    @classmethod
    def of(cls, **fields: Any) -> Grid:
        """Make a grid from keyword arguments.

        >>> Grid.of(rows=["wanda"], columns=[0.5, "2:4"]).columns
        {'50 %': {'sparsity': 0.5}, '2:4': {'pattern': '2:4'}}

        Raises:
            InputError: an unknown field, a value of the wrong kind, or a row or column that
                ``only`` names and that is not there.
        """
        try:
            grid = cls(**fields)
        except ValidationError as error:
            said = {key: info.description for key, info in cls.model_fields.items()}
            raise InputError(f"The grid: {complaint(error, said)}") from None
        for row, names in grid.only.items():
            for name, known in ((row, grid.rows), *((x, grid.columns) for x in names)):
                if name not in cast(Mapping[str, Fields], known):
                    raise InputError(
                        f"The grid's `only` names {name!r}, which is none of {', '.join(known)}."
                    )
        return grid

    @classmethod
    def read(cls, path: str | Path, **replaced: Any) -> Grid:
        """Read a grid from a YAML file; ``replaced`` fields stand in place of its own."""
        return cls.of(**{**read_grid(path), **replaced})

    def cells(self) -> tuple[list[Cell], dict[tuple[str, str], str]]:
        """Return every run, and why other cells of the table cannot be run, by row and column.

        Raises:
            InputError: none of them can.
        """
        found: list[Cell] = []
        impossible: dict[tuple[str, str], str] = {}
        for row, fields in self.rows.items():
            for name in self.only.get(row, list(self.columns)):
                try:
                    recipe = self._recipe(self.columns[name], fields)
                except InputError as error:
                    impossible[row, name] = str(error)
                    continue
                found += [Cell(row, name, seed, recipe) for seed in self._seeds(recipe, fields)]
        if not found:
            (row, name), why = next(iter(impossible.items()))
            raise InputError(f"No cell of this grid can be run. {row} at {name}: {why}")
        return found, impossible

    def _recipe(self, of_column: Fields, of_row: Fields) -> Recipe:
        fields = joined(self.recipe, of_column, of_row)
        if ":" in str(of_column.get("pattern", "")) and "sparsity" not in of_row:
            fields.pop("sparsity", None)
        recipe = Recipe.of(**fields)
        reads = recipe.build().reads_text
        return (
            recipe
            if reads or "calibration" in of_row
            else recipe.replaced(calibration="none", answers=False)
        )

    def _seeds(self, recipe: Recipe, fields: Fields) -> list[int]:
        """Return the seeds that give different results; the first where none do."""
        if "seed" in fields:
            return [int(fields["seed"])]
        chance = recipe.method == RANDOM or recipe.build().reads_text
        return self.seeds if chance else self.seeds[:1]


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        row: its name in the table.
        column: likewise.
        seed: of sampling and generation.
        given: the recipe, but for the seed.
    """

    row: str
    column: str
    seed: int
    given: Recipe

    @property
    def recipe(self) -> Recipe:
        """The recipe with its seed."""
        return self.given.replaced(seed=self.seed)

    def __str__(self) -> str:
        return f"{self.row}, {self.column}, seed {self.seed}"


def joined(*layers: Mapping[str, Any]) -> Fields:
    """Put fields over those of the layers before, settings together.

    >>> joined({"samples": 4, "settings": {"a": 1}}, {"settings": {"b": 2}})
    {'samples': 4, 'settings': {'a': 1, 'b': 2}}
    """
    settings = {k: v for fields in layers for k, v in (fields.get("settings") or {}).items()}
    found = {k: v for fields in layers for k, v in fields.items() if k != "settings"}
    return {**found, **({"settings": settings} if settings else {})}


def column(value: Any) -> tuple[str, Fields]:
    """Return the name and the recipe fields of a sparsity, a pattern, or both: ``0.6 row``.

    >>> column("0.6"), column("2:4")
    (('60 %', {'sparsity': 0.6}), ('2:4', {'pattern': '2:4'}))
    """
    words = str(value).split()
    fields: Fields = {}
    names: list[str] = []
    for word in words:
        try:
            fields["sparsity"] = float(word)
            names.append(f"{100 * fields['sparsity']:g} %")
        except ValueError:
            fields["pattern"] = word
            names.append(word)
    return " ".join(names), fields


def listed(values: Sequence[str]) -> list[str]:
    """Split what was given with commas, repeated, or both."""
    return [word.strip() for value in values for word in value.split(",") if word.strip()]


def read_grid(path: str | Path) -> Fields:
    """Return the fields in a YAML file of a grid, not yet looked at."""
    return read_mapping(path, "grid", "rows: [wanda, ria]")
