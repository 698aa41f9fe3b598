"""Pictures of heads and neurons; they need matplotlib (``pip install prunus[report]``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from .drawing import plain
from .units import BlockChange, UnitsReport

COLUMNS = 6  # panels side by side


def heads_graph(
    report: UnitsReport,
    path: str | Path,
    threshold: float,
    blocks: Sequence[int] | None = None,
    title: str = "",
) -> None:
    """Draw which heads of a block attend alike: an edge joins two whose divergence is below τ.

    Filled heads were kept, hollow ones removed. (Li et al. 2024, "Greedy Output Approximation",
    figure 3.)

    Args:
        report: report of a run that looked at attention maps, ``read_report(folder).structured``.
        path: file of the picture, such as ``heads.png``.
        threshold: τ. The authors' 0.2 belongs to their own distance.
        blocks: blocks to show; None: all that were looked at.
        title: title above all panels.

    Raises:
        InputError: no divergence is known of any of these blocks.
    """
    from matplotlib.figure import Figure

    shown = [
        block
        for block in report.blocks
        if block.divergence is not None and (blocks is None or block.block in blocks)
    ]
    if not shown:
        raise InputError(
            "This run did not compare heads by what they attend to, so there is no graph of them. "
            "Prune with goa, or name a block that was looked at."
        )
    columns = min(len(shown), COLUMNS)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.1 * columns, 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, block in zip(panels, shown, strict=False):
        _draw_heads(panel, block, threshold)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    figure.suptitle(title)
    figure.savefig(str(path), dpi=150)


def _draw_heads(panel: Any, block: BlockChange, threshold: float) -> None:
    divergence = block.divergence or []
    heads = len(divergence)
    angles = [2 * math.pi * head / heads for head in range(heads)]
    places = [(math.sin(angle), math.cos(angle)) for angle in angles]
    for i, j in alike(divergence, threshold):
        (x, y), (a, b) = places[i], places[j]
        panel.plot([x, a], [y, b], color="tab:blue", linewidth=1, zorder=1)
    stay = kept_heads(block)
    for head, (x, y) in enumerate(places):
        face = "tab:blue" if head in stay else "white"
        panel.scatter([x], [y], s=70, color=face, edgecolors="tab:blue", zorder=2)
        panel.text(1.25 * x, 1.25 * y, str(head), ha="center", va="center", fontsize=7)
    panel.set(title=f"block {block.block}", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    panel.title.set_fontsize(9)
    panel.set_axis_off()


def alike(divergence: Sequence[Sequence[float]], threshold: float) -> list[tuple[int, int]]:
    """Return the pairs of heads whose divergence is below the threshold."""
    heads = range(len(divergence))
    return [(i, j) for i in heads for j in heads if i < j and divergence[i][j] < threshold]


def closest_fifth(report: UnitsReport) -> float:
    """Return the divergence below which a fifth of all pairs of heads lie; 0 if none is known."""
    pairs = sorted(
        block.divergence[i][j]
        for block in report.blocks
        if block.divergence is not None
        for i, j in combinations(range(len(block.divergence)), 2)
    )
    return pairs[len(pairs) // 5] if pairs else 0.0


def kept_heads(block: BlockChange) -> set[int]:
    """Return the query heads that were kept: all of every group that was."""
    heads = len(block.divergence or [])
    if block.kept_heads is None or block.heads is None or block.kv_heads is None:
        return set(range(heads))
    if block.kv_heads[0] == block.kv_heads[1]:  # query heads went alone, or nothing did
        alone = len(block.kept_heads) == block.heads[1]
        return set(block.kept_heads) if alone else set(range(heads))
    size = heads // block.kv_heads[0]
    return {size * group + head for group in block.kept_heads for head in range(size)}


def removed_share(reports: Mapping[str, UnitsReport], path: str | Path, title: str = "") -> None:
    """Draw the share of each block's parameters that was removed, one curve per run.

    Args:
        reports: reports by the names that their curves get.
        path: file of the picture, such as ``removed.png``.
        title: title of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    panel = figure.subplots()
    for name, report in reports.items():
        shares = [block.removed for block in report.blocks]
        edges = [block - 0.5 for block in range(len(shares) + 1)]
        panel.stairs(shares, edges, label=plain(name), linewidth=1.6)
    panel.set(xlabel="block", ylabel="parameters removed", ylim=(0, None), title=title)
    panel.locator_params(axis="x", integer=True)
    panel.legend(frameon=False, fontsize=9)
    figure.savefig(str(path), dpi=150)
