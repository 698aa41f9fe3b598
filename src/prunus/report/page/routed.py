"""Experts: the calibration tokens that each of them saw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median

from ..experts import ExpertTokens
from .rendering import prose, render
from .skeleton import Section
from .tables import Cell, strength, table
from .words import percent


def experts(blocks: Sequence[ExpertTokens]) -> Section:
    """Return the section on experts; without any it is empty."""
    if not blocks:
        return Section("Experts", [])
    total = sum(len(block.tokens) for block in blocks)
    alone = sum(len(block.by_weights_alone) for block in blocks)
    said = prose(
        f"Each expert was pruned with the statistics of the calibration tokens that were routed to "
        f"it. {total - alone:,} of {total:,} experts ({percent(1 - alone / total)}) saw enough of "
        f"them; the others were pruned by their weights alone. Routers stay dense."
    )
    most = max(1, *(max(block.tokens) for block in blocks))
    rows = [_row(x, block, most) for x, block in zip(_labels(blocks), blocks, strict=True)]
    columns = ("block", "experts", "fewest", "median", "most", "by weights alone", "each expert")
    return Section(
        "Experts",
        [
            said,
            table(
                columns,
                rows,
                caption="Calibration tokens of the experts of each block.",
                legend=f"A square is an expert: the stronger its colour, the more of up to "
                f"{most:,} tokens it saw. Squares with an edge: pruned by their weights alone.",
            ),
        ],
    )


def _labels(blocks: Sequence[ExpertTokens]) -> list[str]:
    """Return the number of each block; names where two modules have the same number, or none."""
    numbers = [re.search(r"\.(\d+)\.", block.name) for block in blocks]
    labels = [found[1] for found in numbers if found]
    unique = len(set(labels)) == len(blocks)
    return labels if unique else [f"`{block.name}`" for block in blocks]


def _row(label: str, block: ExpertTokens, most: int) -> list[str | Cell]:
    squares = [
        (strength(tokens, 0, most), i in block.by_weights_alone, f"expert {i}: {tokens:,} tokens")
        for i, tokens in enumerate(block.tokens)
    ]
    said = ", ".join(f"{tokens:,}" for tokens in block.tokens)
    return [
        label,
        f"{len(block.tokens):,}",
        f"{min(block.tokens):,}",
        f"{median(block.tokens):,.0f}",
        f"{max(block.tokens):,}",
        f"{len(block.by_weights_alone):,}",
        render("squares.html", squares=squares, hue="leaf", said=said),
    ]
