"""The statistics of what layers read, from the recorded calls of their block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from ..base.errors import NumericalError, UnsupportedModelError
from ..base.team import ALONE, Team
from ..maths.contracts import Needs
from ..maths.stats import Statistics, TokenSample
from ..model.blocks import Block, Layer
from ..model.replay import Call, Recording
from ..model.routing import fed
from ..model.watch import Watcher, watch
from .observer import Observer

Numbered = Callable[[int, Tensor], None]
"""Given the number of a sample among those of all processes, and what a layer reads of it."""


def samples_at(
    block: Block, recording: Recording, device: torch.device, observer: Observer
) -> Iterator[tuple[int, Tensor, Call]]:
    """Yield position, input and call of each of this process's samples, which have come so far."""
    for position, call in enumerate(recording.calls[block.index]):
        yield position, recording.hidden[position].to(device), call
        observer.sample(position + 1, len(recording.hidden))


def gather(
    block: Block,
    recording: Recording,
    wanted: Mapping[str, tuple[Layer, Needs]],
    device: torch.device,
    observer: Observer,
    team: Team = ALONE,
    *,
    then: Literal["stop", "check", "advance"] = "check",
    also: Mapping[nn.Module, Numbered] | None = None,
) -> dict[str, Statistics]:
    """Run the recorded calls through the block and summarise what layers read.

    Args:
        block: at hand and on the device.
        recording: this process's samples, at the block.
        wanted: under a name each, a layer and the statistics of its input.
        device: where the block is.
        observer: told of every sample.
        team: whose samples are summarised together.
        then: ``stop`` leaves a forward as soon as all layers have read; ``check`` goes on to the
            end, whose output must be finite; ``advance`` makes that the next block's input.
        also: who else is to have the inputs of a module, sample by sample.

    Raises:
        NumericalError: NaN or inf, with the block and the sample.
    """
    stats = {n: Statistics(kinds, x.shape[1], device) for n, (x, kinds) in wanted.items()}
    number = recording.first  # of the sample that runs

    def summing(layer: Layer, summed: Statistics) -> Watcher:
        if recording.weights is None:
            return summed.update
        weights = recording.weights
        return lambda inputs_TI: summed.update(
            inputs_TI, _weights_of(layer, inputs_TI, weights[number - recording.first])
        )

    readers: dict[int, tuple[nn.Module, list[Watcher]]] = {
        id(x.module): (x.module, [summing(x, stats[n])]) for n, (x, _) in wanted.items()
    }

    def numbered(see: Numbered) -> Watcher:
        return lambda inputs_TI: see(number, inputs_TI)

    for module, see in (also or {}).items():
        readers[id(module)][1].append(numbered(see))
    inputs = list(readers.values())
    with team.agreed(), nullcontext() if then == "stop" else block.watched():
        for position, hidden, call in samples_at(block, recording, device, observer):
            number = recording.first + position
            output = watch(block, call, hidden, inputs, stop=then == "stop")
            if output is None:
                continue
            if not bool(output.isfinite().all()):
                raise NumericalError(
                    f"{block.name} puts out NaN or inf on calibration sample {number}. "
                    "Use a wider dtype (--dtype float32), or check the checkpoint."
                )
            if then == "advance":
                recording.hidden[position] = output.to(recording.hidden[position].device)
    for statistics in stats.values():
        statistics.merge(team)
    return stats


def _weights_of(layer: Layer, inputs_TI: Tensor, weights_T: Tensor) -> Tensor:
    """Return the weights of a layer's rows, which must be the sample's tokens."""
    if len(inputs_TI) != len(weights_T):
        raise UnsupportedModelError(
            f"{layer.name} reads {len(inputs_TI)} rows of a sample of {len(weights_T)} tokens, so "
            "it is not known which row is a token of an answer. Leave --set calibration.answers "
            "out."
        )
    return weights_T


def gathered(
    block: Block,
    recording: Recording,
    needs: Needs,
    device: torch.device,
    observer: Observer,
    advance: bool = False,
    team: Team = ALONE,
) -> Mapping[str, Statistics]:
    """Return the statistics of every site, of all processes' samples.

    With ``advance`` the outputs become the inputs of the next block.
    """
    kinds = tuple(dict.fromkeys((*needs, TokenSample)))
    wanted = {site: (layer, kinds) for site, layer in block.sites.items()}
    then: Literal["check", "advance"] = "advance" if advance else "check"
    stats = gather(block, recording, wanted, device, observer, team, then=then)
    return fed(block, stats, needs, recording.min_tokens)


def recorded(
    block: Block,
    blocks: int,
    recording: Recording | None,
    needs: Needs,
    device: torch.device,
    observer: Observer,
    team: Team,
    step: str = "record",
    *,
    advance: bool = False,
) -> Mapping[str, Statistics]:
    """Return the statistics of every site; empty ones where there is no text.

    With ``advance`` the outputs become the inputs of the next block.
    """
    observer.block(block.index, blocks, block.name, step)
    if recording is None:
        return Weightless(device)
    return gathered(block, recording, needs, device, observer, advance, team)


class Weightless(dict[str, Statistics]):
    """Empty statistics for every site: reading one says that this run had no text."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __missing__(self, site: str) -> Statistics:
        return Statistics((), 0, self.device)
