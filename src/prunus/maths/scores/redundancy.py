"""The worth of heads by GOA: how alike they attend, what they add to the output, or both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...base.errors import InputError, MissingStatisticError
from ..contracts import Needs
from ..moments import ChannelMoments
from ..views import UnitsView
from .attention import Kind, ascending, between_units, row_major
from .units import Gathered, SecondMoment


@dataclass(frozen=True)
class Redundancy:
    """The divergence at which algorithm 1 removes the unit; the most similar are removed first.

    Fields:
        score: "similarity" is that divergence. "second-moment" is what the unit adds to the output
            (``SecondMoment``, appendix 7.1), as a share of what all units of the block add. "both"
            is what section 3.2.2 says ("we prioritize removing similar heads before eliminating
            those with the least importance score"): units below ``similar`` come first, the most
            similar ones at the front, with ``D − similar``; then the others, with their share.
        similar: the divergence below which "both" counts heads as similar. (0.4 is half of the
            largest possible one. The fifth of SmolLM2's key/value groups that is removed best lies
            below 0.36; four heads of a tiny GPT-2, where second moments choose better, above 0.4.)
        threshold: τ; 0: as many go as the sparsity asks for. Above 0, Algorithm 1 decides: the
            units below τ are removed, no matter how many, unless a sparsity that was asked for is
            reached before.
        order: "ascending" visits the most alike pair first, as the authors' code does; "row-major"
            is Algorithm 1 as printed, and needs a threshold.
        distance: "jensen-shannon", or "authors": what their code computes instead.
        goes: "first" of two that are alike, as Algorithm 1 has it; or the "weaker", with the lower
            second moment (ours).

    Divergences are distances of distributions, and shares are of 1: those of different blocks
    compare as they are. (Standardised over the channels of a block, as FLAP's, second moments
    choose far worse among SmolLM2's blocks: a perplexity of 40 where shares give 28.)

    Reference: Li et al. 2024, arXiv:2407.19126, equation 1, Algorithm 1, appendix 7.1.
    """

    score: str = "similarity"
    similar: float = 0.4
    threshold: float = 0.0
    order: str = "ascending"
    distance: str = "jensen-shannon"
    goes: str = "first"

    first: ClassVar[Needs] = ()
    comparable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, known in (
            ("score", ("similarity", "second-moment", "both")),
            ("order", ("ascending", "row-major")),
            ("distance", ("jensen-shannon", "authors")),
            ("goes", ("first", "weaker")),
        ):
            if getattr(self, name) not in known:
                *others, last = known
                raise InputError(
                    f"{name} is {', '.join(others)} or {last}; got {getattr(self, name)!r}."
                )
        for name in ("similar", "threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} is a divergence, 0 or above (heads are at most 0.833 apart); "
                    f"got {getattr(self, name)}."
                )
        if self.order == "row-major" and not self.threshold > 0:
            raise InputError("order=row-major is for a threshold above 0: set that too.")
        if self.score == "second-moment" and self.threshold > 0:
            raise InputError(
                "threshold is for divergences, and score=second-moment reads none. Use "
                "score=similarity, or leave the threshold out."
            )

    @property
    def second(self) -> Needs:
        """Second moments of the second level's input, if they choose a unit or one of two."""
        moments = self.goes == "weaker" or (self.score != "similarity" and not self.decides)
        return (ChannelMoments,) if moments else ()

    @property
    def wants(self) -> Literal["nothing", "maps"]:
        """Attention maps, if heads are compared."""
        return "nothing" if self.score == "second-moment" else "maps"

    @property
    def decides(self) -> bool:
        """Whether the threshold says how many units are removed."""
        return self.threshold > 0

    @property
    def kind(self) -> Kind:
        """The kind of distance."""
        return "authors" if self.distance == "authors" else "jensen-shannon"

    def __call__(self, module: UnitsView, gathered: Gathered) -> Tensor:
        moment_U = SecondMoment()(module, gathered).sum(1).cpu() if self.second else None
        if self.score == "second-moment":
            return _shares(moment_U)[:, None]
        if gathered.divergence_HH is None:
            raise MissingStatisticError("Attention maps were not gathered; this score reads them.")
        divergence_UU = between_units(gathered.divergence_HH, module.heads_per_unit)
        worth_U = moment_U if self.goes == "weaker" else None
        if self.order == "row-major":
            return row_major(divergence_UU, self.threshold, worth_U)[:, None]
        goes_U = ascending(divergence_UU, worth_U)
        if self.score == "both" and not self.decides:
            alike_U = goes_U < self.similar
            goes_U = torch.where(alike_U, goes_U - self.similar, _shares(moment_U))
        return goes_U[:, None]

    def count(self, score_UN: Tensor) -> int:
        """Return how many units are below the threshold."""
        return int((score_UN[:, 0] < self.threshold).sum())


def _shares(moment_U: Tensor | None) -> Tensor:
    """Divide by the sum over the block."""
    assert moment_U is not None
    return moment_U / moment_U.sum().clamp_min(torch.finfo(moment_U.dtype).tiny)
