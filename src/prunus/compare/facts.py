"""What decides the result of a run of a comparison, for its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..report.report import VERSIONS
from ..run.fingerprint import choices, defaults, files_of
from ..storage.journal import sha256
from ..text.mixture import parts_of
from .grid import Cell, Protocol


def of_all(model: str | Path, judge: Protocol) -> dict[str, Any]:
    """Return what all runs have in common: the model's files, how it is judged, the software."""
    texts = {name: content(source) for name, source in judge.texts.items()}
    asked = {**judge.model_dump(exclude={"data_dir", "text"}), "text": texts}
    return {**files_of(model), **VERSIONS, "judge": asked}


def of_cell(common: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Return what decides one run.

    Fields that have their default are left out, so a field that is new changes no earlier run's.
    """
    recipe, usual = cell.recipe, defaults()
    chosen = {k: v for k, v in choices(recipe).items() if k not in usual or v != usual[k]}
    texts = {name: content(getattr(recipe, name)) for name in ("calibration", "recovery_text")}
    return {**common, **chosen, **texts}


def content(source: str | None) -> str | None:
    """Return the hash of a file, the names and sizes in a folder, or the name of a known text."""
    parts = parts_of(source or "none")
    if len(parts) > 1:
        return ", ".join(f"{content(part.source)}:{part.share:g}" for part in parts)
    path = Path(source or "").expanduser()
    if source is None or not path.exists():
        return source
    if path.is_file():
        return sha256(path)
    return ", ".join(f"{x.name} {x.stat().st_size}" for x in sorted(path.iterdir()) if x.is_file())
