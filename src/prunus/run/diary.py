"""What a journal says of a block that has lost units, and such a block taken from it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..maths.shares.units import Key, Quota
from ..model.blocks import Block
from ..report.layer import LayerReport
from ..storage.journal import REPORTS, Journal, fill
from ..storage.widths import renumbered, resize

if TYPE_CHECKING:
    from .units import Seen


def noted(block: Block, seen: Seen, quota: Quota) -> dict[str, Any]:
    """Beside its tensors and reports: what the rest of the run has to know."""
    divergence_HH = seen.divergences.get(block.index)
    return {
        "numbers": seen.numbers.get(block.index, {}),
        "counts": {unit: n for (index, unit), n in quota.counts.items() if index == block.index},
        "divergence": None if divergence_HH is None else divergence_HH.tolist(),
    }


def restored(
    block: Block, seen: Seen, quota: Quota, journal: Journal | None, device: torch.device
) -> list[LayerReport] | None:
    """An earlier run's reports, its tensors in the block; None where it is still to do.

    Raises:
        CheckpointError: what is on disk is damaged.
    """
    if journal is None:
        return None
    with journal.found(block) as found:
        if found is None:
            return None
        line, tensors = found
        resize(block.name, block.module, tensors)
        renumbered(block.module, line["numbers"])
        block.module.to(device)
        fill(block, tensors)
        seen.numbers[block.index] = line["numbers"]
        if line["divergence"] is not None:
            divergence_HH = torch.tensor(line["divergence"], dtype=torch.float64)
            seen.divergences[block.index] = divergence_HH
        quota.counts |= {(block.index, unit): count for unit, count in line["counts"].items()}
        return REPORTS.validate_python(line["reports"])


def counted(journal: Journal) -> dict[Key, int]:
    """How many units went of each module in all the blocks that are done."""
    return {
        (index, unit): count
        for index, line in journal.blocks.items()
        for unit, count in line["counts"].items()
    }
