"""Exchanges of kept and pruned weights while the layer's loss falls. Ours, in no paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...base.errors import InputError, at_least
from ..contracts import Needs, Pattern
from ..gram import Gram, Ridge, check_ridge
from ..stats import Statistics
from .cells import Cells
from .compensated import exchange_compensated
from .dense import exchange_dense

WEIGHTS = 2**22  # refined at once: bounds memory, as rows do not influence one another


@dataclass(frozen=True)
class Swaps:
    """Exchanges of a kept and a pruned weight within a row or an N:M group, in all rows at once.

    The loss is ``½ δᵀHδ`` per row, with ``δ = w − w⁰`` and H the damped Gram. The number of pruned
    weights of every row stays (with the patterns ``column`` and N:M along outputs: of every
    column), and no layer's loss rises: rows whose loss would are left as they were.

    Attributes:
        against: ``"dense"``: the kept weights have their dense values, so an exchange changes the
            loss by an exact formula; for masks that nothing follows. ``"compensated"``: the kept
            weights have their optimal values before and after; for masks that ``LeastSquares`` or
            a sweep follows.
        damp: ridge, as a fraction of the Gram's mean diagonal.
        ridge: ``"relative"``, or ``"absolute"``: the damp is the γ of ``2 XᵀX + γI`` itself.
        rounds: of bundles of exchanges, in each row tried together and kept if its loss falls.
            Against dense values single exchanges follow, until none helps; against
            compensated ones half as many rounds with prices that promise less.
    """

    against: Literal["dense", "compensated"] = "compensated"
    damp: float = 0.01
    rounds: int = 20
    ridge: Ridge = "relative"
    needs: ClassVar[Needs] = (Gram,)

    def __post_init__(self) -> None:
        if self.against not in ("dense", "compensated"):
            raise InputError(f"Swaps are against dense or compensated, not {self.against!r}.")
        at_least(0, damp=self.damp, rounds=self.rounds)
        check_ridge(self.ridge)

    def __call__(
        self, weight_OI: Tensor, mask_OI: Tensor, stats: Statistics, pattern: Pattern
    ) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the refined mask; for the report, exchanged weights and loss after over before."""
        system = stats[Gram].damped(self.damp, self.ridge)
        weight_OI = system.live(weight_OI.float())
        cells = Cells.of(pattern, (weight_OI.shape[0], weight_OI.shape[1]))
        run = exchange_dense if self.against == "dense" else exchange_compensated
        rows = max(WEIGHTS // weight_OI.shape[1] // cells.rows, 1) * cells.rows
        team = stats.team.splitting(len(weight_OI), rows)  # in the same batches as one alone
        own = team.share(len(weight_OI), rows)
        split = (tensor_OI[own].split(rows) for tensor_OI in (weight_OI, mask_OI))
        parts = [
            run(weight_RI, mask_RI, system, cells, self.rounds)
            for weight_RI, mask_RI in zip(*split, strict=True)
        ]
        new_OI, before_O, after_O = (
            team.gather(torch.cat(same)) for same in zip(*parts, strict=True)
        )
        worse_U = cells.sum(after_O) > cells.sum(before_O)
        new_OI = torch.where(cells.spread(worse_U), mask_OI, new_OI)
        after_O = torch.where(cells.spread(worse_U)[:, 0], before_O, after_O)
        before, after = float(before_O.double().sum()), float(after_O.double().sum())
        return new_OI, {
            "swaps": int((new_OI & ~mask_OI).sum()),
            "loss_after_swaps": max(after, 0.0) / before if before > 0 else 1.0,
        }
