"""The composition that every score-mask-update method shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...base.errors import InputError
from ..contracts import Needs, Pattern, Pruned, Refinement, ReportingUpdate, Score, Share, Update
from ..stats import Statistics
from ..updates.keep import Keep


@dataclass(frozen=True)
class Compose:
    """One layer through score → mask → (refinement) → update.

    The report notes the share of all scores that the mask keeps, before any refinement:
    ``score_kept``.
    """

    score: Score
    pattern: Pattern
    refinement: Refinement | None = None
    update: Update = Keep()

    @property
    def needs(self) -> Needs:
        """The statistics of all parts, each once."""
        refinement = self.refinement.needs if self.refinement else ()
        return tuple(dict.fromkeys((*self.score.needs, *refinement, *self.update.needs)))

    def __call__(
        self,
        weight_OI: Tensor,
        stats: Statistics,
        sparsity: Share,
        *,
        score_stats: Statistics | None = None,
    ) -> Pruned:
        """Prune a layer; ``score_stats`` are for a score that reads another tensor."""
        score_OI = self.score(weight_OI, stats if score_stats is None else score_stats)
        if not isinstance(score_OI, Tensor) or score_OI.shape != weight_OI.shape:
            found = getattr(score_OI, "shape", type(score_OI).__name__)
            raise InputError(
                f"A score is a tensor with the shape of the weight, {tuple(weight_OI.shape)}; "
                f"{type(self.score).__name__} returned {found}."
            )
        mask_OI = self.pattern.mask(score_OI, sparsity)
        notes: dict[str, Any] = {"score_kept": _share(score_OI, mask_OI)}
        if self.refinement is not None:
            mask_OI, refined = self.refinement(weight_OI, mask_OI, stats, self.pattern)
            notes.update(refined)
        if isinstance(self.update, ReportingUpdate):
            new_OI, updated = self.update.solve(weight_OI, mask_OI, stats)
            return Pruned(new_OI, mask_OI, notes={**notes, **updated})
        return Pruned(self.update(weight_OI, mask_OI, stats), mask_OI, notes=notes)


def _share(score_OI: Tensor, mask_OI: Tensor) -> float | None:
    """Return Σ of the kept scores over Σ of all; None where a sum of 0 leaves none."""
    total = float(score_OI.sum(dtype=torch.float64))
    return float((score_OI * mask_OI).sum(dtype=torch.float64)) / total if total else None
