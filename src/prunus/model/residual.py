"""The residual stream: every tensor with an axis over its channels, so that one order fits all.

Embeddings, norms, the layers that read and write the stream, the head: reordered together, all by
the same order, they compute the same. Inside of a block the data flow says which they are; outside
the size of an axis does. Whether that was all, ``Channels.of`` tries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

from .blocks import Block
from .experts import Expert, one_by_one
from .replay import Trace
from .roles import cut_forward, reached
from .weights import Axes, Weights


@dataclass(frozen=True, eq=False)
class Residual:
    """Parameters by name, each with its axis over the stream's channels; tied ones once."""

    axes: Axes
    channels: int

    @classmethod
    def of(cls, weights: Weights, blocks: Sequence[Block], traced: Trace) -> Residual:
        """Find the parameters."""
        channels = traced.inputs[0].shape[-1]
        inside = {id(module) for block in blocks for module in block.module.modules()}
        names = {id(p): name for name, p in weights.model.named_parameters()}
        axes: dict[tuple[str, int], None] = {}
        for module in weights.model.modules():
            if id(module) not in inside:
                for parameter, axis in _outside(module, channels):
                    axes[names[id(parameter)], axis] = None
        for block in blocks:
            with weights.at_hand(block.name):
                within = {id(p): f"{block.name}.{n}" for n, p in block.module.named_parameters()}
                for parameter, axis in _inside(block, traced, channels):
                    axes[within[id(parameter)], axis] = None
        return cls(tuple(axes), channels)


def _outside(module: nn.Module, channels: int) -> Iterator[tuple[nn.Parameter, int]]:
    """Find embeddings, projections into and out of the stream, and norms."""
    for name, parameter in module.named_parameters(recurse=False):
        shape = parameter.shape
        if isinstance(module, nn.Linear):
            reads, writes = module.in_features == channels, module.out_features == channels
            if name == "weight" and reads:  # that a projection outside is square, nobody does
                yield parameter, 1
            elif writes and not reads:
                yield parameter, 0
        elif isinstance(module, nn.Embedding):
            if shape[1] == channels:
                yield parameter, 1
        elif shape == (channels,):
            yield parameter, 0


def _inside(block: Block, traced: Trace, channels: int) -> Iterator[tuple[nn.Parameter, int]]:
    """Find readers by columns, writers by rows and biases, routers, norms on the stream."""
    held = set()
    for layer in block.layers:
        module, first = layer.module, 0
        if isinstance(module, Expert):
            weight, bias, first = module.stack.tensor, module.stack.bias, 1
        else:
            weight, bias = module.weight, getattr(module, "bias", None)  # type: ignore[assignment]
        held |= {id(weight), id(bias)}
        if layer.site not in block.interior:
            yield weight, first + (0 if layer.transposed else 1)
        if layer.feeds is None:
            yield weight, first + (1 if layer.transposed else 0)
            if bias is not None:
                yield bias, first
    for parameter in block.module.parameters():
        if parameter.ndim == 2 and parameter.shape[1] == channels and id(parameter) not in held:
            yield parameter, 1
    yield from ((vector, 0) for vector in _vectors(block, traced, channels))


def _vectors(block: Block, traced: Trace, channels: int) -> list[nn.Parameter]:
    """Find weights of norms on the stream; norms of queries or keys do not count."""
    linears = {layer.name: layer.module for layer in block.layers}
    owners = {
        module: [p for p in module.parameters(recurse=False) if p.shape == (channels,)]
        for module in block.module.modules()
        if module not in linears.values()
    }
    read: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        read[module] = args[0]

    with ExitStack() as stack:
        for module, vectors in owners.items():
            if vectors and module is not block.module:
                stack.callback(module.register_forward_pre_hook(note).remove)
        by_hand = [layer.name for layer in block.layers if layer.by_hand]
        call, hidden = traced.calls[block.index], traced.inputs[block.index]
        stack.enter_context(one_by_one(block.weights.model))
        hidden, _, _, outputs = cut_forward(block.module, linears, call, hidden, by_hand=by_hand)
    writers = [x.name for x in block.layers if x.feeds is None and x.name in outputs]
    found = list(owners.get(block.module, ()))
    for module, activation in read.items():
        if any(reached(activation, [hidden, *(outputs[name] for name in writers)])):
            found += owners[module]
    return found
