"""The statistics of a block's sites, from the recorded calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..base.errors import NumericalError
from ..base.team import ALONE, Team
from ..maths.contracts import Needs
from ..maths.stats import Statistics, TokenSample
from ..model.blocks import Block
from ..model.replay import Recording
from ..model.routing import fed
from .observer import Observer


@contextmanager
def on(device: torch.device, block: Block) -> Iterator[None]:
    """The block's weights at hand and on the device; then back where they were."""
    with block.at_hand():
        home = next(block.module.parameters()).device
        block.module.to(device)
        try:
            yield
        finally:
            block.module.to(home)


def recorded(
    block: Block,
    blocks: int,
    recording: Recording | None,
    needs: Needs,
    device: torch.device,
    observer: Observer,
    team: Team,
    step: str = "record",
) -> Mapping[str, Statistics]:
    """Of every site of the block; where there is no text, nothing for every site."""
    observer.block(block.index, blocks, block.name, step)
    if recording is None:
        return _Weightless(device)
    return gathered(block, recording, needs, device, observer, step == "order", team)


class _Weightless(dict[str, Statistics]):
    """Empty statistics for every site: reading one says that this run had no text."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __missing__(self, site: str) -> Statistics:
        return Statistics((), 0, self.device)


def gathered(
    block: Block,
    recording: Recording,
    needs: Needs,
    device: torch.device,
    observer: Observer,
    advance: bool = False,
    team: Team = ALONE,
) -> Mapping[str, Statistics]:
    """The statistics of every site, of all processes' samples.

    With ``advance`` the outputs become the inputs of the next block.
    """
    with team.agreed():
        stats = _gather(block, recording, needs, device, observer, advance)
    for statistics in stats.values():
        statistics.merge(team)
    return fed(block, stats, needs, recording.min_tokens)


def _gather(
    block: Block,
    recording: Recording,
    needs: Needs,
    device: torch.device,
    observer: Observer,
    advance: bool,
) -> Mapping[str, Statistics]:
    """Run the recorded calls through the block; summarise each site's input once."""
    kinds = tuple(dict.fromkeys((*needs, TokenSample)))
    stats = {site: Statistics(kinds, layer.shape[1], device) for site, layer in block.sites.items()}

    def into(statistics: Statistics) -> Any:
        return lambda _, args: statistics.update(args[0])

    with ExitStack() as stack:
        for site, layer in block.sites.items():
            handle = layer.module.register_forward_pre_hook(into(stats[site]))
            stack.callback(handle.remove)
        stack.enter_context(block.watched())
        for sample, call in enumerate(recording.calls[block.index]):
            output = call(block.module, recording.hidden[sample].to(device))
            if not bool(output.isfinite().all()):
                raise NumericalError(
                    f"{block.name} puts out NaN or inf on calibration sample "
                    f"{recording.first + sample}. "
                    "Use a wider dtype (--dtype float32), or check the checkpoint."
                )
            if advance:
                recording.hidden[sample] = output.to(recording.hidden[sample].device)
            observer.sample(sample + 1, len(recording.hidden))
    return stats
