"""Values given in Python, in the words of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..base.arguments import as_word, shown
from ..maths.patterns import parse_pattern
from .own import own_method, own_pattern
from .table import Method

TYPES = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "True or False",
    "dict_type": "a dict",
}


def in_words(fields: Mapping[str, Any]) -> tuple[dict[str, Any], Method | None]:
    """Return the fields as YAML has them, and the row of a method that is an object.

    Such a method says its pattern, unless another is asked for beside it.

    Raises:
        InputError: a method that is neither a name nor an object that could be one.
    """
    words = {name: _word(value) for name, value in fields.items()}
    method = words.get("method")
    if method is None or isinstance(method, str):
        return words, None
    words["method"], row = own_method(method)
    pattern = own_pattern(method)
    if pattern is not None:
        words.setdefault("pattern", pattern)
    return words, row


def _word(value: Any) -> Any:
    """Convert a path, dtype, device, pattern or number of numpy to what a recipe can hold."""
    value = as_word(value)
    if isinstance(value, Path) or type(value).__module__ == parse_pattern.__module__:
        return str(value)
    return value


def complaint(error: ValidationError, descriptions: Mapping[str, str | None]) -> str:
    """Return the first problem with a field, as a sentence."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    what = TYPES.get(first["type"])
    if what is None:
        return f"{name}: {first['msg']}; got {shown(first['input'])}."
    said = descriptions.get(str(first["loc"][0]))
    meaning = f" ({said})" if said else ""
    kind = type(first["input"]).__name__
    return f"{name} must be {what}{meaning}; got {shown(first['input'])} ({kind})."
