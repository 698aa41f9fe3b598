"""ViTCoD: cycles of a sparse matrix times one dense vector, on two engines that share an array.

Columns with many nonzeros go to the denser engine, which multiplies them whole; the rest goes to
the sparser engine, which multiplies nonzeros alone. The engines run side by side, so a layer takes
as long as the slower one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

TRIES = 5
STEP = 0.1


@dataclass(frozen=True)
class Cycles:
    """What a layer takes.

    Attributes:
        cycles: with its zeros.
        dense: without any.
        sparsity: of the layer.
        dense_columns: how many the denser engine has.
    """

    cycles: int
    dense: int
    sparsity: float
    dense_columns: int

    @property
    def speedup(self) -> float:
        """Dense over sparse cycles."""
        return self.dense / max(self.cycles, 1)


@dataclass(frozen=True)
class ViTCoD:
    """The cycle model of BESA's Table 4: multiplications on an array of elements, and no memory.

    With G columns on the denser engine, n nonzeros in the others and P = width · height elements,
    the denser engine gets ``w = floor(width · O·G / (O·G + n))`` columns of the array, the sparser
    one the rest, and ``cycles = max(ceil(O·G / (w · height)), ceil(n / ((width − w) · height)))``.
    Columns count as dense from a share of nonzeros on, which begins at one half and moves by 0.1
    while the dense columns hold more than 0.6 or less than 0.4 of all nonzeros, at most five times;
    the fewest cycles count.

    Attributes:
        width: columns of the array; an engine has whole ones.
        height: elements in each.
        as_published: the authors' counting, for their Table 4: the denser engine multiplies I·G
            instead of O·G, a layer with more inputs than outputs is cut into square patches one
            after the other, and "dense" is that of square patches for every layer. (It gives 10128
            for 4096 × 11008, whose multiplications take 11008.) Their reordering also loses a few
            nonzeros at column 200; that is not repeated here.

    Reference: Xu et al. 2024, "BESA", section 4.5 and appendix B; You et al. 2023, "ViTCoD".
    """

    width: int = 64
    height: int = 64
    as_published: bool = False

    def __call__(self, mask_OI: Tensor) -> Cycles:
        """Cycles of a layer whose weights are nonzero where ``mask_OI`` is True, for one token."""
        outputs, inputs = mask_OI.shape
        nonzeros_I = mask_OI.sum(0, dtype=torch.int64)
        elements = self.width * self.height
        dense = ceil(outputs * inputs / elements)
        if self.as_published:
            long, short = max(outputs, inputs), min(outputs, inputs)
            dense = sum(ceil(side**2 / elements) for side in _patches(long, short))
        pieces = [nonzeros_I]
        if self.as_published and inputs > outputs:
            pieces = list(nonzeros_I.split(outputs))
        found = [self._fewest(piece_I, outputs) for piece_I in pieces]
        kept = int(nonzeros_I.sum())
        return Cycles(
            cycles=sum(cycles for cycles, _ in found),
            dense=dense,
            sparsity=1 - kept / (outputs * inputs),
            dense_columns=sum(columns for _, columns in found),
        )

    def _fewest(self, nonzeros_I: Tensor, outputs: int) -> tuple[int, int]:
        """Return the fewest cycles over all thresholds tried, and the dense columns then."""
        total = int(nonzeros_I.sum())
        found: list[tuple[int, int]] = []
        threshold = 0.5
        for _ in range(TRIES):
            dense_I = nonzeros_I.double() > threshold * outputs
            columns, held = int(dense_I.sum()), int(nonzeros_I[dense_I].sum())
            found.append((self._cycles(columns, total - held, outputs, len(nonzeros_I)), columns))
            share = held / total if total else 0.5
            if share >= 0.6:
                threshold += STEP
            elif share <= 0.4:
                threshold -= STEP
            else:
                break
        return min(found)

    def _cycles(self, columns: int, sparse: int, outputs: int, inputs: int) -> int:
        """Return the cycles of the slower engine; one that has work has at least one column."""
        work = outputs * columns
        if work + sparse == 0:
            return 0
        least, most = int(columns > 0), self.width - int(sparse > 0)
        width = min(max(self.width * work // (work + sparse), least), most)
        multiplied = inputs * columns if self.as_published else work
        denser = ceil(multiplied / (width * self.height)) if columns else 0
        sparser = ceil(sparse / ((self.width - width) * self.height)) if sparse else 0
        return max(denser, sparser)


def _patches(long: int, short: int) -> list[int]:
    """Return the sides of square patches along the longer side; the last one is what is left."""
    return [min(short, long - start) for start in range(0, long, short)]
