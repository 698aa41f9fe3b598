"""The files of a comparison."""

from __future__ import annotations

from pathlib import Path

from .formats import FORMATS
from .table import Table

NAME = "table"


def write(table: Table, folder: Path) -> list[Path]:
    """Write the table in every format; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for ending, text in FORMATS.items():
        path = folder / f"{NAME}.{ending}"
        path.write_text(text(table), encoding="utf-8")
        files.append(path)
    return files
