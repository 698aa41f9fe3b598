"""A result in an interpreter or a notebook: a few lines, a table, rows for pandas."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from ..base.words import number_of
from .layer import LayerReport
from .report import PruningReport
from .units import COLUMNS as WIDTHS

COLUMNS = ("layer", "shape", "pattern", "sparsity", "output error")


def by_kind(layers: Sequence[LayerReport]) -> list[tuple[str, ...]]:
    """Return the rows below ``COLUMNS``: one for each kind of layer, with means over blocks."""
    kinds: dict[str, list[LayerReport]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    rows: list[tuple[str, ...]] = []
    for kind, same in kinds.items():
        sparsity = sum(layer.sparsity for layer in same) / len(same)
        shape = "{} × {}".format(*same[0].shape)
        error = mean_error(same)
        said = "not measured" if error is None else f"{error:.3f}"
        rows.append((kind, shape, same[0].pattern, f"{sparsity:.2%}", said))
    return rows


def mean_error(layers: Sequence[LayerReport]) -> float | None:
    """Return the mean of the relative output errors that were measured; None if none were."""
    found = [x.relative_output_error for x in layers if x.relative_output_error is not None]
    return sum(found) / len(found) if found else None


def facts(report: PruningReport, output: Path | None, verified: bool) -> list[tuple[str, str]]:
    """Return the outcome of a run, in a few lines of two columns."""
    error = mean_error(report.layers)
    if report.structured is None:
        came = f"{report.sparsity:.2%} of {number_of(len(report.layers), 'layer')} are zero"
    else:
        before, after = report.structured.parameters
        came = f"{before:,} parameters became {after:,}"
    rows = [("model", report.model), ("method", report.method), ("result", came)]
    if report.structured is None:
        rows.append(("covers", str(report.coverage)))
    else:
        rows.append(("removed", report.structured.shares))
        if report.structured.bound is not None:
            rows.append(("heads", report.structured.bound))
    if error is not None:
        rows.append(("error", f"{error:.3f} of the layers' outputs, in the mean"))
    if output is not None:
        proof = ", verified" if verified else ""
        rows.append(("output", f"{output}{proof}"))
    return [*rows, ("time", f"{report.seconds:.1f} s")]


def as_text(rows: Sequence[tuple[str, str]], title: str) -> str:
    """Return the facts under a title, for ``repr``."""
    return "\n".join([title, *(f"  {name:<7} {said}" for name, said in rows)])


def as_html(report: PruningReport, rows: Sequence[tuple[str, str]], title: str) -> str:
    """Return the facts and a table of layers or widths, for a notebook."""
    if report.structured is None:
        columns, body = COLUMNS, by_kind(report.layers)
    else:
        columns, body = WIDTHS, report.structured.rows()
    said = "".join(
        f'<div><span style="opacity:0.6">{escape(name)}</span> {escape(text)}</div>'
        for name, text in rows
    )
    table = f"<tr>{_cells('th', columns)}</tr>"
    table += "".join(f"<tr>{_cells('td', row)}</tr>" for row in body)
    return f"<div><b>{escape(title)}</b>{said}<table>{table}</table></div>"


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def as_rows(layers: Sequence[LayerReport]) -> Any:
    """Return a pandas DataFrame with one row for each layer.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError:
        raise InputError("to_pandas needs pandas: pip install pandas.") from None
    rows = [
        {
            "block": layer.block,
            "role": layer.role,
            "expert": layer.expert,
            "outputs": layer.shape[0],
            "inputs": layer.shape[1],
            "pattern": layer.pattern,
            "requested": layer.requested,
            "sparsity": layer.sparsity,
            "relative_output_error": layer.relative_output_error,
            "error_before_update": layer.error_before_update,
            "updated": layer.updated,
            "seconds": layer.seconds,
        }
        for layer in layers
    ]
    index = [layer.name for layer in layers]
    return DataFrame(rows, index=index).rename_axis("layer")
