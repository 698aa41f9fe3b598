"""Block reconstruction on its way through the blocks, beside the loop.

The loop calls it for every unit of blocks that learn together: while they are dense (``aim``),
before the layers of each are pruned (``look``), when all of them are, to learn, and then for new
reports (``reported``).
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
    """What learns together: a unit of blocks, or a part of one.

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
    """New values for the kept weights, unit after unit.

    Attributes:
        how: the reconstruction.
        recording: the pruned stream, which the loop advances.
        reference: the dense stream, at the next unit; None: targets are what the dense blocks make
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
    _unit: Sequence[Block] = ()
    _begin: Recording | None = None
    _targets: dict[str, Hidden] = field(default_factory=dict)
    _dense: dict[str, tuple[TokenSample | None, Tensor]] = field(default_factory=dict)

    def aim(self, unit: Sequence[Block], plan: Plan, idle: bool) -> None:
        """Note what the parts of the unit should put out; it is at hand and dense.

        Not if it is ``idle``: done already, or not to be pruned.
        """
        stream = self.recording if self.reference is None else self.reference
        self._unit, self._targets, self._dense = unit, {}, {}
        for part in [] if idle else parts(unit, plan, self.how):
            if part.silent or self.reference is None:
                self._targets[part.name] = self._behind(stream.copy(), part.fixed)
        if self.reference is not None:
            self._behind(self.reference, {})
        self._begin = self.recording.copy() if len(unit) > 1 and not idle else None

    def _behind(self, stream: Recording, fixed: Mapping[str, Tensor]) -> Hidden:
        """Take a stream to the end of the unit; return what it is there."""
        for block in self._unit:
            stream.advance(block.index, replaced(block, fixed), self.device)
        return stream.hidden

    def look(self, layers: Sequence[Layer], stats: Mapping[str, Statistics]) -> None:
        """Note dense weights and some of what they read, both in the order of the report."""
        for layer in layers:
            here = stats[layer.site]
            sample = here[TokenSample] if TokenSample in here else None
            self._dense[layer.name] = sample, layer.weight_OI.clone()

    def __call__(self, plan: Plan) -> list[dict[str, Any]]:
        """Learn the weights of the unit, whose layers are pruned; return the curves."""
        last, curves = self._unit[-1], []
        for part in parts(self._unit, plan, self.how):
            self.observer.block(last.index, self.blocks, last.name, "reconstruct")
            begun = time.perf_counter()
            learned = self._learned(part)
            _write(self._unit, part, learned)
            for block in self._unit:
                align(block, self.team)
            curves.append(self._curve(part, learned, time.perf_counter() - begun))
        self.curves += curves
        if self._begin is not None:
            self._overtake(self._begin)
        self._targets, self._begin = {}, None
        return curves

    def _overtake(self, begin: Recording) -> None:
        """Take the pruned stream from the unit's beginning to its last block once more."""
        for block in self._unit[:-1]:
            begin.advance(block.index, block.module, self.device)
        for i in range(len(begin.hidden)):
            self.recording.hidden[i] = begin.hidden[i]
        self.recording.calls = begin.calls

    def _learned(self, part: Part) -> Reconstructed:
        last = self._unit[-1]
        if part.name in self._targets:
            targets = self._targets[part.name]
        else:
            assert self.reference is not None
            targets = self.reference.hidden
        weights = {layer.name: layer.weight_OI for layer in part.layers}
        own = _parameters(self._unit)
        weights |= {name: own[name].detach() for name in part.vectors}
        where = (self._unit, self._begin or self.recording, targets, self.device)
        learned = self.how.descend(
            weights,
            Unit(*where, part.fixed, self.how.precision),
            groups=self.recording.groups,
            begun=self._begun(last, part),
            keep=_Saving(self.journal, last.index, part),
            stepped=self.observer.sample,
            team=self.team,
        )
        if not all(map(math.isfinite, [learned.unit, *learned.losses, *learned.held])):
            raise NumericalError(
                f"{last.name}: the loss became NaN or inf while the block was reconstructed. Use "
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

    def _curve(self, part: Part, learned: Reconstructed, seconds: float) -> dict[str, Any]:
        return {
            "block": self._unit[-1].index,
            "blocks": [block.index for block in self._unit],
            "part": part.name,
            "steps": len(learned.losses),
            "loss": learned.means,
            "held": learned.held,
            "vectors": part.vectors,
            "seconds": seconds,
        }

    def reported(
        self, block: Block, reports: Sequence[LayerReport], orders: Orders
    ) -> list[LayerReport]:
        """Return what the layers' reports say of the weights that a block of the unit has now."""
        layers = {layer.name: layer for layer in block.layers}
        return [self._reported(layers[x.name], x, orders) for x in reports]

    def _reported(self, layer: Layer, report: LayerReport, orders: Orders) -> LayerReport:
        sample, dense_OI = self._dense.pop(layer.name)
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


def _write(unit: Sequence[Block], part: Part, learned: Reconstructed) -> None:
    """Store what was learned."""
    for layer in part.layers:
        layer.write(learned.weights[layer.name])
    own = _parameters(unit)
    for name in part.vectors:
        own[name].copy_(learned.weights[name])


def _parameters(unit: Sequence[Block]) -> dict[str, Tensor]:
    """Return the parameters of blocks by their full names."""
    return {
        name: x for block in unit for name, x in block.module.named_parameters(prefix=block.name)
    }


def parts(unit: Sequence[Block], plan: Plan, how: Reconstruction) -> list[Part]:
    """Return what of a unit of blocks learns together, in order.

    Raises:
        UnsupportedModelError: halves are asked for, and the block has none.
    """
    touched = [block for block in unit if block.planned(plan)]
    layers = [layer for block in touched for layer in block.planned(plan)]
    if not layers:
        return []
    vectors = [name for block in touched for name in _vectors(block)] if how.norms else []
    if how.span == "block":
        return [Part("block", layers, vectors, [])]
    (block,) = unit
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
