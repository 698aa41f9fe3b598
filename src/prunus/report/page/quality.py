"""Quality, where somebody has measured it."""

from __future__ import annotations

from collections.abc import Sequence

from .evaluations import Measured
from .rendering import prose
from .skeleton import Section
from .tables import Cell, table

SAID = (
    "Perplexity by the protocol of the pruning papers: windows that do not overlap, logits in "
    "float32. Lower is better. Compare only numbers of the same text, length and tokenizer."
)


def quality(measured: Sequence[Measured]) -> Section:
    """Return the section; without evaluations it is empty."""
    if not measured:
        return Section("Quality", [])
    columns = ["model", "text", "perplexity", "how it was measured"]
    rows: list[list[str | Cell]] = [
        [x.name, x.text, f"{x.value:,.2f}", x.how] for x in measured
    ]
    if any(x.accuracy for x in measured):
        columns.insert(3, "accuracy")
        for row, x in zip(rows, measured, strict=True):
            row.insert(3, x.accuracy or "–")
    return Section("Quality", [prose(SAID), table(columns, rows)])
