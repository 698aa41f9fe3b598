"""Types of the arguments of public calls: one sentence for a wrong type, before any work."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from .errors import InputError
from .team import Team

P = ParamSpec("P")
R = TypeVar("R")

TOKENIZER = ((Callable,), "a tokenizer, such as AutoTokenizer.from_pretrained gives")
FUNCTION = ((Callable,), "a function")
# By annotation, which the public calls keep to these words; others are judged by the call itself.
KINDS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "str | Path": ((str, Path), "a path"),
    "str | Path | Sequence[str | Path]": ((str, Path, Sequence), "a path, or a list of some"),
    "bool": ((bool,), "True or False"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a string"),
    "Dtype": ((str,), "a string or a torch.dtype"),
    "Scored": FUNCTION,
    "Callable[[str], None]": FUNCTION,
    "Team": ((Team,), "what prunus.base.team.Team.join() gives"),
}


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Check arguments by their annotations, and convert equivalent ones.

    A path of any kind becomes a ``Path``, a ``torch.dtype`` or ``torch.device`` its name, a number
    of numpy or torch one of Python.
    """
    signature = inspect.signature(function)
    kinds = {name: _kind(name, str(p.annotation)) for name, p in signature.parameters.items()}

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            kind = kinds[name]
            if kind is not None and not (value is None and kind[2]):
                given.arguments[name] = _checked(name, value, *kind[:2])
            elif name == "model" and isinstance(value, os.PathLike):
                given.arguments[name] = Path(value)
        return function(*given.args, **given.kwargs)

    return called


def _kind(name: str, annotation: str) -> tuple[tuple[Any, ...], str, bool] | None:
    """Return the types, their names, and whether None is allowed; None if not judged here."""
    if (name, annotation) == ("tokenizer", "Any"):
        return (*TOKENIZER, True)
    found = KINDS.get(annotation.removesuffix(" | None"))
    return None if found is None else (*found, annotation.endswith("None"))


def _checked(name: str, value: Any, types: tuple[Any, ...], what: str) -> Any:
    """Return the value as the library uses it; raise InputError if it has another type."""
    value = as_word(value)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise InputError(f"{name} is {what}; got {shown(value)} ({type(value).__name__}).")
    return value


def as_word(value: Any) -> Any:
    """Return a path as a Path; a dtype, a device or a number of numpy as a recipe spells it."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, os.PathLike):
        return Path(value)
    single = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    return value.item() if single else value


def shown(value: object) -> str:
    """Return the ``repr`` of a value on one line, shortened if it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def block_range(name: str, text: str, blocks: int | None = None) -> range:
    """Return the blocks A to B − 1 of ``A:B``, counted from 0; ``name`` is the option's.

    Raises:
        InputError: it says something else, or exceeds the model's ``blocks`` where they are
            known.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    found = range(int(match[1]), int(match[2])) if match is not None else range(0)
    if not found or (blocks is not None and found.stop > blocks):
        most = f" <= {blocks}, the number of blocks" if blocks is not None else ""
        raise InputError(f"{name} is A:B with 0 <= A < B{most}; got {text!r}.")
    return found
