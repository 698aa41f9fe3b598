"""Layers whose weight a block multiplies by hand, so that no hook on them would fire.

Mamba computes ``dt_proj.weight @ x``. While such a block is watched, that product goes through the
module after all: its hooks see the input, and may change the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class _Weight(Tensor):
    """A weight (O, I) whose product with (…, I, T) from the left is a call of its module."""

    module: nn.Module

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS and isinstance(args[0], cls):
            return _called(args[0].module, args[1])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@contextmanager
def called(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Products with the weights of these modules are calls of them."""
    own = [(module, module._parameters["weight"]) for module in modules]
    try:
        for module, weight in own:
            assert weight is not None
            stand_in = weight.detach().as_subclass(_Weight)
            stand_in.module = module
            module._parameters["weight"] = stand_in  # type: ignore[assignment]
        yield
    finally:
        for module, weight in own:
            module._parameters["weight"] = weight


def _called(module: nn.Module, inputs_IT: Tensor) -> Tensor:
    """The module's product with no bias, which the block adds by itself."""
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None
    plain = weight.as_subclass(Tensor)
    module._parameters["weight"], module._parameters["bias"] = plain, None  # type: ignore[assignment]
    try:
        output: Tensor = module(inputs_IT.transpose(-1, -2))
    finally:
        module._parameters["weight"], module._parameters["bias"] = weight, bias
    return output.transpose(-1, -2)
