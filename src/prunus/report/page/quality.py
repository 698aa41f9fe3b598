"""Quality, where somebody has measured it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from .evaluations import Evaluations, Measured, Task
from .rendering import prose
from .skeleton import Section
from .tables import Cell, table

SAID = (
    "Perplexity by the protocol of the pruning papers: windows that do not overlap, logits in "
    "float32. Lower is better. Compare only numbers of the same text, length and tokenizer."
)


def quality(measured: Evaluations) -> Section:
    """Return the section; without evaluations it is empty."""
    return Section(
        "Quality", [_texts(measured.texts), _against(measured.texts), _tasks(measured.tasks)]
    )


def _texts(measured: Sequence[Measured]) -> Markup:
    if not measured:
        return Markup()
    columns = ["model", "text", "perplexity", "how it was measured"]
    rows: list[list[str | Cell]] = [[x.name, x.text, f"{x.value:,.2f}", x.how] for x in measured]
    if any(x.accuracy for x in measured):
        columns.insert(3, "accuracy")
        for row, x in zip(rows, measured, strict=True):
            row.insert(3, x.accuracy or "–")
    return prose(SAID) + table(columns, rows)


def _against(measured: Sequence[Measured]) -> Markup:
    rows = [[x.name, x.text, *x.against] for x in measured if x.against]
    if not rows:
        return Markup()
    return table(
        ("model", "text", "dense perplexity", "KL", "top token", "best five", "greedy prefix"),
        rows,
        caption="How near it is to its dense model: mean KL divergence per token in nats, how "
        "often both have the same likeliest token, how many of the five likeliest they share, "
        "and after how many tokens greedy texts part.",
    )


def _tasks(tasks: Sequence[Task]) -> Markup:
    if not tasks:
        return Markup()
    return table(
        ("model", "task", "metric", "value", "how it was measured"),
        [[x.name, x.task, x.metric, x.value, x.how] for x in tasks],
        caption="Tasks of lm-eval, with the standard error of each.",
    )
