"""Block reconstruction on its way through the blocks, beside the loop.

The loop calls it three times for every block: while the block is dense (``aim``), before its layers
are pruned (``look``), and when they all are, to learn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..base.errors import NumericalError, UnsupportedModelError
from ..base.team import ALONE, Team
from ..maths.contracts import Plan
from ..maths.orders.orders import Orders
from ..maths.reconstruction import Reconstructed, Reconstruction, State, state_of, tensors_of
from ..maths.stats import Statistics, TokenSample
from ..model.blocks import Block, Layer
from ..model.replay import Hidden, Recording
from ..report.layer import LayerReport
from ..storage.journal import Journal
from .observer import Observer
from .unit import Unit, replaced
from .walk import align, empty, likeness

SAVE = 60.0  # seconds between two states on disk, at least
RARELY = 20  # times the seconds that one takes to be written, at least
RECONSTRUCTED = "reconstructed"  # in the journal: what the report says of a block


@dataclass(frozen=True)
class Part:
    """A part of a block that learns together.

    Attributes:
        name: for the report: ``block``, ``attention`` or ``mlp``.
        layers: that learn.
        vectors: names of other parameters that learn: biases, weights of norms.
        silent: layers that put out 0 meanwhile, so that the block puts out what comes before them.
    """

    name: str
    layers: list[Layer]
    vectors: list[str]
    silent: list[Layer]

    @property
    def fixed(self) -> dict[str, Tensor]:
        """Weights that silence layers."""
        return {layer.name: torch.zeros_like(layer.weight_OI) for layer in self.silent}


@dataclass
class Reconstructor:
    """New values for the kept weights, block after block.

    Attributes:
        how: the reconstruction.
        recording: the pruned stream, which the loop advances.
        reference: the dense stream, at the next block; None: targets are what the dense block makes
            of the pruned stream.
        blocks: how many there are.
        device: where they are.
        observer: told of every step.
        journal: keeps the state of a descent that may be interrupted.
        team: the processes that learn together, each with its own samples.
        curves: of the blocks so far, for the report.
    """

    how: Reconstruction
    recording: Recording
    reference: Recording | None
    blocks: int
    device: torch.device
    observer: Observer
    journal: Journal | None = None
    team: Team = ALONE
    curves: list[dict[str, Any]] = field(default_factory=list)
    _targets: dict[str, Hidden] = field(default_factory=dict)
    _dense: dict[str, tuple[TokenSample | None, Tensor]] = field(default_factory=dict)

    def aim(self, block: Block, plan: Plan, idle: bool) -> None:
        """Note what the parts of the block should put out; it is at hand and dense.

        Not if it is ``idle``: done already, or not to be pruned.
        """
        stream = self.recording if self.reference is None else self.reference
        self._targets, self._dense = {}, {}
        for part in [] if idle else parts(block, plan, self.how):
            if part.silent or self.reference is None:
                ahead = stream.copy()
                ahead.advance(block.index, replaced(block, part.fixed), self.device)
                self._targets[part.name] = ahead.hidden
        if self.reference is not None:
            self.reference.advance(block.index, block.module, self.device)

    def look(self, layers: Sequence[Layer], stats: Mapping[str, Statistics]) -> None:
        """Note dense weights and some of what they read, both in the order of the report."""
        for layer in layers:
            here = stats[layer.site]
            sample = here[TokenSample] if TokenSample in here else None
            self._dense[layer.name] = sample, layer.weight_OI.clone()

    def __call__(
        self, block: Block, plan: Plan, reports: Sequence[LayerReport], orders: Orders
    ) -> tuple[list[LayerReport], dict[str, Any]]:
        """Learn the weights of the block, whose layers are pruned.

        Returns:
            The layers' reports of the new weights, and what the journal should note.
        """
        curves = []
        for part in parts(block, plan, self.how):
            self.observer.block(block.index, self.blocks, block.name, "reconstruct")
            begun = time.perf_counter()
            learned = self._learned(block, part)
            _write(block, part, learned)
            align(block, self.team)
            curves.append(self._curve(block, part, learned, time.perf_counter() - begun))
        self.curves += curves
        layers = {layer.name: layer for layer in block.layers}
        reports = [self._reported(layers[x.name], x, orders) for x in reports]
        self._targets, self._dense = {}, {}
        return reports, {RECONSTRUCTED: curves}

    def _learned(self, block: Block, part: Part) -> Reconstructed:
        if part.name in self._targets:
            targets = self._targets[part.name]
        else:
            assert self.reference is not None
            targets = self.reference.hidden
        weights = {layer.name: layer.weight_OI for layer in part.layers}
        own = dict(block.module.named_parameters(prefix=block.name))
        weights |= {name: own[name].detach() for name in part.vectors}
        learned = self.how.descend(
            weights,
            Unit([block], self.recording, targets, self.device, part.fixed),
            groups=self.recording.groups,
            begun=self._begun(block, part),
            keep=_Saving(self.journal, block.index, part),
            stepped=self.observer.sample,
            team=self.team,
        )
        if not all(map(math.isfinite, [learned.unit, *learned.losses, *learned.held])):
            raise NumericalError(
                f"{block.name}: the loss became NaN or inf while the block was reconstructed. Use "
                "--dtype float32, or a lower --set reconstruct.rate."
            )
        return learned

    def _begun(self, block: Block, part: Part) -> State | None:
        """Return where an earlier run was interrupted, in every process."""
        found: dict[str, Tensor] | None = None
        with self.team.agreed():
            if self.journal is not None:
                found = self.journal.descent(block.index, part.name)
        like = self.team.told(None if found is None else likeness(found))
        if like is None:
            return None
        tensors = {name: empty(*like[name]) for name in like} if found is None else found
        for name in like:
            self.team.broadcast_(tensors[name])
        return state_of({name: x.to(self.device) for name, x in tensors.items()})

    def _curve(
        self, block: Block, part: Part, learned: Reconstructed, seconds: float
    ) -> dict[str, Any]:
        return {
            "block": block.index,
            "part": part.name,
            "steps": len(learned.losses),
            "loss": learned.means,
            "held": learned.held,
            "vectors": part.vectors,
            "seconds": seconds,
        }

    def _reported(self, layer: Layer, report: LayerReport, orders: Orders) -> LayerReport:
        """Return what the report says of the new weight."""
        sample, dense_OI = self._dense[layer.name]
        new_OI = layer.weight_OI
        sparsity = int((new_OI == 0).sum()) / new_OI.numel()
        if layer.site in orders.gathered:
            new_OI = new_OI[:, orders.gathered[layer.site].to(new_OI.device)]
        return replace(
            report,
            sparsity=sparsity,
            relative_output_error=None if sample is None else sample.error(dense_OI, new_OI),
            updated=report.updated or bool((new_OI != dense_OI)[new_OI != 0].any()),
        )


@dataclass
class _Saving:
    """Keeps the state of a descent in the journal, from time to time.

    And at the end, if another part of the block comes behind it.
    """

    journal: Journal | None
    block: int
    part: Part
    due: float = field(default_factory=lambda: time.monotonic() + SAVE)

    def __call__(self, state: State, finished: bool) -> None:
        begun = time.monotonic()
        if self.journal is None or not (self.part.silent if finished else begun >= self.due):
            return
        self.journal.keep_descent(self.block, self.part.name, tensors_of(state))
        now = time.monotonic()
        self.due = now + max(SAVE, RARELY * (now - begun))


def _write(block: Block, part: Part, learned: Reconstructed) -> None:
    """Store what was learned."""
    for layer in part.layers:
        layer.write(learned.weights[layer.name])
    own = dict(block.module.named_parameters(prefix=block.name))
    for name in part.vectors:
        own[name].copy_(learned.weights[name])


def parts(block: Block, plan: Plan, how: Reconstruction) -> list[Part]:
    """Return what of the block learns together, in order.

    Raises:
        UnsupportedModelError: halves are asked for, and the block has none.
    """
    layers = block.planned(plan)
    if not layers:
        return []
    vectors = _vectors(block) if how.norms else []
    if how.span == "block":
        return [Part("block", layers, vectors, [])]
    last = [x for x in block.layers if x.kind == "mlp" and x.feeds is None]
    if not last or all(x.kind == "mlp" for x in block.layers):
        raise UnsupportedModelError(
            f"{block.name} has no attention with an MLP behind it, so it has no halves to "
            "reconstruct apart. Give --reconstruct block."
        )
    attention, mlp = ([x for x in layers if x.kind == kind] for kind in ("attention", "mlp"))
    halves = [Part("attention", attention, [], last), Part("mlp", mlp, vectors, [])]
    return [half for half in halves if half.layers]


def _vectors(block: Block) -> list[str]:
    """Name the block's biases and weights of norms; routers stay as they are."""
    routers = tuple(f"{name}." for name in block.routers)
    return [
        name
        for name, x in block.module.named_parameters(prefix=block.name)
        if x.ndim == 1 and x.is_floating_point() and not name.startswith(routers)
    ]
