"""Compositions of all axes by what they are for: --preset.

A preset is a set of recipe fields. It is put into a recipe where it is read, so that a recipe.yaml
has the fields themselves and makes the same checkpoint when presets have moved on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..base.errors import UnknownNameError

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """What one wants, as fields of a recipe.

    Attributes:
        about: what it is for.
        free: for patterns that let layers and rows have different shares.
        fixed: for one N:M.
    """

    about: str
    free: Fields
    fixed: Fields


PRESETS = {
    "fast": Preset(
        "better than SparseGPT, and learns nothing",
        {"method": "mrp-sm"},
        {"method": "mrp-sm"},
    ),
    "best": Preset(
        "the lowest perplexity that docs/results.md has; learns for hours if need be",
        {
            "method": "besa",
            "update": "least-squares",
            "refine": "swaps",
            "reconstruct": "block",
            "settings": {"allocation.granularity": "two-blocks", "reconstruct.norms": True},
        },
        {"method": "mrp-sm", "permutation": "fold"},
    ),
}


def with_preset(fields: Fields) -> dict[str, Any]:
    """Replace ``preset`` by what it stands for, under all other fields.

    >>> with_preset({"preset": "best", "pattern": "2:4", "permutation": "none"})
    {'method': 'mrp-sm', 'permutation': 'none', 'pattern': '2:4'}

    Raises:
        UnknownNameError: no such preset.
    """
    others = {name: value for name, value in fields.items() if name != "preset"}
    name = fields.get("preset")
    if name is None:
        return others
    if name not in PRESETS:
        raise UnknownNameError("preset", str(name), PRESETS)
    preset = PRESETS[name]
    own = preset.fixed if is_one(str(others.get("pattern"))) else preset.free
    settings = {**own.get("settings", {}), **others.get("settings", {})}
    return {**own, **others, **({"settings": settings} if settings else {})}


def is_one(pattern: str) -> bool:
    """Return whether it spells one N:M, which has a sparsity of its own."""
    return ":" in pattern and "," not in pattern


def options(fields: Fields) -> str:
    """Spell fields as options of the command line.

    >>> options({"method": "ria", "settings": {"score.power": 0.4}})
    '--method ria --set score.power=0.4'
    """
    words = [f"--{name.replace('_', '-')} {x}" for name, x in fields.items() if name != "settings"]
    return " ".join([*words, *(f"--set {k}={v}" for k, v in fields.get("settings", {}).items())])
