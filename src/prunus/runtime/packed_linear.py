"""A linear layer whose weight is packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..maths.packed import PARTS, PREFIX, Packed, Values, pack
from ..model.blocks import outputs_first
from .kernels.library import Matrix
from .products import multiply, unpacked


class PackedLinear(nn.Module):
    """``y = x Wᵀ + b`` with a packed W; it computes what an ``nn.Linear`` or Conv1D did.

    For inference: where a gradient is asked for, it is that of the unpacked weight, and none
    reaches W. Conversions of dtype (``model.half()``) change the bias alone.

    Args:
        packed: W (O, I).
        bias_O: b, or None.
        dtype: of the dense weight, which ``weight`` has.

    Attributes:
        in_features: I.
        out_features: O.
        values: what the kept weights are stored as.
        bias: (O,), or None.
    """

    packed_masks: Tensor
    packed_values: Tensor
    packed_offsets: Tensor
    packed_levels: Tensor | None
    packed_scales: Tensor | None
    _like: Tensor

    def __init__(self, packed: Packed, bias_O: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.values = packed.values
        for name in PARTS:
            self.register_buffer(PREFIX + name, packed.tensors.get(name))
        self.bias = None if bias_O is None else nn.Parameter(bias_O.detach(), requires_grad=False)
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)
        self._matrix: tuple[int, Matrix] | None = None

    @classmethod
    def of(cls, module: nn.Module, values: Values) -> PackedLinear:
        """Pack the nonzero weights of an ``nn.Linear`` or a Conv1D."""
        bias: Any = module.bias
        weight_OI = outputs_first(module).detach()
        return cls(pack(weight_OI, values), bias, weight_OI.dtype)

    @property
    def packed(self) -> Packed:
        """The packed weight."""
        return Packed(
            self.packed_masks,
            self.packed_values,
            self.packed_offsets,
            self.packed_levels,
            self.packed_scales,
            self.values,
            (self.out_features, self.in_features),
        )

    @property
    def weight(self) -> Tensor:
        """The dense weight (O, I), unpacked for each look; changing it changes nothing."""
        return self.packed.dense().to(self._like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product in the dtype of x."""
        if torch.is_grad_enabled() and x.requires_grad:
            return unpacked(x, self.packed.dense(), self.bias)
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return self._operator(x)
        return multiply(x, self._pointers(), self.bias, lambda: self.packed.dense())

    def _operator(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.prunus.packed_linear(
            x,
            self.packed_masks,
            self.packed_values,
            self.packed_offsets,
            self.packed_levels,
            self.packed_scales,
            self.bias,
            self.values.kind,
            self.values.group,
            self.out_features,
            self.in_features,
        )
        return product

    def _pointers(self) -> Matrix:
        """Return pointers to the tensors, as long as they lie where they did."""
        place = self.packed_values.data_ptr()
        if self._matrix is None or self._matrix[0] != place:
            self._matrix = place, Matrix.of(self.packed)
        return self._matrix[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        kept = {name: getattr(self, PREFIX + name) for name in PARTS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in kept.items():
            new = getattr(self, PREFIX + name)
            if old is not None and new.dtype != old.dtype:
                setattr(self, PREFIX + name, old.to(new.device))
        self._matrix = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matrix": None}  # pointers mean nothing in a copy

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bias={self.bias is not None}, {self.values}"
