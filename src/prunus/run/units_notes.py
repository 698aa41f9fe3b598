"""What a journal says of a block that has lost units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..maths.shares.units import Quota
from ..model.blocks import Block

if TYPE_CHECKING:
    from .units_loop import Seen


def noted(block: Block, seen: Seen, quota: Quota) -> dict[str, Any]:
    """Beside its tensors and reports: what the rest of the run has to know."""
    divergence_HH = seen.divergences.get(block.index)
    return {
        "numbers": seen.numbers.get(block.index, {}),
        "counts": {unit: n for (index, unit), n in quota.counts.items() if index == block.index},
        "below": quota.found.get(block.index),
        "divergence": None if divergence_HH is None else divergence_HH.tolist(),
    }


def take_up(block: Block, noted: Mapping[str, Any], seen: Seen, quota: Quota) -> None:
    """Go on from what an earlier run noted of the block."""
    seen.numbers[block.index] = noted["numbers"]
    if noted["divergence"] is not None:
        divergence_HH = torch.tensor(noted["divergence"], dtype=torch.float64)
        seen.divergences[block.index] = divergence_HH
    if noted.get("below") is not None:
        quota.found[block.index] = noted["below"]
    quota.counts |= {(block.index, unit): count for unit, count in noted["counts"].items()}
