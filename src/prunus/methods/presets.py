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
        "keeps the most, also for text unlike the calibration's; learns for hours if need be",
        {
            "method": "besa",
            "reconstruct": "block",
            "settings": {"allocation.granularity": "two-blocks", "reconstruct.norms": True},
        },
        {
            "method": "wanda",
            "permutation": "fold",
            "reconstruct": "block",
            "settings": {"reconstruct.norms": True},
        },
    ),
}


def of_preset(name: str, pattern: str | None) -> dict[str, Any]:
    """Return what a preset stands for with this pattern.

    >>> of_preset("fast", "2:4")
    {'method': 'mrp-sm'}

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    preset = PRESETS[name]
    return dict(preset.fixed if is_one(str(pattern)) else preset.free)


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
