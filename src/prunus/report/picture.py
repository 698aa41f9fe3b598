"""Draw a report, for ``prunus plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.arguments import typed
from ..base.atomic import new_file
from ..base.errors import InputError, UnknownNameError, at_least
from .drawing import any_text, plain
from .naming import title as titled
from .plots import learning, over_depth, reconstruction, searched
from .report import PruningReport, read_report
from .unit_plots import closest_fifth, heads_graph, removed_share

SINGLE = ("sparsity", "error", "learning", "search", "reconstruction")  # single weights
UNITS = ("removed", "error", "heads")  # for one that lost heads and neurons


@typed
def plot(
    folders: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    show: str | None = None,
    threshold: float | None = None,
    title: str | None = None,
) -> None:
    """Draw the report of a checkpoint.

    >>> prunus.plot("pruned", "sparsity.png")
    >>> prunus.plot("smaller", "heads.png", show="heads", threshold=0.2)

    Args:
        folders: what ``prune`` wrote, or a ``pruning_report.json``; several for ``removed`` alone.
        output: file of the picture, which must not exist: .png, .pdf, .svg …
        show: ``sparsity`` or ``error`` (of the output) of every layer over depth; ``learning``
            (the loss while BESA learned); ``search`` (the divergence of candidates while shares
            of blocks were searched); ``reconstruction`` (the held-out loss of --reconstruct);
            of smaller models ``removed`` (each block's share),
            ``error``, or ``heads`` (which attend alike, which went). None: sparsity, or removed.
        threshold: for ``heads``: an edge joins heads whose divergence is below it; None: the
            closest fifth of all pairs.
        title: title of the picture; None: the method and the model.

    Raises:
        InputError: the report does not have these numbers, or matplotlib is missing.
        CheckpointError: there is no report, or the picture cannot be written.
    """
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    paths = [Path(folder).expanduser().absolute() for folder in given]
    reports = {path.name: read_report(path) for path in paths}
    first = next(iter(reports.values()))
    show = show or ("sparsity" if first.structured is None else "removed")
    _check(show, reports, len(given), threshold)
    if not Path(output).suffix:
        raise InputError(f"{output} has no ending to say what kind of picture it is; give .png.")
    if title is None:
        methods = dict.fromkeys(report.method for report in reports.values())
        title = f"{', '.join(methods)} on {plain(Path(titled(first.model)).name)}"
    with new_file(Path(output).expanduser()) as path:
        try:
            with any_text(title, *reports):
                _draw(show, reports, path, threshold, title)
        except ImportError:
            raise InputError("Pictures need matplotlib: pip install 'prunus[report]'.") from None
        except InputError:
            raise
        except ValueError as error:  # matplotlib's, about the ending
            raise InputError(f"{output} cannot be drawn: {error}.") from None


def _check(
    show: str, reports: dict[str, PruningReport], given: int, threshold: float | None
) -> None:
    if threshold is not None and show != "heads":
        raise InputError(f"A threshold is for --show heads, not for {show}. Leave it out.")
    at_least(0, threshold=threshold or 0)
    known = dict.fromkeys((*SINGLE, *UNITS))
    if show not in known:
        raise UnknownNameError("picture", show, known)
    if given > 1 and show != "removed":
        raise InputError(f"{show} is a picture of one checkpoint; got {given}.")
    if len(reports) < given:
        raise InputError("Two of these folders have the same name, and curves are labelled by it.")
    for name, report in reports.items():
        single = report.structured is None
        fit = SINGLE if single else UNITS
        if show not in fit:
            lost = "single weights" if single else "whole heads and neurons"
            raise InputError(f"{name} lost {lost}, so it has no {show}. Show {', '.join(fit)}.")


def _draw(
    show: str, reports: dict[str, PruningReport], path: Path, threshold: float | None, title: str
) -> None:
    report: Any = next(iter(reports.values()))
    if show == "removed":
        structured = {name: x.structured for name, x in reports.items() if x.structured}
        removed_share(structured, path, title)
    elif show == "heads":
        most = closest_fifth(report.structured) if threshold is None else threshold
        heads_graph(report.structured, path, most, title=f"{title}, below {most:.3g}")
    elif show == "learning":
        learning(report.learning, path, title)
    elif show == "search":
        searched(report.search, path, title)
    elif show == "reconstruction":
        reconstruction(report.reconstructed, path, title)
    else:
        what = "relative_output_error" if show == "error" else "sparsity"
        over_depth(report.layers, what, path, title)
