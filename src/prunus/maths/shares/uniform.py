"""The same sparsity for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..contracts import Plan
from ..views import LayerView


@dataclass(frozen=True)
class Uniform:
    """Every layer gets the requested sparsity, as in all of the papers' main tables."""

    def __call__(self, layers: Sequence[LayerView], sparsity: float) -> Plan:
        return {layer.name: sparsity for layer in layers}
