"""MRP: removes many weights of a row at once; all kept ones take their optimal values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from ...base.errors import InputError, PatternError, at_least
from ...base.team import Team
from ..contracts import Needs, Pattern, Pruned, Refinement, Share
from ..gram import Damped, Gram, Ridge, check_ridge
from ..patterns import NM, Unstructured
from ..scores import OBS
from ..stats import Statistics
from ..updates.least_squares import LeastSquares
from ..updates.multipliers import Multipliers
from ..updates.sparsegpt import Decide, SparseGPTSweep
from .sparsegpt import by_score, swept, whole_groups
from .subsets import best_subsets


@dataclass(frozen=True)
class MRP:
    """Algorithm 1: for each block of columns, choose what to remove, then compensate everything.

    Mask S (eq. 14) scores each weight alone: OBS. Mask M (eq. 12), for N:M, takes in every group
    the subset whose joint removal costs least; of more than 1,000, as 8:16 has, it is searched.
    Compensation M (eq. 11) gives all kept weights of the row, left and right of the block, their
    optimal values: ``LeastSquares``. Compensation S is SparseGPT's sweep.

    Compensations nest: after the last block the weights depend on the dense weights and the final
    mask alone. Those between blocks only steer the masks: they are solved for the ``Multipliers``
    of the pruned weights, to ``between``, each from where the last one ended.

    Attributes:
        pattern: which weights compete; unstructured ones within a block of columns.
        mask: ``"S"`` or, for N:M along inputs, ``"M"``.
        compensation: ``"M"`` or ``"S"``.
        block_size: the paper's S; 0 means all columns at once.
        diagonal: of mask S: ``"full"`` as printed, ``"trailing"`` as in SparseGPT.
        damp: ridge, as a fraction of the Gram's mean diagonal. (The paper writes γ = 0.01 and says
            that it follows SparseGPT: a fraction, then.)
        ridge: ``"absolute"`` adds γI itself to the sum ``2 XᵀX``, as remark 4.1 prints it.
        tolerance: certified relative gap of the final compensation.
        between: what the compensations between blocks may leave of the pruned weights; see
            ``Multipliers``. On layers of SmolLM2-135M 1e-2 costs 0.05 to 0.8 % of the final loss
            against 1e-6; neither steadies the mask against rounding.
        refinement: of the final mask, before the final compensation.

    Reference: Zhao et al. 2024, "MRP", algorithm 1. No code by the authors exists.
    """

    pattern: Pattern = Unstructured("layer")
    mask: Literal["S", "M"] = "S"
    compensation: Literal["S", "M"] = "M"
    block_size: int = 128
    diagonal: Literal["full", "trailing"] = "full"
    damp: float = 0.01
    tolerance: float = 1e-3
    between: float = 1e-2
    refinement: Refinement | None = None
    ridge: Ridge = "relative"
    needs: ClassVar[Needs] = (Gram,)

    def __post_init__(self) -> None:
        if self.mask not in ("S", "M") or self.compensation not in ("S", "M"):
            raise InputError(
                f"mask and compensation are S or M, not {self.mask!r}, {self.compensation!r}."
            )
        least = {"damp": self.damp, "tolerance": self.tolerance, "between": self.between}
        at_least(0, block_size=self.block_size, **least)
        check_ridge(self.ridge)
        if self.mask == "M" and not (
            isinstance(self.pattern, NM) and self.pattern.along == "input"
        ):
            raise PatternError(
                "MRP's mask M weighs the subsets of an N:M group of inputs, and unstructured masks "
                f"have too many; got {self.pattern}. Give N:M, or use mask S (mrp-sm)."
            )

    def __call__(self, weight_OI: Tensor, stats: Statistics, sparsity: Share) -> Pruned:
        system = stats[Gram].damped(self.damp, self.ridge)
        team = stats.team.splitting(len(weight_OI))
        weight_OI = weight_OI.float()
        inputs = weight_OI.shape[1]
        block = min(whole_groups(self.pattern, self.block_size or inputs), inputs)
        decide = (
            by_score(
                OBS(self.diagonal, self.damp, ridge=self.ridge),
                system,
                self.pattern,
                sparsity,
                team,
            )
            if self.mask == "S"
            else partial(best_subsets, system, cast(NM, self.pattern))  # see __post_init__
        )
        if self.compensation == "S":
            update = SparseGPTSweep(self.damp, block, self.ridge)
            return swept(weight_OI, stats, decide, update, self.pattern, self.refinement)
        own_RI = weight_OI[team.share(len(weight_OI))]
        steered = self._steered(own_RI, system, decide, block, team)
        mask_OI, start_OI = map(team.gather, steered)
        refined: Mapping[str, Any] = {}
        if self.refinement is not None:
            mask_OI, refined = self.refinement(weight_OI, mask_OI, stats, self.pattern)
        solver = LeastSquares(self.damp, self.tolerance, ridge=self.ridge)
        new_OI, notes = solver.solve(weight_OI, mask_OI, stats, start_OI)
        return Pruned(new_OI, mask_OI, notes={**refined, **notes})

    def _steered(
        self, weight_OI: Tensor, system: Damped, decide: Decide, block: int, team: Team
    ) -> tuple[Tensor, Tensor]:
        """Return the mask, and weights that are compensated for all of it but its last block."""
        inputs = weight_OI.shape[1]
        mask_OI = torch.ones_like(weight_OI, dtype=torch.bool)
        multipliers = Multipliers(weight_OI, system, self.between, team=team)
        for lo in range(0, inputs, block):
            hi = min(lo + block, inputs)
            mask_OI[:, lo:hi] = decide(lo, hi, multipliers.weights(lo, hi))
            if hi < inputs:
                multipliers.solve(mask_OI[:, :hi])
        return mask_OI, multipliers.weights(0, inputs)
