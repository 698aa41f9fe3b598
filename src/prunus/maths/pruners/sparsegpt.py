"""SparseGPT: mask and update together, one block of columns after the other."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from torch import Tensor

from ...base.errors import at_least
from ...base.team import Team
from ..contracts import Needs, Pattern, Pruned, Refinement, Share
from ..gram import Damped, Gram, Ridge, check_ridge
from ..patterns import Unstructured, removed, rows_compete
from ..scores import OBS
from ..stats import Statistics
from ..updates.sparsegpt import Decide, SparseGPTSweep, sweep


@dataclass(frozen=True)
class SparseGPT:
    """A sweep from left to right that moves each pruned weight's error to later columns.

    Unstructured: at the start of every block of columns the pattern picks a mask among the block's
    weights as updated so far. N:M: group by group, when its first column is reached.

    Attributes:
        pattern: ``Unstructured("layer")`` is the paper's: one threshold over rows × block.
        block_size: columns that are decided together, the paper's B = 128.
        damp: ridge, as a fraction of the Gram's mean diagonal.
        ridge: ``"relative"``, or ``"absolute"``: the damp is the γ of ``2 XᵀX + γI`` itself.
        refinement: of the final mask; the sweep then runs once more, on the refined one.

    Differs from the authors' code: the count is exact (theirs removes at least one weight more per
    block); blocks share the sparsity so that the layer's total is ``floor(s · n)``; weights of dead
    inputs go first, within the sparsity, not beside it.

    Reference: Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1.
    """

    pattern: Pattern = Unstructured("layer")
    block_size: int = 128
    damp: float = 0.01
    refinement: Refinement | None = None
    ridge: Ridge = "relative"
    needs: ClassVar[Needs] = (Gram,)

    def __post_init__(self) -> None:
        at_least(1, block_size=self.block_size)
        at_least(0, damp=self.damp)
        check_ridge(self.ridge)

    def __call__(self, weight_OI: Tensor, stats: Statistics, sparsity: Share) -> Pruned:
        system = stats[Gram].damped(self.damp, self.ridge)
        team = stats.team.splitting(len(weight_OI))
        score = OBS("trailing", self.damp, ridge=self.ridge)
        decide = by_score(score, system, self.pattern, sparsity, team)
        block = min(whole_groups(self.pattern, self.block_size), weight_OI.shape[1])
        update = SparseGPTSweep(self.damp, block, self.ridge)
        return swept(weight_OI, stats, decide, update, self.pattern, self.refinement)


def swept(
    weight_OI: Tensor,
    stats: Statistics,
    decide: Decide,
    update: SparseGPTSweep,
    pattern: Pattern,
    refinement: Refinement | None,
) -> Pruned:
    """Run the sweep that chooses the mask; with a refinement, run it again on the refined mask."""
    system = stats[Gram].damped(update.damp, update.ridge)
    team = stats.team.splitting(len(weight_OI))
    own = team.share(len(weight_OI))
    new_RI, mask_RI = sweep(
        weight_OI[own],
        system.upper_II,
        decide,
        block_size=update.block_size,
        step=pattern.group_size,
    )
    new_OI, mask_OI = team.gather(new_RI), team.gather(mask_RI)
    if refinement is None:
        return Pruned(new_OI, mask_OI, notes=system.notes(update.damp))
    mask_OI, refined = refinement(weight_OI, mask_OI, stats, pattern)
    new_OI, notes = update.solve(weight_OI, mask_OI, stats)
    return Pruned(new_OI, mask_OI, notes={**refined, **notes})


def by_score(score: OBS, system: Damped, pattern: Pattern, sparsity: Share, team: Team) -> Decide:
    """Return the pattern's mask of the columns' OBS scores; the team has the layer's other rows."""

    def decide(lo: int, hi: int, weight_RB: Tensor) -> Tensor:
        score_OB = score.scored(weight_RB, system, slice(lo, hi))
        if not rows_compete(pattern):
            own = sparsity[team.share(len(sparsity))] if isinstance(sparsity, Tensor) else sparsity
            return pattern.mask(score_OB, block_sparsity(pattern, own, 1, lo, hi))
        score_OB = team.gather(score_OB)
        rows = len(score_OB)
        mask_OB = pattern.mask(score_OB, block_sparsity(pattern, sparsity, rows, lo, hi))
        return mask_OB[team.share(rows)]

    return decide


def whole_groups(pattern: Pattern, block_size: int) -> int:
    """Return the block size, raised to whole groups of an N:M pattern."""
    group = pattern.group_size or 1
    return -(-block_size // group) * group


def block_sparsity(pattern: Pattern, sparsity: Share, outputs: int, lo: int, hi: int) -> Share:
    """Return the share of columns lo to hi − 1 to remove; all blocks add up to the exact count.

    After columns 0 to hi − 1 exactly ``floor(s · hi · …)`` weights are gone, whatever the blocks.
    """
    if not isinstance(pattern, Unstructured) or pattern.group == "column":
        return sparsity
    rows = outputs if pattern.group == "layer" else 1
    if isinstance(sparsity, Tensor):
        return (removed(sparsity, hi) - removed(sparsity, lo)).double() / (hi - lo)
    count = removed(sparsity, rows * hi) - removed(sparsity, rows * lo)
    return Fraction(count, rows * (hi - lo))
