"""Calibration tokens that each expert saw, one line for each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..base.words import a_few
from .layer import LayerReport


@dataclass(frozen=True)
class ExpertTokens:
    """Calibration tokens that were routed to the experts of one module.

    Attributes:
        name: name of the module.
        tokens: number of tokens of each expert.
        by_weights_alone: experts that saw too few tokens to be pruned by them.
    """

    name: str
    tokens: list[int]
    by_weights_alone: list[int]

    @classmethod
    def of(cls, layers: Sequence[LayerReport]) -> list[ExpertTokens]:
        """Read them from the notes of the layers; the list is empty if no expert saw text."""
        seen: dict[str, dict[int, LayerReport]] = {}
        for layer in layers:
            if layer.expert is not None and "tokens" in layer.notes:
                seen.setdefault(layer.parameter.rpartition(".")[0], {})[layer.expert] = layer
        return [
            cls(
                name,
                [int(layer.notes["tokens"]) for _, layer in sorted(experts.items())],
                [i for i, x in sorted(experts.items()) if x.notes.get("by_weights_alone")],
            )
            for name, experts in seen.items()
        ]

    @property
    def cells(self) -> tuple[str, ...]:
        """Row of a table with the columns ``COLUMNS``."""
        alone = self.by_weights_alone
        some = a_few([str(x) for x in alone], 4)
        return (
            self.name,
            str(len(self.tokens)),
            f"{min(self.tokens):,}",
            f"{median(self.tokens):,.0f}",
            f"{max(self.tokens):,}",
            f"{len(alone)} ({some})" if alone else "none",
        )


COLUMNS = ("experts", "count", "fewest", "median", "most", "by weights alone")
