"""The ways to multiply one layer that ``layers.py`` compares, several copies of each.

Copies are multiplied one after the other, so that a weight has left the caches before it is read
again, as in a model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from prunus.judge.comparators import CsrLinear, to_int8
from prunus.judge.traffic import held_bytes
from prunus.maths.packed import FLOATS, Values, pack
from prunus.runtime.packed_linear import PackedLinear

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
GROUP = 128  # inputs that share a scale of torch's 4-bit weights
ROOM = 0.6  # of the free memory
WRONG = 0.03  # relative error of a product from which on it is another product


@dataclass(frozen=True)
class Way:
    """One way to multiply, and the copies of its layer.

    Attributes:
        layers: the copies.
        dtype: of the inputs.
        dense: whether it holds as many bits a weight as the packed one does, and every weight:
            what the packed layer is compared with.
    """

    layers: list[nn.Module]
    dtype: torch.dtype
    dense: bool = False


class Int8Weights(nn.Module):
    """torch's product with int8 weights, a scale per row; activations stay as they are."""

    def __init__(self, weight_OI: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        scale_O = weight_OI.abs().amax(1) / 127
        self.register_buffer("levels_OI", (weight_OI / scale_O[:, None]).round().to(torch.int8))
        self.register_buffer("scale_O", scale_O.to(dtype))

    def forward(self, inputs_TI: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(inputs_TI, self.levels_OI, self.scale_O)


class Int4Weights(nn.Module):
    """torch's product with 4-bit weights, a scale and an offset per group of 128 inputs."""

    def __init__(self, weight_OI: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self._group = min(GROUP, weight_OI.shape[1])
        groups_OGI = weight_OI.unflatten(1, (-1, self._group))
        least_OG, most_OG = groups_OGI.amin(2), groups_OGI.amax(2)
        scale_OG = (most_OG - least_OG) / 15
        codes_OGI = ((groups_OGI - least_OG[..., None]) / scale_OG[..., None]).round().clamp(0, 15)
        codes_OI = codes_OGI.int().flatten(1)
        self.register_buffer("codes", torch._convert_weight_to_int4pack_for_cpu(codes_OI, 2))
        pairs_GO2 = torch.stack([scale_OG, least_OG + 8 * scale_OG], -1).transpose(0, 1)
        self.register_buffer("scales", pairs_GO2.contiguous().to(dtype))

    def forward(self, inputs_TI: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(inputs_TI, self.codes, self._group, self.scales)


def ways(
    weight_OI: Tensor, dense_OI: Tensor, kind: str, dtype: torch.dtype, most: int
) -> dict[str, Way]:
    """Return all ways for one kind of values, with as many copies as fit, at most ``most``.

    Args:
        weight_OI: float32, with zeros.
        dense_OI: the same without.
        kind: of the values.
        dtype: of the inputs.
        most: copies.
    """
    makers = _makers(weight_OI, dense_OI, kind, dtype)
    made: dict[str, nn.Module] = {}
    for name, maker in makers.items():
        try:
            layer = maker.make()
            layer(torch.zeros(1, weight_OI.shape[1], dtype=maker.dtype))
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            if name == "packed":
                raise
            print(f"{kind}: no {name} here: {str(error).splitlines()[0][:100]}")
            continue
        made[name] = layer
    check(made["packed"], weight_OI, kind, dtype)
    size = sum(held_bytes(layer) for layer in made.values())
    more = max(2, min(most, int(ROOM * psutil.virtual_memory().available / size))) - 1
    return {
        name: Way(
            [layer, *(_again(layer, makers[name].make) for _ in range(more))],
            makers[name].dtype,
            makers[name].dense,
        )
        for name, layer in made.items()
    }


def _again(layer: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """Return another copy, made anew where torch cannot copy it (CSR)."""
    return make() if isinstance(layer, CsrLinear) else copy.deepcopy(layer)


@dataclass(frozen=True)
class Maker:
    """What makes a layer, the dtype that it reads, and whether it is a reference."""

    make: Callable[[], nn.Module]
    dtype: torch.dtype
    dense: bool = False


def _makers(weight_OI: Tensor, dense_OI: Tensor, kind: str, dtype: torch.dtype) -> dict[str, Maker]:

    def packed(stored_OI: Tensor) -> nn.Module:
        return PackedLinear.of(linear(stored_OI, dtype), Values.of(kind))

    full = torch.float32
    found = {
        "packed": Maker(lambda: packed(weight_OI), dtype),
        "dense": Maker(lambda: linear(dense_OI, dtype), dtype, kind in FLOATS),
    }
    if kind == "float32":
        found["csr"] = Maker(lambda: CsrLinear(weight_OI, None), full)
    if kind not in FLOATS:  # torch's own may have no fast kernel for this processor
        found["packed, no zeros"] = Maker(lambda: packed(dense_OI), dtype, True)
    if kind == "int8":
        found["dynamic int8"] = Maker(lambda: _quantised(dense_OI), full, True)
        found["int8 weights"] = Maker(lambda: Int8Weights(dense_OI, dtype), dtype, True)
    if kind == "int4":
        found["int4 weights"] = Maker(lambda: Int4Weights(dense_OI, dtype), dtype, True)
    return found


def linear(weight_OI: Tensor, dtype: torch.dtype) -> nn.Linear:
    outputs, inputs = weight_OI.shape
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = nn.Parameter(weight_OI.to(dtype), requires_grad=False)
    return layer


def _quantised(weight_OI: Tensor) -> nn.Module:
    layer = nn.Sequential(linear(weight_OI, torch.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        to_int8(layer)
    return layer


def check(layer: nn.Module, weight_OI: Tensor, kind: str, dtype: torch.dtype) -> None:
    """Fail if the packed layer does not multiply with what was packed."""
    expected_OI = pack(weight_OI.to(dtype), Values.of(kind)).dense().double()
    inputs_TI = torch.randn(3, weight_OI.shape[1]).to(dtype)
    expected_TO = inputs_TI.double() @ expected_OI.T
    error = float((layer(inputs_TI).double() - expected_TO).norm() / expected_TO.norm())
    if not error < WRONG:
        raise SystemExit(f"packed {kind} is off by {error:.3f} of its output; nothing is measured.")
