"""An order that deals channels to boxes by their importance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..contracts import Pattern, Share
from .retained import along_inputs


@dataclass(frozen=True)
class Heuristic:
    """A deal of the channels, sorted by ``Σ_o S[o, i]``, to the K = I / M boxes, M times K.

    Attributes:
        snake: every other deal runs backwards (the authors' code); otherwise each begins with the
            first box (the paper's text).

    Reference: Zhang et al. 2024, "Plug-and-Play", section 4.2, step 1.
    """

    snake: bool = True

    def __call__(self, score_OI: Tensor, pattern: Pattern, sparsity: Share) -> Tensor:
        """Return the order, box after box; position p of it reads channel ``order_I[p]``."""
        size = along_inputs(pattern, score_OI).of
        ranked_I = score_OI.float().sum(0).argsort(descending=True, stable=True)
        dealt_MK = ranked_I.view(size, -1).clone()
        if self.snake:
            dealt_MK[1::2] = dealt_MK[1::2].flip(1)
        return dealt_MK.T.flatten()
