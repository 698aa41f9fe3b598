"""Looks at the dense model as a whole, before the first block is pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base.team import ALONE, Team
from ..maths.contracts import Needs, Plan
from ..maths.orders.ordering import Ordering, thinned, together
from ..maths.shares.owl import OWL
from ..maths.stats import Statistics
from ..model.blocks import Block
from ..model.replay import Recording
from .gather import recorded
from .observer import Observer
from .walk import walk


@torch.no_grad()
def dense_pass(
    blocks: Sequence[Block],
    last: int,
    recording: Recording | None,
    needs: Needs,
    *,
    device: torch.device,
    observer: Observer,
    team: Team = ALONE,
) -> Iterator[tuple[Block, Mapping[str, Statistics]]]:
    """Every block up to ``last``, dense and at hand, with its statistics.

    Consumes the recording.
    """
    for block in walk(blocks, last, None, device, observer):  # the gathering advances the samples
        yield (
            block,
            recorded(
                block, len(blocks), recording, needs, device, observer, team, "order", advance=True
            ),
        )


@torch.no_grad()
def outliers(
    blocks: Sequence[Block],
    recording: Recording | None,
    owl: OWL,
    plan: Plan,
    **where: Any,
) -> dict[int, float]:
    """Count the share of outliers in each block that has a plan. Consume the recording.

    ``where``: device, observer and team, as for ``dense_pass``.
    """
    found = {}
    last = max((block.index for block in blocks if block.planned(plan)), default=-1)
    for block, stats in dense_pass(blocks, last, recording, owl.needs, **where):
        layers = block.planned(plan)
        if layers:
            scores = [owl.score(layer.weight_OI, stats[layer.site]) for layer in layers]
            found[block.index] = owl.outliers(scores)
    return found


@torch.no_grad()
def residual_order(
    blocks: Sequence[Block],
    recording: Recording | None,
    ordering: Ordering,
    plan: Plan,
    *,
    device: torch.device,
    observer: Observer,
    team: Team = ALONE,
) -> Tensor:
    """Find the one order of the residual stream, in a pass over the dense blocks.

    Of the scores of all planned layers that read the stream ``ordering.rows`` rows are held.
    Consumes the recording.
    """
    readers = {
        block.index: [x for x in block.planned(plan) if x.site not in block.interior]
        for block in blocks
    }
    last = max((index for index, layers in readers.items() if layers), default=-1)
    share = max(ordering.rows // max(sum(map(len, readers.values())), 1), 1)
    scores: list[Tensor] = []
    for block, stats in dense_pass(
        blocks, last, recording, ordering.score.needs, device=device, observer=observer, team=team
    ):
        for layer in readers[block.index]:
            score_OI = ordering.score(layer.weight_OI, stats[layer.site])
            scores.append(thinned(together([score_OI]), share))
    return ordering.permutation(torch.cat(scores), ordering.pattern, ordering.pattern.sparsity)
