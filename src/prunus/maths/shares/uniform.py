"""The same sparsity for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...model.blocks import Layer
from ..contracts import Plan


@dataclass(frozen=True)
class Uniform:
    """Every layer gets the requested sparsity, as in all of the papers' main tables."""

    def __call__(self, layers: Sequence[Layer], sparsity: float) -> Plan:
        return {layer.name: sparsity for layer in layers}
