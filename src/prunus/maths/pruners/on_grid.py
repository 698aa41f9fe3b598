"""A block pruner with its kept weights on an integer grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ...base.errors import InputError
from ..contracts import BlockPruner, Needs, Pattern, Plan, Pruned
from ..grids import Grid, Quantized
from ..orders.ordering import Ordering
from ..stats import Statistics
from ..views import BlockView, LayerView


@dataclass(frozen=True)
class OnGrid:
    """Pruning, then quantisation; or quantisation, then pruning ("Joint-Wanda" and the like).

    A pruned weight is the grid's 0, exactly. Kept weights that are nearest to 0 are rounded to it
    too: so more weights are 0 than were pruned, and the report says how many.

    Attributes:
        pruner: chooses the masks.
        grid: of what is kept.
        when: ``"after"`` makes the grid from the pruner's kept weights; ``"before"`` shows it
            weights that are quantised already, which it must not change. Statistics are of the
            dense block either way, on the outputs of the quantised and pruned ones before it.
        pack: whether to hand over the integers too, for a file that will hold them.
        clipping: γ0 and γ1 (2, O, G) by layer, where they were learned with the masks ("before").

    Reference: "after" and "before" are the baselines of BESA's Table 3 and of its section 3.3.
    """

    pruner: BlockPruner
    grid: Grid = Grid()
    when: Literal["before", "after"] = "after"
    pack: bool = False
    clipping: Mapping[str, Tensor] = field(default_factory=dict, init=True, repr=False)

    @property
    def needs(self) -> Needs:
        """The statistics of the pruner."""
        return self.pruner.needs

    @property
    def ordering(self) -> Ordering | None:
        """The orders of the pruner."""
        return self.pruner.ordering

    def pattern(self, layer: LayerView) -> Pattern:
        """Return the pruner's pattern."""
        return self.pruner.pattern(layer)

    def check(self, block: BlockView, plan: Plan) -> None:
        """Check what the pruner checks."""
        self.pruner.check(block, plan)

    def __call__(
        self, block: BlockView, stats: Mapping[str, Statistics], plan: Plan
    ) -> Iterator[tuple[LayerView, Pruned]]:
        layers = {layer.name: layer for layer in block.planned(plan)}
        before: dict[str, Quantized] = {}
        if self.when == "before":
            clips = {name: self.clipping.get(name, (None, None)) for name in layers}
            before = {
                name: self.grid.quantize(x.weight_OI, *clips[name]) for name, x in layers.items()
            }
            block = block.showing({name: x.dequantize() for name, x in before.items()})
        for shown, pruned in self.pruner(block, stats, plan):
            quantized = before.get(shown.name) or self.grid.quantize(
                pruned.weight_OI.to(shown.weight_OI.dtype)
            )
            new = on_grid(pruned, quantized, self.pack)
            if before and not torch.equal(new.weight_OI, pruned.weight_OI):
                raise InputError(
                    f"{shown.name}: the method changes the weights that it keeps, so they leave "
                    "the grid that they were quantised to. Use --quantize after."
                )
            yield layers[shown.name], new


def on_grid(pruned: Pruned, quantized: Quantized, pack: bool) -> Pruned:
    """Return the same mask, with the values that the integers stand for."""
    quantized = quantized.masked(pruned.mask_OI)
    weight_OI = quantized.dequantize()
    kept_on_zero = int((weight_OI == 0)[pruned.mask_OI].sum())
    return replace(
        pruned,
        weight_OI=weight_OI,
        quantized=quantized if pack else None,
        notes={**pruned.notes, "kept_but_rounded_to_0": kept_on_zero},
    )
