"""Layers whose weight a block multiplies by hand, so that hooks on them would not run.

Mamba computes ``dt_proj.weight @ x``, a mixture of experts ``linear(x, gate_up_proj[expert])``.
While such a block is watched, a product with a view of a layer's weight goes through the layer
after all: its hooks see the input, and may change the output. A view is known by its place in
memory, whatever the code calls it, and by its strides, which also tell how it is turned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from .experts import Expert

PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm,
            Tensor.bmm)  # fmt: skip


class _Watch(TorchFunctionMode):
    """A mode that turns products with layers' weights into calls of the layers."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self._layers = {_place(_weight(module)): module for module in modules}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output: Tensor | None = None
        if func is linear:
            output = self._linear(*args, **kwargs)
        elif func in PRODUCTS and len(args) == 2 and not kwargs:
            left, right = args
            output = self._product(left, right, outputs_first=False)
            if output is None and right.ndim > 1:
                output = self._product(right.mT, left, outputs_first=True)
                output = None if output is None else output.mT
        return func(*args, **kwargs) if output is None else output

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        output = self._product(input, weight, outputs_first=True)
        return output if output is None or bias is None else output + bias

    def _product(self, inputs: Tensor, matrix: Tensor, outputs_first: bool) -> Tensor | None:
        """Return the layer's output (..., T, O) if the matrix is a layer's, or all experts'."""
        if matrix.ndim == 2:
            layer = self._layer(matrix, outputs_first)
            return None if layer is None or not inputs.numel() else _called(layer, inputs)
        if matrix.ndim != 3 or inputs.ndim != 3 or _place(matrix) not in self._layers:
            return None
        layers = [layer for m in matrix if (layer := self._layer(m, outputs_first))]
        if len(layers) < len(matrix):
            return None
        return torch.stack([_routed(*pair) for pair in zip(layers, inputs, strict=True)])

    def _layer(self, matrix: Tensor, outputs_first: bool) -> nn.Module | None:
        """Return the layer whose weight this is, if it is used as (O, I) or (I, O) like there."""
        layer = self._layers.get(_place(matrix))
        if layer is None:
            return None
        weight = _weight(layer)
        stored, turned = _layout(weight), _layout(weight.T)
        if _layout(matrix) not in (stored, turned):
            return None
        transposed = (_layout(matrix) == stored) != outputs_first
        if isinstance(layer, Expert) and layer.stack.transposed is None:
            layer.stack.transposed = transposed
        return layer if transposed == getattr(layer, "transposed", False) else None


@contextmanager
def called(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Treat products with the weights of these modules as calls of the modules."""
    modules = list(modules)
    if not modules:
        yield
        return
    with _Watch(modules):
        yield


def _called(module: nn.Module, inputs_TI: Tensor) -> Tensor:
    """Return the module's product without bias, which the block adds by itself."""
    bias = dict(module.named_parameters(recurse=False)).get("bias")
    if bias is None:
        return module(inputs_TI)  # type: ignore[no-any-return]
    module.register_parameter("bias", None)
    try:
        return module(inputs_TI)  # type: ignore[no-any-return]
    finally:
        module.register_parameter("bias", bias)


def _routed(module: nn.Module, inputs_TI: Tensor) -> Tensor:
    """Drop the zero rows that stand for other experts' tokens, if every expert is given all."""
    rows_T = inputs_TI.any(-1)
    weight = _weight(module)
    outputs = weight.shape[1 if getattr(module, "transposed", False) else 0]
    output_TO = inputs_TI.new_zeros(len(inputs_TI), outputs)
    if bool(rows_T.any()):
        output_TO[rows_T] = _called(module, inputs_TI[rows_T])
    return output_TO


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


def _layout(matrix: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(matrix.shape), matrix.stride()
