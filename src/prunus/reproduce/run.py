"""Measure an entry: each kind has one function, and tables of runs go to ``prunus.compare``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ..base.errors import InputError
from .activations import activation_ranks, activation_sizes
from .depth import block_error, one_layer
from .desk import Asked, Desk
from .entry import Entry, Kind, Measured, Rows
from .made import cycles, heads, quantised, speed
from .orders import retained_degree, search_times

__all__ = ["KINDS", "MODEL_FREE", "Asked", "measure"]

MODEL_FREE = ("orders",)
SORTS: tuple[tuple[Any, str], ...] = (
    (bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "a name"),
    (list | tuple, "a list"), (dict, "a mapping"),
)  # fmt: skip


def grid(desk: Desk) -> Rows:
    """Measure rows and columns of recipes through ``prunus.compare``."""
    try:
        compare: Any = import_module("prunus.compare")
    except ModuleNotFoundError:
        raise InputError(
            f"{desk.entry.id} is a table of runs, for `prunus compare`, which this version does "
            "not have. --show prints its recipes and the published numbers."
        ) from None
    raise NotImplementedError(compare)


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
    desk = Desk(model, asked.of(entry), asked, say)
    rows = KINDS[entry.kind](desk, **desk.entry.options)
    unlike = desk.unlike(entry) if entry.kind not in MODEL_FREE else []
    return Measured(model or "this machine", rows, unlike, list(desk.files))


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
