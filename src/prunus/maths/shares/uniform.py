"""An allocation that gives every layer the same sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..contracts import Plan
from ..views import LayerView


@dataclass(frozen=True)
class Uniform:
    """The requested sparsity for every layer, as in the main tables of all papers."""

    def __call__(self, layers: Sequence[LayerView], sparsity: float) -> Plan:
        return {layer.name: sparsity for layer in layers}
