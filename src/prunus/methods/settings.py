"""``--set score.power=0.4``: fields of a composition of parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..base.errors import InputError


def set_field(part: Any, path: str, names: list[str], value: Any) -> Any:
    """Return the part with one field changed, possibly a field of a part inside of it.

    Args:
        part: a frozen dataclass.
        path: as it was asked for, for messages.
        names: of the fields on the way.
        value: as a Python value, or as typed on a command line.

    Raises:
        InputError: no such field, or a value of another type.
    """
    within = ".".join(names)
    return set_fields(part, {within: value}, path.removesuffix(within))


def set_fields(part: Any, settings: Mapping[str, Any], above: str = "") -> Any:
    """Return the part with all these fields changed at once, as some need each other.

    Args:
        part: a frozen dataclass.
        settings: values by path, such as ``heads.threshold``.
        above: what stands before each path in what was asked for, for messages.

    Raises:
        InputError: no such field, or a value of another type.
    """
    known = [f.name for f in fields(part) if f.init] if is_dataclass(part) else []
    changed: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        name, _, rest = path.partition(".")
        if name not in known:
            raise InputError(
                f"--set {above}{path}: {type(part).__name__} has no field {name!r}; "
                f"it has {', '.join(known) or 'none'}."
            )
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            changed[name] = _converted(f"{above}{path}", value, getattr(part, name))
    for name, within in inner.items():
        changed[name] = set_fields(getattr(part, name), within, f"{above}{name}.")
    return replace(part, **changed)


def _converted(path: str, value: Any, old: Any) -> Any:
    """Convert a value, possibly as typed on a command line, to the kind that the field has."""
    if isinstance(value, str) and isinstance(old, bool) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and type(old) in (int, float):
        try:
            return type(old)(value)
        except ValueError:
            pass
    if type(old) is float and type(value) is int:
        return float(value)
    if type(value) is type(old):
        return value
    if type(old) not in (bool, int, float, str):
        raise InputError(
            f"--set {path}: {old!r} is a part, not a number or a word; set its fields."
        )
    raise InputError(
        f"--set {path}={value}: expected {type(old).__name__} such as {old!r}, got {value!r}."
    )
