"""The places where a kept and a pruned weight may be exchanged without breaking the pattern."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...base.errors import PatternError
from ..contracts import Pattern
from ..patterns import NM, Unstructured

ROWS_OF_A_COLUMN = 4  # at most so many outputs are exchanged with one another


@dataclass(frozen=True)
class Cells:
    """A view of (R, I) as (U, C, L): units of whole rows, their cells, the weights in a cell.

    Any exchange within a cell keeps the pattern. Rows do not influence one another's loss, so
    units can be improved side by side; a unit is one row, or as many as its cells reach over.

    Attributes:
        rows: in a unit.
        length: L, weights in a cell: consecutive inputs of a row, or the unit's outputs of one
            input.
    """

    rows: int
    length: int

    @classmethod
    def of(cls, pattern: Pattern, shape_OI: tuple[int, int]) -> Cells:
        """Make the cells: whole rows, N:M groups, or parts of a column for ``column``."""
        outputs, inputs = shape_OI
        if isinstance(pattern, NM):
            return cls(1, pattern.of) if pattern.along == "input" else cls(pattern.of, pattern.of)
        if not isinstance(pattern, Unstructured):
            raise PatternError(f"Masks of the pattern {pattern} cannot be refined by exchanges.")
        if pattern.group != "column":
            return cls(1, inputs)
        rows = [n for n in range(2, ROWS_OF_A_COLUMN + 1) if outputs % n == 0]
        return cls(max(rows, default=outputs), max(rows, default=outputs))

    @property
    def along_outputs(self) -> bool:
        """Whether a cell's weights lie in different rows, so that they do not meet in the loss."""
        return self.rows > 1

    def split(self, tensor_RI: Tensor) -> Tensor:
        """View (R, I) as (U, C, L)."""
        if self.along_outputs:
            return tensor_RI.reshape(-1, self.rows, tensor_RI.shape[1]).transpose(1, 2)
        return tensor_RI.reshape(len(tensor_RI), -1, self.length)

    def join(self, tensor_UCL: Tensor) -> Tensor:
        """View (U, C, L) as (R, I)."""
        if self.along_outputs:
            return tensor_UCL.transpose(1, 2).flatten(0, 1)
        return tensor_UCL.flatten(1, 2)

    def place(self, unit: Tensor, cell: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        """Return row and column of a weight."""
        if self.along_outputs:
            return unit * self.rows + member, cell
        return unit, cell * self.length + member

    def rows_of(self, units_U: Tensor) -> Tensor:
        """Return the numbers of the rows of some units, (R,)."""
        within = torch.arange(self.rows, device=units_U.device)
        return (units_U[:, None] * self.rows + within).flatten()

    def sum(self, tensor_R: Tensor) -> Tensor:
        """Sum a number per row, such as its loss, over each unit: (R,) → (U,)."""
        return tensor_R.view(-1, self.rows).sum(1)

    def spread(self, tensor_U: Tensor) -> Tensor:
        """Give each row its unit's number, as a column: (U,) → (R, 1)."""
        return tensor_U.repeat_interleave(self.rows)[:, None]
