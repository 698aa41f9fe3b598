"""DaSS on a block: each role of a gated MLP has its own rule, attention uses Wanda."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...base.errors import UnsupportedModelError
from ..contracts import Needs, Pattern, Plan, Pruned
from ..patterns import NM, OneOf, Unstructured
from ..scores import DaSS as DaSSScore
from ..scores import Wanda
from ..stats import Statistics
from ..views import BlockView, LayerView
from .compose import Compose
from .each_layer import check_fit, for_share

GATE_UP = ("gate", "up", "gate_up")


@dataclass(frozen=True)
class DaSS:
    """DaSS for gate and up, by the intermediate activation; Wanda for down and attention.

    A matrix that holds gate and up together (Phi-3) is pruned half by half, so its masks are those
    of the same weights stored apart.

    Attributes:
        gate_up: compares down each input column; N:M along outputs (section 3, granularity). Its
            ``score.power`` is the paper's α (Tables 4 and 11).
        down: compares within each output row; N:M along inputs. Its ``score.power`` is the α of
            the down projection in Table 12; the paper, and the default here, leave it at 1.
        rest: attention, as down but always by plain Wanda.

    Differs from the authors' code: theirs never touches attention; the paper's Table 2 prunes it by
    Wanda, as here (``--mlp-only`` gives the code's reading, and the paper's Tables 1 and 3).

    Reference: Guo et al. (TMLR), openreview.net/forum?id=T50uTgPzHS, section 3.
    """

    gate_up: Compose = Compose(DaSSScore(), Unstructured("column"))
    down: Compose = Compose(Wanda(), Unstructured("row"))
    rest: Compose = Compose(Wanda(), Unstructured("row"))
    ordering: ClassVar[None] = None

    @classmethod
    def with_pattern(cls, pattern: Pattern | None) -> DaSS:
        """Return the paper's groups; N:M is turned along the outputs for gate and up."""
        if pattern is None:
            return cls()
        wanda = Compose(Wanda(), pattern)
        return cls(Compose(DaSSScore(), _turned(pattern)), wanda, wanda)

    @property
    def rules(self) -> tuple[Compose, ...]:
        """The three rules."""
        return self.gate_up, self.down, self.rest

    @property
    def needs(self) -> Needs:
        """The statistics of all rules, each once."""
        return tuple(dict.fromkeys(kind for rule in self.rules for kind in rule.needs))

    def pattern(self, layer: LayerView) -> Pattern:
        """Return the pattern of the layer's role."""
        return self._rule(layer).pattern

    def check(self, block: BlockView, plan: Plan) -> None:
        """Check that every planned layer fits, and that every planned MLP is gated."""
        for layer in block.planned(plan):
            if layer.role == "up" and not block.gated:
                raise UnsupportedModelError(
                    f"dass needs a gated MLP (gate, up and down projections); {layer.name} has no "
                    "gate beside it. Use wanda or ria for this model."
                )
            for rows in layer.parts:
                shape_OI = (len(range(*rows.indices(layer.shape[0]))), layer.shape[1])
                check_fit(self.pattern(layer), layer, shape_OI, plan[layer.name])

    def __call__(
        self, block: BlockView, stats: Mapping[str, Statistics], plan: Plan
    ) -> Iterator[tuple[LayerView, Pruned]]:
        for layer in block.planned(plan):
            rule, weight_OI = for_share(self._rule(layer), plan[layer.name]), layer.weight_OI
            # The score looks ahead to what the neurons put out; an update needs the layer's input.
            ahead = layer.feeds if layer.role in GATE_UP and layer.feeds else layer.site
            halves = [
                rule(weight_OI[rows], stats[layer.site], plan[layer.name], score_stats=stats[ahead])
                for rows in layer.parts
            ]
            if len(halves) == 1:
                yield layer, halves[0]
                continue
            new_OI = torch.zeros_like(weight_OI, dtype=halves[0].weight_OI.dtype)
            mask_OI = torch.zeros_like(weight_OI, dtype=torch.bool)
            for rows, half in zip(layer.parts, halves, strict=True):
                new_OI[rows], mask_OI[rows] = half.weight_OI, half.mask_OI
            apart = [list(rows.indices(layer.shape[0])) for rows in layer.parts]
            notes = {"pruned_apart": apart, "halves": [dict(half.notes) for half in halves]}
            yield layer, Pruned(new_OI, mask_OI, notes=notes)

    def _rule(self, layer: LayerView) -> Compose:
        if layer.role in GATE_UP:
            return self.gate_up
        return self.down if layer.role == "down" else self.rest


def _turned(pattern: Pattern) -> Pattern:
    """Turn N:M along the outputs, also a choice of several."""
    if isinstance(pattern, OneOf):
        return OneOf(tuple(NM(option.keep, option.of, "output") for option in pattern.options))
    return NM(pattern.keep, pattern.of, "output") if isinstance(pattern, NM) else pattern
