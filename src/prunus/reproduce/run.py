"""Measure an entry: each kind has one function, and tables of runs go to ``prunus.compare``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean
from typing import Any

from ..base.errors import InputError
from ..compare import Grid, Table, compare
from ..compare.grid import PERPLEXITY
from .activations import activation_ranks, activation_sizes
from .depth import block_error, one_layer
from .desk import Asked, Desk
from .entry import AVERAGE, DENSE, SECONDS, Entry, Kind, Measured, Rows
from .made import cycles, heads, quantised, speed
from .orders import retained_degree, search_times

__all__ = ["KINDS", "MODEL_FREE", "Asked", "measure"]

MODEL_FREE = ("orders",)
SORTS: tuple[tuple[Any, str], ...] = (
    (bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "a name"),
    (list | tuple, "a list"), (dict, "a mapping"),
)  # fmt: skip


def grid(desk: Desk) -> Rows:
    """Measure rows and columns of recipes through ``prunus.compare``, in the mean over seeds."""
    entry = desk.entry
    asked = grid_of(desk)
    with desk.folder() as folder:
        table = compare(desk.model, asked, folder, say=desk.say)
    desk.failed.extend(f"{row}, {column}: {why}" for (row, column), why in table.failed.items())
    sources = {source: name for name, source in asked.judge.texts.items()}

    def number(quality: Callable[[str], float | None], measure: str) -> float | None:
        if measure in sources:
            return quality(f"{PERPLEXITY} {sources[measure]}")
        metrics = entry.protocol.tasks
        names = [measure] if measure in metrics else [*metrics] if measure == AVERAGE else []
        found = [quality(f"{metrics[name]} {name}") for name in names]
        known = [x for x in found if x is not None]
        return 100 * mean(known) if known and len(known) == len(found) else None

    rows: Rows = {DENSE: {}}
    for column in entry.columns:
        for measure in entry.measures:
            label = desk.label(column, measure)
            rows[DENSE][label] = number(table.dense.quality.get, measure)
            for row in entry.rows:
                of_cell = partial(_mean, table, row, column)
                runs = [x.seconds for x in table.runs if (x.row, x.column) == (row, column)]
                seconds = mean(runs) if runs and measure == SECONDS else None
                found = number(of_cell, measure) if seconds is None else seconds
                rows.setdefault(row, {})[label] = found
    return rows


def _mean(table: Table, row: str, column: str, measure: str) -> float | None:
    value = table.value(row, column, measure)
    return None if value is None else value.mean


def grid_of(desk: Desk) -> Grid:
    """Return the entry as a grid: its rows and columns, one recipe and one judge for all."""
    entry, asked, protocol = desk.entry, desk.asked, desk.entry.protocol
    texts = [text for text in protocol.texts if text in entry.measures]
    tasks = [*protocol.tasks]
    return Grid.of(
        rows={name: desk.scaled(fields) for name, fields in entry.rows.items()},
        columns={name: desk.scaled(fields) for name, fields in entry.columns.items()},
        only=entry.only,
        seeds=[*range(protocol.seeds)],
        recipe={**desk.fields({}), "dtype": asked.dtype, "device": asked.device},
        judge={
            "text": texts if texts or tasks else protocol.texts,
            "length": desk.length, "windows": asked.windows, "tasks": tasks,
            "shots": protocol.shots or None, "limit": asked.limit, "data_dir": asked.data_dir,
            "against": False,
        },
    )  # fmt: skip


KINDS: Mapping[Kind, Callable[..., Rows]] = {
    "grid": grid,
    "quantised": quantised,
    "cycles": cycles,
    "speed": speed,
    "block-error": block_error,
    "one-layer": one_layer,
    "heads": heads,
    "retained-degree": retained_degree,
    "orders": search_times,
    "activation-ranks": activation_ranks,
    "activation-sizes": activation_sizes,
}


def measure(
    entry: Entry,
    model: str = "",
    asked: Asked | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Measured:
    """Measure an entry on a model, by the paper's protocol where nothing else is asked for.

    Args:
        entry: see ``find``.
        model: folder, hub id or GGUF; searches for orders need none.
        asked: what differs from the paper's protocol.
        say: told what goes on.

    Raises:
        InputError: no model, an option that the kind does not have, or what the runs themselves
            reject.
    """
    asked = asked or Asked()
    if not model and entry.kind not in MODEL_FREE:
        raise InputError(f"{entry.id} is measured on a model: prunus reproduce {entry.id} MODEL.")
    check_options(entry, asked.options)
    desk = Desk(model, entry, asked, say)
    rows = KINDS[entry.kind](desk, **desk.entry.options)
    unlike = desk.unlike() if entry.kind not in MODEL_FREE else []
    return Measured(model or "this machine", rows, unlike, list(desk.files), list(desk.failed))


def options_of(kind: Kind) -> list[str]:
    """Return the names of a kind's options."""
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    return [x.name for x in parameters if x.kind is inspect.Parameter.KEYWORD_ONLY]


def check_options(entry: Entry, options: Mapping[str, Any]) -> None:
    """Raise InputError for an option that the kind does not have, or a value of another kind."""
    parameters = inspect.signature(KINDS[entry.kind]).parameters
    known = options_of(entry.kind)
    for name, value in options.items():
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has none"
            raise InputError(f"{entry.id} has no option {name!r}; an entry of its kind {has}.")
        usual = entry.options.get(name, parameters[name].default)
        usual = 0 if usual is None else usual  # the number of a block
        sort, word = next(x for x in SORTS if isinstance(usual, x[0]))
        if not isinstance(value, sort) or isinstance(value, bool) != isinstance(usual, bool):
            shown = list(usual) if isinstance(usual, tuple) else usual
            raise InputError(f"{name} is {word}, such as {shown}; got {value}.")
