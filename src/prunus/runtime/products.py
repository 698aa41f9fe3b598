"""Products with packed weights, as the torch operator ``prunus::packed_linear``.

One to sixteen rows are multiplied from the packed bytes. More are multiplied by the platform's own
GEMM with rows that are unpacked a few at a time, so that they stay in cache. Without kernels, and
on other devices, the weight is unpacked as a whole for every product.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..base.errors import CheckpointWarning, InputError
from ..maths.packed import ROWS, Packed, Values
from .kernels.library import DTYPES, MOST, Library, Matrix, library

TILE = 2**20  # weights that are unpacked at once for many rows

_OPERATORS = torch.library.Library("prunus", "DEF")
_OPERATORS.define(
    "packed_linear(Tensor x, Tensor masks, Tensor values, Tensor offsets, Tensor? levels, "
    "Tensor? scales, Tensor? bias, str kind, int group, int outputs, int inputs) -> Tensor"
)


def multiply(
    x: Tensor, matrix: Matrix, bias_O: Tensor | None, dense: Callable[[], Tensor]
) -> Tensor:
    """Return ``x Wᵀ + b`` for any leading dimensions of x.

    Args:
        x: (…, I), of any floating dtype.
        matrix: pointers to W (O, I), which are followed on the CPU alone.
        bias_O: b, or None.
        dense: unpacks W.
    """
    kernels = library()
    if kernels is None or x.device.type != "cpu" or x.dtype not in DTYPES:
        if kernels is None and x.device.type == "cpu":
            _say_once()
        return unpacked(x, dense(), bias_O)
    if x.shape[-1] != matrix.inputs:
        raise InputError(f"This layer takes {matrix.inputs} inputs; got {tuple(x.shape)}.")
    x_TI = x.reshape(-1, matrix.inputs).contiguous()
    if bias_O is not None and (bias_O.dtype != x.dtype or not bias_O.is_contiguous()):
        bias_O = bias_O.to(x.dtype).contiguous()
    few = 0 < len(x_TI) <= MOST
    product = kernels.multiply if few else partial(_by_tiles, kernels)
    return product(matrix, x_TI, bias_O).view(*x.shape[:-1], matrix.outputs)


def unpacked(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return ``x Wᵀ + b`` with a dense weight, in the dtype of x."""
    return linear(x, weight_OI.to(x.dtype), bias_O if bias_O is None else bias_O.to(x.dtype))


def _by_tiles(kernels: Library, matrix: Matrix, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Multiply many rows: a tile of weights is unpacked, multiplied, and overwritten by the next.

    In float32 where the processor has no half-precision GEMM to speak of.
    """
    outputs, inputs = matrix.outputs, matrix.inputs
    wide_TI = x_TI if _has_gemm(x_TI.dtype) else x_TI.float()
    rows = max(TILE // inputs // ROWS, 4) * ROWS
    tile_RI = wide_TI.new_empty(min(rows, outputs), inputs)
    out_TO = wide_TI.new_empty(len(x_TI), outputs)
    for start in range(0, outputs, rows):
        count = min(rows, outputs - start)
        kernels.expand(matrix, start // ROWS, -(-count // ROWS), tile_RI)
        torch.mm(wide_TI, tile_RI[:count].T, out=out_TO[:, start : start + count])
    if bias_O is not None:
        out_TO += bias_O
    return out_TO.to(x_TI.dtype)


@cache
def _has_gemm(dtype: torch.dtype) -> bool:
    """Whether products of this dtype are faster than those of float32 on this processor."""
    if dtype == torch.bfloat16:  # torch has a fast one for AVX-512 alone
        return torch.backends.cpu.get_cpu_capability() == "AVX512"
    return dtype == torch.float32


@cache
def _say_once() -> None:
    warnings.warn(
        "prunus was installed without its kernels (no C compiler), or PRUNUS_KERNELS=none: packed "
        "layers are unpacked for every product, which is slow. Install a C compiler and run "
        "python -m prunus.runtime.kernels.build.",
        CheckpointWarning,
        stacklevel=2,
    )


@torch.library.impl(_OPERATORS, "packed_linear", "CompositeExplicitAutograd")
def _packed_linear(
    x: Tensor,
    masks: Tensor,
    values: Tensor,
    offsets: Tensor,
    levels: Tensor | None,
    scales: Tensor | None,
    bias: Tensor | None,
    kind: str,
    group: int,
    outputs: int,
    inputs: int,
) -> Tensor:
    packed = Packed(masks, values, offsets, levels, scales, Values(kind, group), (outputs, inputs))
    return multiply(x, Matrix.of(packed), bias, packed.dense)


@torch.library.register_fake("prunus::packed_linear")  # type: ignore[untyped-decorator]
def _shape_of(x: Tensor, *rest: object) -> Tensor:
    outputs = rest[8]
    assert isinstance(outputs, int | torch.SymInt)
    return x.new_empty(*x.shape[:-1], outputs)
