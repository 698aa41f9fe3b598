"""Quantisation of a block, pruned or dense; what is 0 stays 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from ..contracts import Needs, Pattern, Plan, Pruned
from ..gram import Gram
from ..grids import Grid
from ..grids.activation_aware import clipping, input_scale
from ..patterns import Unstructured
from ..stats import Statistics
from ..views import BlockView, LayerView
from .each_layer import check_fit
from .on_grid import on_grid


@dataclass(frozen=True)
class Claim:
    """What is said of the zeros of a layer that is pruned already.

    Attributes:
        pattern: what they have.
        sparsity: the share that was to be removed.
        notes: what else the report says of the pattern: the order in which it holds, the parts of
            the matrix that were pruned apart.
    """

    pattern: Pattern
    sparsity: float
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ActivationAware:
    """The rule ``Ŵ = Q(W · s) / s`` with clipped ranges, chosen by the output error.

    One s for each site, since whatever makes a site's input makes it for all of its layers: a norm
    behind the residual stream, up's rows before a gated down, v's rows before o. Where the scale
    could not go into those (o when heads share values, down after an activation), there is none.
    The checkpoint has Ŵ itself, so nothing has to be folded to run it; for the same reason Ŵ is on
    no integer grid and cannot be packed. Without ``scales`` it is.

    Attributes:
        grid: bits and groups.
        zeros: the pattern that the zeros are said to have; checked in what is written.
        scales: search s.
        clip: search clipping strengths for each row and group.
        steps: exponents to try for s.
        pack: whether to hand over the integers too, for a file that will hold them.
        claims: by layer, what was said of its zeros before, in place of ``zeros``.

    Reference: Lin et al. 2024 (MLSys), AWQ, arXiv:2306.00978; DaSS's Table 8 applies it after
    pruning.
    """

    grid: Grid = Grid()
    zeros: Pattern = Unstructured("layer")
    scales: bool = True
    clip: bool = True
    steps: int = 20
    pack: bool = False
    claims: Mapping[str, Claim] = field(default_factory=dict, repr=False)
    ordering: ClassVar[None] = None

    @property
    def needs(self) -> Needs:
        """The Gram matrix, if anything is searched."""
        return (Gram,) if self.scales or self.clip else ()

    def pattern(self, layer: LayerView) -> Pattern:
        """Return the pattern of the layer's zeros."""
        claim = self.claims.get(layer.name)
        return self.zeros if claim is None else claim.pattern

    def planned(self, plan: Plan) -> Plan:
        """Return the plan with the shares that layers are said to have lost before."""
        return {
            name: self.claims[name].sparsity if name in self.claims else share
            for name, share in plan.items()
        }

    def check(self, block: BlockView, plan: Plan) -> None:
        """Check that every planned layer fits its pattern."""
        for layer in block.planned(plan):
            check_fit(self.pattern(layer), layer, layer.shape, plan[layer.name])

    def __call__(
        self, block: BlockView, stats: Mapping[str, Statistics], plan: Plan
    ) -> Iterator[tuple[LayerView, Pruned]]:
        sites: dict[str, list[LayerView]] = {}
        for layer in block.planned(plan):
            sites.setdefault(layer.site, []).append(layer)
        for site, layers in sites.items():
            gram_II = stats[site][Gram].matrix_II if self.needs else None
            scale_I, exponent = None, 0.0
            if self.scales and gram_II is not None and _takes_scale(block, layers):
                weights = [layer.weight_OI for layer in layers]
                scale_I, exponent = input_scale(weights, gram_II, self.grid, self.steps)
                gram_II = gram_II / scale_I / scale_I[:, None]
            for layer in layers:
                new = self._quantized(layer.weight_OI, gram_II, scale_I, exponent)
                claim = self.claims.get(layer.name)
                notes = {**(claim.notes if claim is not None else {}), **new.notes}
                yield layer, replace(new, notes=notes)

    def _quantized(
        self, weight_OI: Tensor, gram_II: Tensor | None, scale_I: Tensor | None, exponent: float
    ) -> Pruned:
        """Quantise one layer; the Gram is that of the scaled inputs."""
        mask_OI = weight_OI != 0
        scaled_OI = weight_OI if scale_I is None else weight_OI.float() * scale_I
        strength_OG = None
        if self.clip and gram_II is not None:
            strength_OG = clipping(scaled_OI, gram_II, self.grid)
        quantized = self.grid.quantize(scaled_OI, strength_OG, strength_OG)
        notes: dict[str, Any] = {"scale_exponent": exponent}
        if strength_OG is not None:
            notes["mean_clipping"] = float(strength_OG.mean())
        new = on_grid(Pruned(weight_OI, mask_OI, notes=notes), quantized, self.pack)
        if scale_I is None:
            return new
        return Pruned(new.weight_OI / scale_I, mask_OI, notes=new.notes)


def _takes_scale(block: BlockView, readers: Sequence[LayerView]) -> bool:
    """Return whether a scale of the site's inputs could be folded into their producer."""
    reader = readers[0]
    if reader.site not in block.interior:
        return True
    if reader.role == "down":
        return block.gated
    values = [layer for layer in block.layers if layer.role in ("v", "qkv")]
    if reader.role != "o" or len(values) != 1:
        return False
    rows = values[0].shape[0] // (3 if values[0].role == "qkv" else 1)
    return rows == reader.shape[1]
