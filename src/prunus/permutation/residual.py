"""The residual stream: every tensor with an axis over its channels, so that one order fits all.

Embeddings, norms, the layers that read and write the stream, the head: reordered together, all by
the same order, they compute the same. Inside of a block the data flow says which they are; outside
the size of an axis does. Whether that was all, ``Channels.rehearse`` tries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

from ..blocks import Block
from ..probe import cut_forward, reached
from ..replay import Trace


@dataclass(frozen=True, eq=False)
class Residual:
    """Tensors, each with the axis that its channels lie on; tied ones once."""

    axes: tuple[tuple[Tensor, int], ...]
    channels: int

    @classmethod
    def of(cls, model: nn.Module, blocks: Sequence[Block], traced: Trace) -> Residual:
        """Find them."""
        channels = traced.inputs[0].shape[-1]
        found: dict[tuple[int, int], tuple[Tensor, int]] = {}
        inside = {id(module) for block in blocks for module in block.module.modules()}
        for module in model.modules():
            if id(module) not in inside:
                for tensor, axis in _outside(module, channels):
                    found[tensor.data_ptr(), axis] = tensor, axis
        for block in blocks:
            for tensor, axis in _inside(block, traced, channels):
                found[tensor.data_ptr(), axis] = tensor, axis
        return cls(tuple(found.values()), channels)

    def fold(self, order_I: Tensor) -> None:
        """Reorder all of them in place: channel ``order_I[p]`` comes to position p."""
        for tensor, axis in self.axes:
            tensor.copy_(tensor.index_select(axis, order_I.to(tensor.device)))


def _outside(module: nn.Module, channels: int) -> Iterator[tuple[Tensor, int]]:
    """Embeddings, projections into and out of the stream, norms."""
    for parameter in module.parameters(recurse=False):
        tensor = parameter.detach()
        if tensor.ndim == 1 and len(tensor) == channels:
            yield tensor, 0
        elif isinstance(module, nn.Embedding) and tensor.shape[1] == channels:
            yield tensor, 1
        elif isinstance(module, nn.Linear) and tensor.ndim == 2:
            if tensor.shape[1] == channels:  # a reader; that a writer is square, nobody does
                yield tensor, 1
            elif tensor.shape[0] == channels:
                yield tensor, 0


def _inside(block: Block, traced: Trace, channels: int) -> Iterator[tuple[Tensor, int]]:
    """Readers by their columns, writers by their rows and biases, norms on the stream."""
    for layer in block.layers:
        weight = layer.module.weight.detach()  # type: ignore[operator]
        if layer.site not in block.interior:
            yield weight, 0 if layer.transposed else 1
        if layer.feeds is None:
            yield weight, 1 if layer.transposed else 0
            if layer.bias_O is not None:
                yield layer.bias_O, 0
    yield from ((vector, 0) for vector in _vectors(block, traced, channels))


def _vectors(block: Block, traced: Trace, channels: int) -> list[Tensor]:
    """Weights of norms whose input is the stream or goes to it; not of those on queries or keys."""
    linears = {layer.name: layer.module for layer in block.layers}
    owners = {
        module: [p.detach() for p in module.parameters(recurse=False) if p.shape == (channels,)]
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
        hidden, _, _, outputs = cut_forward(
            block.module, linears, traced.calls[block.index], traced.inputs[block.index]
        )
    writers = [outputs[layer.name] for layer in block.layers if layer.feeds is None]
    found = list(owners.get(block.module, ()))
    for module, activation in read.items():
        if any(reached(activation, [hidden, *writers])):
            found += owners[module]
    return found
