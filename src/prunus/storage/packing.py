"""Integers in the layout that transformers and vLLM read, by the compressed-tensors library.

In a packed file a layer's ``weight`` is replaced by ``weight_packed`` (int32), ``weight_scale``,
``weight_zero_point`` (int32, packed) and ``weight_shape``; the ``quantization_config`` in
``config.json`` says how to read them. It never has a ``sparsity_config``, on which loaders would
act: zeros are the integer z, and take as many bits as any other weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..base.errors import CheckpointError, InputError
from ..maths.grids.grid import Grid, Quantized

if TYPE_CHECKING:
    from ..model.blocks import Layer

FORMAT = "pack-quantized"
PACKED = ".weight_packed"


def check(layers: Sequence[Layer], grid: Grid) -> None:
    """Raise InputError, with the layer's name, if these layers cannot be packed."""
    _library(grid)
    common = math.gcd(*(layer.shape[1] for layer in layers))
    for layer in layers:
        if layer.expert is not None:
            raise InputError(
                f"{layer.name} is one of many experts in one tensor, which compressed-tensors does "
                "not pack. Leave --pack out."
            )
        if layer.transposed:
            raise InputError(
                f"{layer.name} is a Conv1D, which stores (inputs, outputs); compressed-tensors "
                "packs only nn.Linear. Leave --pack out."
            )
        if grid.bits == 4 and layer.shape[0] <= 8:
            raise InputError(
                f"{layer.name} has {layer.shape[0]} outputs; compressed-tensors 0.20 cannot read "
                "the zero points of 8 or fewer at 4 bits. Use other --bits, or leave --pack out."
            )
        if grid.group is not None and layer.shape[1] % grid.group:
            fitting = max(n for n in range(1, grid.group + 1) if common % n == 0)
            raise InputError(
                f"{layer.name} has {layer.shape[1]} inputs, and compressed-tensors packs whole "
                f"groups only, not {grid.group} at a time. --group {fitting} fits this block; "
                "--group 0 takes whole rows."
            )


def packed(quantized: Quantized) -> dict[str, Tensor]:
    """Return what a file holds in place of ``weight``, by the end of its name.

    The library's compressor is given the integers themselves, as weights on a grid of step 1: made
    from the dequantised weights they would not all survive, with 8 bits in bfloat16.
    """
    library = _library(quantized.grid)
    middle = 2 ** (quantized.grid.bits - 1)
    state = {
        "weight": quantized.steps_OI.float(),
        "weight_scale": torch.ones_like(quantized.scale_OG, dtype=torch.float32),
        "weight_zero_point": (quantized.zero_OG.to(torch.int16) - middle).to(torch.int8),
    }
    compressed = library.compressor.compress(state, library.scheme)
    return {**compressed, "weight_scale": quantized.scale_OG}


def config(grid: Grid, ignore: Sequence[str]) -> dict[str, Any]:
    """Return the ``quantization_config`` for ``config.json``; ``ignore`` names other linear layers.

    With ``dequantize``, transformers unpacks while it loads. Without, it would refuse every zero
    point: compressed-tensors 0.20 expects them unpacked there, and packed when it reads them.
    """
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "dequantize": True,
        "config_groups": {"group_0": _library(grid).scheme.model_dump(mode="json")},
        "ignore": list(ignore),
    }


def grid_of(config_json: Mapping[str, Any]) -> Grid | None:
    """Return the grid of a packed checkpoint, from its ``config.json``; None if it is not packed.

    Raises:
        CheckpointError: packed in a way that prunus does not write.
    """
    said = config_json.get("quantization_config")
    if said is None:
        return None
    try:
        (group,) = said["config_groups"].values()
        weights = group["weights"]
        if said["format"] != FORMAT or weights["symmetric"] or group.get("input_activations"):
            raise ValueError
        return Grid(weights["num_bits"], weights["group_size"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            "config.json has a quantization_config that prunus did not write, which loaders would "
            "follow."
        ) from None


def read_unpacked(tensors: Mapping[str, Path], grid: Grid) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a packed checkpoint, layers as their ``weight``, one at a time."""
    library = _library(grid)
    parts = library.compressor.compression_param_names(library.scheme)
    for file in sorted(set(tensors.values())):
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            layers = {name.removesuffix(PACKED) for name in names if name.endswith(PACKED)}
            held = {f"{layer}.{part}" for layer in layers for part in parts}
            for name in sorted(names - held):
                yield name, opened.get_tensor(name)
            for layer in sorted(layers):
                state = {part: opened.get_tensor(f"{layer}.{part}") for part in parts}
                yield (
                    f"{layer}.weight",
                    library.compressor.decompress(state, library.scheme)["weight"],
                )


class _library:  # noqa: N801 - compressed-tensors, imported when it is needed
    def __init__(self, grid: Grid) -> None:
        try:
            from compressed_tensors.compressors import BaseCompressor
            from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        except ImportError:
            raise InputError(
                "Packed integers are read and written by the compressed-tensors library, which is "
                "not installed: pip install 'prunus[export]'."
            ) from None
        weights = QuantizationArgs(
            num_bits=grid.bits,
            type="int",
            symmetric=False,
            strategy="group" if grid.group else "channel",
            group_size=grid.group,
        )
        self.compressor: Any = BaseCompressor.get_value_from_registry(FORMAT)
        self.scheme: Any = QuantizationScheme(targets=["Linear"], weights=weights, format=FORMAT)
