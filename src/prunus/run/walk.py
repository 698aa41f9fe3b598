"""The way through the blocks, one at a time, that every pass over a model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..base.team import Team
from ..model.blocks import Block
from ..model.replay import Recording
from ..report.layer import LayerReport
from ..storage.journal import REPORTS, Journal, fill
from .observer import Observer

Fit = Callable[[Block, Mapping[str, Any], Mapping[str, Tensor]], None]
"""Makes a block ready for an earlier run's tensors, by what the journal noted of it."""


@contextmanager
def on(device: torch.device, block: Block) -> Iterator[None]:
    """Have the block's weights at hand and on the device; then put them back where they were."""
    with block.at_hand():
        home = next(block.module.parameters()).device
        block.module.to(device)
        try:
            yield
        finally:
            block.module.to(home)


def walk(
    blocks: Sequence[Block],
    last: int,
    recording: Recording | None,
    device: torch.device,
    observer: Observer,
    together: int = 1,
) -> Iterator[Block]:
    """Yield each block up to index ``last``, at hand and on the device.

    When the caller is done with a block, the samples go through it as it has become. A recording
    that is None, or that the caller advances himself and does not give here, stays where it is.
    The blocks of a unit of ``together`` are at hand from its beginning to its end.
    """
    for unit in units_of(blocks[: last + 1], together):
        with ExitStack() as stack:
            for block in unit:
                stack.enter_context(on(device, block))
            for block in unit:
                yield block
                if recording is not None and block.index < last:
                    observer.block(block.index, len(blocks), block.name, "advance")
                    recording.advance(block.index, block.module, device, observer.sample)


def units_of(blocks: Sequence[Block], size: int) -> list[list[Block]]:
    """Group consecutive blocks: the first ``size`` of the model, the next, and what is left."""
    return [list(unit) for _, unit in groupby(blocks, lambda block: block.index // size)]


def align(block: Block, team: Team) -> None:
    """Give every process the first one's weights of the block."""
    for tensor in block.module.state_dict().values():
        team.broadcast_(tensor)


def taken_up(
    block: Block, journal: Journal | None, team: Team, fit: Fit | None = None
) -> tuple[list[LayerReport], dict[str, Any]] | None:
    """Put what an earlier run made of the block into it, in every process.

    Returns:
        That run's reports, and whatever else the journal noted; None: the block is still to do.

    Raises:
        CheckpointError: what is on disk is damaged.
    """
    found: dict[str, Any] | None = None
    with team.agreed():
        if journal is not None:
            with journal.found(block) as known:
                if known is not None:
                    line, tensors = known
                    if fit is not None:
                        fit(block, line, tensors)
                    fill(block, tensors)
                    found = {"line": line, "like": likeness(tensors)}
    told = team.told(found)
    if told is None:
        return None
    if fit is not None and not team.first:
        fit(block, told["line"], {name: empty(*like) for name, like in told["like"].items()})
    align(block, team)
    return REPORTS.validate_python(told["line"]["reports"]), told["line"]


def likeness(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, list[int]]]:
    """Return dtypes and shapes, as JSON can hold them: what ``empty`` takes."""
    return {name: (str(x.dtype), list(x.shape)) for name, x in tensors.items()}


def empty(dtype: str, shape: list[int]) -> Tensor:
    """Return a tensor of a dtype by its name, as ``str`` gives it, to be filled."""
    return torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
