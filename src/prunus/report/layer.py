"""What happened to one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..maths.contracts import parameter_of


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer."""

    name: str
    role: str
    block: int
    shape: tuple[int, int]
    """(O, I)."""
    transposed: bool
    """Whether the checkpoint stores (I, O)."""
    pattern: str
    requested: float
    sparsity: float
    """Zeros over weights, counted in the tensor as written."""
    relative_output_error: float | None
    """‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖ in Frobenius norms on a sample of calibration tokens; None: no text."""
    updated: bool
    """Whether any kept weight has a new value."""
    error_before_update: float | None
    """``relative_output_error`` with the dense values of the kept weights."""
    seconds: float
    notes: Mapping[str, Any] = field(default_factory=dict)
    expert: int | None = None
    """Which matrix of a 3-D parameter it is: the number at the end of its name."""

    @property
    def parameter(self) -> str:
        """The name of the parameter that holds its weight, or of all experts' weights."""
        return parameter_of(self.name, self.expert)

    @property
    def kind(self) -> str:
        """The last word of its name, the same in all blocks and for all experts."""
        return self.parameter.removesuffix(".weight").rsplit(".", 1)[-1]
