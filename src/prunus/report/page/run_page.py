"""The page about one pruned checkpoint, for ``prunus report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...base.atomic import new_file
from ...base.errors import InputError
from ..naming import title
from .checkpoint import Checkpoint
from .degrees import orders
from .done import lead, numbers, protocol, what_was_done
from .layers import errors, sparsity, time_and_size
from .learned import learning, reconstruction, searching
from .quality import quality
from .routed import experts
from .skeleton import Section, page
from .use import how_to_load, limits, recipe
from .widths import heads_and_neurons


def report_page(checkpoint: Checkpoint) -> str:
    """Return the page about a checkpoint as HTML."""
    report = checkpoint.report
    kind = "Quantised" if report.only_quantised else "Pruned"
    sections: list[Section] = [
        what_was_done(checkpoint),
        quality(checkpoint.measured),
        heads_and_neurons(report),
        *([sparsity(report)] if report.structured is None else []),
        searching(report.search),
        learning(report.learning),
        reconstruction(report.reconstructed),
        orders(report, checkpoint.folder),
        errors(report),
        experts(report.experts),
        protocol(checkpoint),
        time_and_size(checkpoint),
        how_to_load(checkpoint),
        limits(checkpoint),
        recipe(checkpoint),
    ]
    return page(
        title(report.model),
        sections,
        kind=f"{kind} without retraining",
        lead=lead(report),
        numbers=numbers(checkpoint),
    )


def write_page(
    folder: str | Path, output: str | Path, *, evaluations: Sequence[str | Path] = ()
) -> Path:
    """Write the page about a checkpoint; returns the file.

    Args:
        folder: what ``prune`` wrote, or a ``pruning_report.json``.
        output: the page, which must not exist: .html.
        evaluations: files with what ``prunus eval --json`` printed; the name of each without its
            ending names the model.

    Raises:
        CheckpointError: there is no report, it is damaged, or the page cannot be written.
        InputError: a file holds no evaluation, or the page has another ending.
    """
    if Path(output).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{output} is to be a page of HTML; give a name that ends with .html.")
    place = Path(folder).expanduser().absolute()
    found = Checkpoint.read(place, [Path(x).expanduser() for x in evaluations])
    with new_file(Path(output).expanduser()) as path:
        path.write_text(report_page(found), encoding="utf-8")
    return Path(output)
