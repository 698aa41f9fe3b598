"""The orders that a method wants for the channels that its layers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...base.errors import InputError
from ..contracts import Permutation, Score
from ..patterns import NM
from .assignment import Assignment


@dataclass(frozen=True)
class Ordering:
    """One order per site, searched for all of its layers together.

    The inputs of down and o are folded into the layers that make them. The residual stream is
    ``"fold"``: one order for the whole model, from the dense scores of all that read it; or
    ``"gather"``: an index in front of every site, which keeps more and costs a little time.

    Attributes:
        realisation: of the residual stream's orders.
        score: what an order shall keep the most of.
        pattern: under which it shall be kept.
        permutation: how an order is found.
        rows: of the scores of the residual stream's readers, spread evenly over all, that are held
            while its order is searched.

    Reference: Zhang et al. 2024, "Plug-and-Play", section 4.2 and appendix C. One order for the
    residual stream, and the limits of heads, are ours.
    """

    realisation: Literal["fold", "gather"]
    score: Score
    pattern: NM
    permutation: Permutation = Assignment()
    rows: int = 16384

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(
                f"ordering.rows is the number of rows to hold, at least 1; got {self.rows}."
            )


def together(scores: Sequence[Tensor]) -> Tensor:
    """Stack the scores of layers that share their inputs, each scaled to mean 1.

    Equal weight to each layer's share: the scale of a score says little between layers.
    """
    return torch.cat([score_OI.float() / (float(score_OI.mean()) or 1.0) for score_OI in scores])


def thinned(score_OI: Tensor, rows: int) -> Tensor:
    """Return at most ``rows`` of the rows, evenly spread."""
    return score_OI[:: -(-len(score_OI) // rows)].clone()
