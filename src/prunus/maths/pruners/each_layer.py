"""One layer pruner for every layer of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from ...base.errors import PatternError
from ..contracts import LayerPruner, Needs, Pattern, Plan, Pruned, Share
from ..orders.ordering import Ordering
from ..patterns import OneOf
from ..stats import Statistics
from ..views import BlockView, LayerView
from .in_order import InOrder

P = TypeVar("P", bound=LayerPruner)


@dataclass(frozen=True)
class EachLayer:
    """One layer pruner, run on every planned layer with the statistics of its own site.

    Attributes:
        pruner: of one layer.
        ordering: the orders that the loop puts the channels into first; None: as stored.
    """

    pruner: LayerPruner
    ordering: Ordering | None = None

    @property
    def needs(self) -> Needs:
        """The statistics of the layer pruner."""
        return self.pruner.needs

    def pattern(self, layer: LayerView) -> Pattern:
        """Return the layer pruner's pattern, the same for every layer."""
        return self.pruner.pattern

    def check(self, block: BlockView, plan: Plan) -> None:
        """Check that every planned layer fits the pattern."""
        for layer in block.planned(plan):
            check_fit(self.pruner.pattern, layer, layer.shape, plan[layer.name])

    def __call__(
        self, block: BlockView, stats: Mapping[str, Statistics], plan: Plan
    ) -> Iterator[tuple[LayerView, Pruned]]:
        for layer in block.planned(plan):
            share = plan[layer.name]
            pruner = for_share(self.pruner, share)
            yield layer, pruner(layer.weight_OI, stats[layer.site], share)


def for_share(pruner: P, share: Share) -> P:
    """Return the pruner with the one of its patterns that has this share."""
    if isinstance(pruner, InOrder):
        return cast(P, replace(pruner, pruner=for_share(pruner.pruner, share)))
    if isinstance(pruner.pattern, OneOf):
        pruner = replace(pruner, pattern=pruner.pattern.at(share))  # type: ignore[type-var]
    return pruner


def check_fit(
    pattern: Pattern, layer: LayerView, shape_OI: tuple[int, int], sparsity: Share
) -> None:
    """Check that a layer fits the pattern; a message has the layer's name."""
    try:
        pattern.check(shape_OI, sparsity)
    except PatternError as error:
        raise PatternError(f"{layer.name} ({shape_OI[0]} × {shape_OI[1]}): {error}") from None
