"""Orders of a model's channels, put into place after a proof that they may change places.

The residual stream's order comes first, for the whole model. Those of a block's own channels come
when the block is pruned, from the statistics that it is pruned by.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import CheckpointError, UnsupportedModelError
from ..maths.contracts import Plan
from ..maths.orders.ordering import Ordering, together
from ..maths.orders.orders import Orders
from ..maths.orders.retained import Retained
from ..maths.stats import Statistics
from .blocks import Block, Layer, find_beside
from .interior import Interior, find_interiors
from .nonzero import Moves, filled, without_zeros
from .replay import Trace, around, hidden_of, with_hidden
from .residual import Residual
from .samples import Sample
from .weights import Weights

Stats = Mapping[str, Statistics]
Kind = Literal["fold", "gather", "stored"]
Notes = dict[str, dict[str, Any]]


@dataclass
class Channels:
    """The channels of a model that may change places, and their current orders.

    Attributes:
        weights: of the model.
        residual: the stream between the blocks; None where it shall stay as it is.
        interiors: by site, the inputs of o and down. Other sites inside of a block stay stored.
        orders: what was done.
    """

    weights: Weights
    residual: Residual | None
    interiors: dict[str, Interior]
    orders: Orders = field(default_factory=Orders)

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        weights: Weights,
        blocks: Sequence[Block],
        traced: Trace,
        sample: Tensor | Sample,
        fold_residual: bool,
    ) -> Channels:
        """Find the channels, and prove with a random order that they may change places.

        Args:
            weights: of a model in eval mode.
            blocks: of it.
            traced: a forward of it on ``sample``, or the first tokens of it.
            sample: token ids (1, T), or a processed sample.
            fold_residual: whether the residual stream is to be reordered.

        Raises:
            UnsupportedModelError: with the first block whose output a random order changes.
        """
        if fold_residual:
            _check_alone(weights.model)
        interiors: dict[str, Interior] = {}
        for block in blocks:
            if not fold_residual and any(layer.expert is not None for layer in block.layers):
                raise UnsupportedModelError(
                    "--permutation gather puts an index before each layer, which is impossible "
                    f"for experts that are parts of one tensor, as in {block.name}. Use "
                    "--permutation "
                    "fold, free or none."
                )
            with block.at_hand():
                call, hidden = traced.calls[block.index], traced.inputs[block.index]
                interiors |= find_interiors(block, call, hidden)
        residual = Residual.of(weights, blocks, traced) if fold_residual else None
        channels = cls(weights, residual, interiors)
        channels._rehearse(blocks, traced, sample)
        return channels

    @torch.no_grad()
    def fold_residual(self, order_I: Tensor) -> None:
        """Put the residual stream of the whole model into this order."""
        if self.residual is None or len(order_I) != self.residual.channels:
            raise _does_not_fit("the residual stream")
        self.weights.fold(self.residual.axes, order_I)
        self.orders.residual = order_I.cpu()

    def check(self, orders: Orders) -> None:
        """Raise CheckpointError if a folded order fits no site here, or has another width."""
        for site, order_I in orders.folded.items():
            interior = self.interiors.get(site)
            if interior is None or len(order_I) != interior.reader.shape[1]:
                raise _does_not_fit(site)

    @torch.no_grad()
    def apply(self, orders: Orders) -> None:
        """Fold everything that ``orders`` has folded into a model in memory."""
        self.check(orders)
        if orders.residual is not None:
            self.fold_residual(orders.residual)
        for site, order_I in orders.folded.items():
            self.interiors[site].fold(order_I)
            self.orders.folded[site] = order_I

    @contextmanager
    def arranged(
        self, block: Block, stats: Stats, plan: Plan, ordering: Ordering
    ) -> Iterator[tuple[Stats, Notes]]:
        """Yield the planned layers' inputs in their orders: statistics, and notes per layer.

        Folded orders stay in the weights. Gathered ones are taken back at the end, so that the
        weights compute the same without an index.
        """
        arranged = {site: stats[site] for site in block.sites}
        notes: Notes = {}
        gathered: dict[str, Tensor] = {}
        readers: dict[str, list[Layer]] = {}
        for layer in block.planned(plan):
            readers.setdefault(layer.site, []).append(layer)
        try:
            for site, layers in readers.items():
                scores = [ordering.score(layer.weight_OI, stats[site]) for layer in layers]
                kind, order_I = self._order(block, site, scores, ordering)
                if kind == "gather":
                    gathered[site] = order_I
                    _reorder(layers, order_I)
                if site in self.interiors or kind == "gather":
                    arranged[site] = stats[site].reordered(order_I)
                elif kind == "fold":  # the whole stream was folded before the scores were made
                    scores = [score_OI[:, order_I.argsort()] for score_OI in scores]
                for layer, score_OI in zip(layers, scores, strict=True):
                    closed = Retained.of(score_OI, ordering.pattern, order_I).gap_closed
                    notes[layer.name] = {"order": kind, "site": site, "score_gap_closed": closed}
            yield arranged, notes
        finally:
            for site, order_I in gathered.items():
                self.orders.gathered[site] = order_I.cpu()
                _reorder(readers[site], order_I.argsort())

    def _order(
        self, block: Block, site: str, scores: list[Tensor], ordering: Ordering
    ) -> tuple[Kind, Tensor]:
        """Find the order of a site's channels; it is folded where that costs nothing."""
        stored_I = torch.arange(scores[0].shape[1], device=scores[0].device)
        interior = self.interiors.get(site)
        if interior is not None and interior.fits(ordering.pattern):
            order_I = interior.search(scores[0], ordering.pattern, ordering.permutation)
            interior.fold(order_I)
            self.orders.folded[site] = order_I.cpu()
            return "fold", order_I
        if site in block.interior:
            return "stored", stored_I
        if ordering.realisation == "fold":
            order = self.orders.residual
            return "fold", stored_I if order is None else order.to(stored_I.device)
        score_OI, pattern = together(scores), ordering.pattern
        return "gather", ordering.permutation(score_OI, pattern, pattern.sparsity)

    def _rehearse(self, blocks: Sequence[Block], traced: Trace, sample: Tensor | Sample) -> None:
        """Fold random orders, compare the outputs of every block and the model, and fold back.

        Random numbers stand for zeros meanwhile: a wrong order of those would not show.
        """
        generator = torch.Generator().manual_seed(0)
        width = traced.inputs[0].shape[-1]
        expected = [self._tried(block, traced) for block in blocks]
        ends, order_I = self._ends(blocks, traced, sample), torch.arange(width)
        if self.residual is not None:
            order_I = torch.randperm(width, generator=generator)
            self.fold_residual(order_I)
        try:
            for block, output in zip(blocks, expected, strict=True):
                found = self._tried(block, traced, order_I, generator)
                hidden = _hidden(block, traced)
                _check_block(block.name, hidden, output, found[..., order_I.argsort()])
            if self.residual is not None:
                _check_ends(self._ends(blocks, traced, sample, order_I), ends, order_I)
        finally:
            if self.residual is not None:
                self.fold_residual(order_I.argsort())
            self.orders = Orders()

    def _ends(
        self,
        blocks: Sequence[Block],
        traced: Trace,
        sample: Tensor | Sample,
        order_I: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what lies before and behind the blocks, in the model's own dtype."""
        model, outputs = self.weights.model, traced.outputs
        if order_I is not None:
            outputs = [with_hidden(x, hidden_of(x)[..., order_I]) for x in outputs]
        modules = [block.module for block in blocks]
        if isinstance(sample, Tensor):
            sample = sample[:1, : traced.inputs[0].shape[1]]
        within = [x for module in modules for x in module.modules()]
        moves = self._moves("", order_I)
        with without_zeros(model, but=within, vectors_only=True, moves=moves):
            return around(model, modules, sample, outputs)

    def _tried(
        self,
        block: Block,
        traced: Trace,
        order_I: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return a block's output in float32, the stream in this order, random interiors."""
        call, hidden = traced.calls[block.index], _hidden(block, traced)
        moves = self._moves(f"{block.name}.", order_I)
        with ExitStack() as stack:
            module = stack.enter_context(block.at_hand())
            stack.enter_context(without_zeros(module, moves=moves))
            if generator is not None:
                stack.enter_context(self._shuffled(block, generator))
            if any(p.dtype != torch.float32 for p in module.parameters()):
                module, call = copy.deepcopy(module).float(), call.float()
            return call(module, hidden if order_I is None else hidden[..., order_I])

    def _moves(self, prefix: str, order_I: Tensor | None) -> Moves:
        """Return the axes that are folded, by the names of parameters behind the prefix."""
        moves: dict[str, list[tuple[int, Tensor]]] = {}
        if self.residual is not None and order_I is not None:
            for name, axis in self.residual.axes:
                if name.startswith(prefix):
                    moves.setdefault(name.removeprefix(prefix), []).append((axis, order_I))
        return moves

    @contextmanager
    def _shuffled(self, block: Block, generator: torch.Generator) -> Iterator[None]:
        """Give the block, which is at hand, random orders of its interiors."""
        interiors = [self.interiors[site] for site in block.sites if site in self.interiors]
        orders = [interior.shuffled(generator) for interior in interiors]
        for interior, order_I in zip(interiors, orders, strict=True):
            interior.fold(order_I)
        try:
            yield
        finally:
            for interior, order_I in zip(interiors, orders, strict=True):
                interior.fold(order_I.argsort())


def _hidden(block: Block, traced: Trace) -> Tensor:
    """Return the block's input as float32 and without zeros."""
    return filled(traced.inputs[block.index].float())


def _check_ends(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], order_I: Tensor
) -> None:
    """Compare the first block's input and the logits, within the model's own dtype."""
    first, logits = expected
    tolerance = 1e-3 if first.dtype in (torch.float32, torch.float64) else 0.1
    for name, folded, plain in (
        ("the embedding", found[0], first[..., order_I]),
        ("the model as a whole", found[1], logits),
    ):
        off = float((folded - plain).abs().max() / plain.abs().max().clamp_min(1e-12))
        if not off <= tolerance:
            raise _cannot_fold(name, f"by {off:.2g} of the largest number")


def _check_alone(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError if other parts of the model write to the residual stream."""
    beside = find_beside(model)
    if beside:
        raise UnsupportedModelError(
            f"--permutation fold would reorder the residual stream, but {beside[-1]} also writes "
            "to it and must stay as it is. Use --permutation gather, free or none."
        )


def _does_not_fit(site: str) -> CheckpointError:
    return CheckpointError(f"An order of channels for {site} does not fit this model.")


def _reorder(layers: Sequence[Layer], order_I: Tensor) -> None:
    for layer in layers:
        layer.write(layer.weight_OI[:, order_I])


def _check_block(name: str, hidden: Tensor, expected: Tensor, found: Tensor) -> None:
    """Compare channel by channel, relative to what the block adds to the stream.

    Not against the stream, whose largest channels would hide an error in all others.
    """
    added_I = (expected - hidden).flatten(0, -2).abs().amax(0)
    noise_I = 1e-5 * expected.flatten(0, -2).abs().amax(0)  # of float32, in long sums
    allowed_I = 1e-3 * (added_I + added_I.median()) + noise_I
    off_I = (found - expected).flatten(0, -2).abs().amax(0)
    if not bool((off_I <= allowed_I).all()):
        off = float((off_I / (added_I + added_I.median()).clamp_min(1e-12)).max())
        raise _cannot_fold(name, f"by {off:.2g} of what it adds to a channel")


def _cannot_fold(name: str, off: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "No order of channels can be folded into this architecture: with its channels in another "
        f"order {name} puts out something else ({off}). Use --permutation free, or none."
    )
