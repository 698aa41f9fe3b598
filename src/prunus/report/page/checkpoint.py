"""What a page is made of: the report, the files beside it, and evaluations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..report import PruningReport, read_report
from .evaluations import Evaluations

WEIGHTS = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class Checkpoint:
    """A pruned checkpoint as its small files describe it.

    Attributes:
        folder: where it lies.
        report: of the run.
        config: ``config.json``; empty if there is none that can be read.
        recipe: ``recipe.yaml`` as text; empty likewise.
        auto: the Auto class that the model card names.
        bytes: size of the files of weights.
        measured: evaluations that were given beside it.
    """

    folder: Path
    report: PruningReport
    config: Mapping[str, Any]
    recipe: str
    auto: str
    bytes: int
    measured: Evaluations = Evaluations()

    @classmethod
    def read(cls, folder: Path, evaluations: Sequence[Path] = ()) -> Checkpoint:
        """Read all but the weights.

        Raises:
            CheckpointError: there is no report, or it is damaged.
            InputError: a file holds no evaluation.
        """
        report = read_report(folder)
        place = folder.parent if folder.suffix == ".json" else folder
        card = re.search(r"from transformers import (Auto\w+)", _text(place / "README.md"))
        return cls(
            folder=place,
            report=report,
            config=_config(place / "config.json"),
            recipe=_text(place / "recipe.yaml"),
            auto=card[1] if card else "AutoModelForCausalLM",
            bytes=sum(p.stat().st_size for p in place.iterdir() if p.suffix in WEIGHTS),
            measured=Evaluations.read(evaluations),
        )

    def has(self, file: str) -> bool:
        """Return whether there is such a file."""
        return (self.folder / file).is_file()

    @property
    def choices(self) -> Mapping[str, Any]:
        """Fields of the recipe; empty if it is damaged."""
        try:
            found = yaml.safe_load(self.recipe)
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _config(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_text(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
