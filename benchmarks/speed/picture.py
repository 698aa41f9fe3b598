"""Ratio against sparsity, one panel per kind of values, with the bound that bytes set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.speed.layer_ways import BITS

AREA = (0.4, 0.85)  # zeros that are drawn


def draw(cells: Sequence[Mapping[str, Any]], path: str) -> None:
    """Draw the cells with the fewest tokens, in lines by shape; dotted where threads are more.

    The bound is ``1/((1−s) + 1/b)`` for b bits a value: a mask bit for each weight, and the values
    that are kept.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tokens = min(cell["tokens"] for cell in cells)
    cells = [cell for cell in cells if cell["tokens"] == tokens]
    kinds = [kind for kind in BITS if any(cell["kind"] == kind for cell in cells)]
    figure, axes = pyplot.subplots(
        1, len(kinds), figsize=(4 * len(kinds), 4), sharey=True, squeeze=False
    )
    for panel, kind in zip(axes[0], kinds, strict=True):
        _bound(panel, kind)
        _lines(panel, [cell for cell in cells if cell["kind"] == kind])
        panel.set(title=f"{kind}, {tokens} token{'s' * (tokens > 1)}", xlabel="zeros (%)")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("times as fast as dense of as many bits")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _bound(panel: Any, kind: str) -> None:
    zeros = [AREA[0] + (AREA[1] - AREA[0]) * step / 50 for step in range(51)]
    bound = [1 / (1 - share + 1 / BITS[kind]) for share in zeros]
    panel.plot([100 * share for share in zeros], bound, "k--", label="bound by bytes")
    panel.axhline(1, color="grey", linewidth=0.8)


def _lines(panel: Any, cells: Sequence[Mapping[str, Any]]) -> None:
    shapes = list(dict.fromkeys(cell["shape"] for cell in cells))
    fewest = min(cell["threads"] for cell in cells)
    for line in dict.fromkeys(_line(cell) for cell in cells):
        points = sorted((cell["zeros"], cell["ratio"]) for cell in cells if _line(cell) == line)
        shape, threads, inputs = line
        panel.plot(
            *zip(*points, strict=True),
            "o-" if threads == fewest else "s:",
            color=f"C{shapes.index(shape)}",
            alpha=1 if inputs == cells[0]["inputs"] else 0.5,
            markersize=4,
            label=f"{shape}, {threads} thread{'s' * (threads > 1)}",
        )


def _line(cell: Mapping[str, Any]) -> tuple[str, int, str]:
    return cell["shape"], cell["threads"], cell["inputs"]
