"""The loop of every refinement: try a bundle of exchanges in every unit, keep it if it helps."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .cells import Cells

SHARE = 0.05  # of a unit's weights that may be exchanged in one bundle, at first


class Values(Protocol):
    """The values that the kept weights have, and so the worth of an exchange.

    Attributes:
        loss_O: of every row, as it is now.
    """

    loss_O: Tensor

    def prices(self, rows_R: Tensor, kept_RI: Tensor) -> tuple[Tensor, Tensor]:
        """Return what pruned weights of these rows gain and kept ones cost: (R, I) both.

        Only where the weight is pruned (the gain) or kept (the cost) does the number matter.
        """
        ...

    def attempt(self, rows_R: Tensor, tried_RI: Tensor) -> Tensor:
        """Return the loss of these rows with another mask, (R,)."""
        ...

    def accept(self, rows_R: Tensor, better_R: Tensor) -> None:
        """Take over the last attempt in those of its rows that improved."""
        ...


def exchange(mask_OI: Tensor, values: Values, cells: Cells, rounds: int) -> Tensor:
    """Return the mask after at most ``rounds`` bundles per unit.

    A bundle pairs the highest gains with the lowest costs of a cell, as if they did not influence
    each other. If the unit's loss did not fall, the bundle is undone and the next one is half as
    large; if it did, the next one is twice as large.
    """
    kept_OI = mask_OI.clone()
    size = cells.rows * mask_OI.shape[1]
    active_U = torch.arange(len(mask_OI) // cells.rows, device=mask_OI.device)
    allowed_U = torch.full_like(active_U, -int(-SHARE * size // 1))
    for _ in range(rounds):
        rows_R = cells.rows_of(active_U)
        kept_RI = kept_OI[rows_R]
        gain_RI, cost_RI = values.prices(rows_R, kept_RI)
        tried_RI, swaps_U = _bundle(gain_RI, cost_RI, kept_RI, cells, allowed_U[active_U])
        loss_R = values.attempt(rows_R, tried_RI)
        better_U = cells.sum(loss_R) < cells.sum(values.loss_O[rows_R])
        better_R = better_U.repeat_interleave(cells.rows)
        values.accept(rows_R, better_R)
        kept_OI[rows_R[better_R]] = tried_RI[better_R]
        allowed_U[active_U] = torch.where(better_U, swaps_U * 2, swaps_U // 2)
        active_U = active_U[(swaps_U > 0) & (allowed_U[active_U] > 0)]
        if not len(active_U):
            break
    return kept_OI


def _bundle(
    gain_RI: Tensor, cost_RI: Tensor, kept_RI: Tensor, cells: Cells, allowed_U: Tensor
) -> tuple[Tensor, Tensor]:
    """Make at most ``allowed_U`` exchanges per unit; return the mask and their number.

    A cell gives one, or, where it is the whole unit, as many as are allowed.
    """
    infinity = float("inf")
    gain_UCL = cells.split(gain_RI.masked_fill(kept_RI, -infinity))
    cost_UCL = cells.split(cost_RI.masked_fill(~kept_RI, infinity))
    count = min(int(allowed_U.max()), cells.length) if gain_UCL.shape[1] == 1 else 1
    gain_UCK, back_UCK = gain_UCL.topk(count)
    cost_UCK, gone_UCK = cost_UCL.topk(count, largest=False)
    margin_UN = (gain_UCK - cost_UCK).flatten(1)
    rank_UN = margin_UN.argsort(1, descending=True).argsort(1)
    chosen_UCK = ((margin_UN > 0) & (rank_UN < allowed_U[:, None])).view(gain_UCK.shape)
    kept_UCL = cells.split(kept_RI)
    kept_UCL = kept_UCL.scatter(2, back_UCK, kept_UCL.gather(2, back_UCK) | chosen_UCK)
    kept_UCL = kept_UCL.scatter(2, gone_UCK, kept_UCL.gather(2, gone_UCK) & ~chosen_UCK)
    return cells.join(kept_UCL), chosen_UCK.sum((1, 2))
