"""Weights that a checkpoint stores in 8 or 4 bits, decoded to the plain numbers they stand for.

Pruning needs ordinary weights. What ``config.json`` claims about their format is judged before
any work: a format that can be decoded is decoded file by file into a temporary folder, which
transformers then reads as an ordinary checkpoint; any other is refused.

- ``fp8`` (DeepSeek-V3, Qwen3-FP8, Devstral): float8 weights and a scale for each block of weights,
  for each row or for the whole matrix.
- ``mxfp4`` (gpt-oss): 4-bit blocks of 32 and a power of two for each.
- ``compressed-tensors``: float8, packed integers and others, decoded by that library.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..base.errors import CheckpointError, first_line
from .scratch import Scratch
from .shards import INDEX, NAMED, pieces

CLAIMS = ("quantization_config", "compression_config")  # fields of config.json
FLOAT8 = {"F8_E4M3", "F8_E5M2"}  # as safetensors' headers call them
READ_DTYPES = FLOAT8 | {"BOOL", "U8", "I8", "I16", "I32", "I64", "F8_E8M0", "F16", "BF16", "F32",
                        "F64"}  # fmt: skip
SCALES = ("_scale_inv", "_scale")  # of ``weight`` or of another parameter of that name
UNUSED = ("activation_scale", "input_scale", "k_scale", "v_scale", "output_scale")
PIECE = 2**30  # bytes of decoded tensors that become one file

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Format:
    """How a checkpoint stores its weights.

    Attributes:
        name: the ``quant_method`` of ``config.json``.
        claim: all that it says there.
        dtype: what the weights become.
    """

    name: str
    claim: Mapping[str, Any]
    dtype: torch.dtype


def claimed(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Path]) -> Format | None:
    """Return the format that the checkpoint must be decoded from; None where it is plain.

    Args:
        folder: of the checkpoint.
        config: what its ``config.json`` says.
        tensors: the file of every tensor.

    Raises:
        CheckpointError: weights that prunus cannot decode, with the reason.
    """
    claim = next((config[name] for name in CLAIMS if config.get(name)), None)
    if claim is None:
        _refuse_hidden(folder, tensors)
        return None
    method = claim.get("quant_method") if isinstance(claim, Mapping) else None
    if method is None and isinstance(claim, Mapping) and "config_groups" in claim:
        method = "compressed-tensors"  # older files leave it out
    said = config.get("dtype") or config.get("torch_dtype")
    dtype = getattr(torch, str(said), None)
    form = Format(str(method), claim, dtype if isinstance(dtype, torch.dtype) else torch.bfloat16)
    if method == "compressed-tensors":
        return _compressed(folder, form)
    if method in ("fp8", "mxfp4"):
        return form
    raise CheckpointError(
        f"{folder} is already quantised: its config.json says quant_method {method!r}, which "
        "prunus does not decode. Prune the checkpoint that it was made from."
    )


def _refuse_hidden(folder: Path, tensors: Mapping[str, Path]) -> None:
    """Raise CheckpointError for weights in formats that ``config.json`` does not mention."""
    for name, dtype in dtypes(tensors).items():
        if dtype in FLOAT8 or dtype not in READ_DTYPES:
            raise CheckpointError(
                f"{folder} holds {name} as {dtype}, and its config.json has no quantization_config "
                "that says how to read it. Prune the checkpoint that it was made from."
            )


def _compressed(folder: Path, form: Format) -> Format | None:
    """Return the format of a compressed-tensors checkpoint; None where nothing is compressed."""
    sparse = form.claim.get("sparsity_config") or {}
    layout = sparse.get("format", "dense") if isinstance(sparse, Mapping) else str(sparse)
    if layout != "dense":
        raise CheckpointError(
            f"{folder} is stored in the sparse format {layout}, which no maintained library reads. "
            "Prune the checkpoint that it was made from."
        )
    if not form.claim.get("config_groups"):
        return None
    _library(folder)
    return form


def dtypes(tensors: Mapping[str, Path]) -> dict[str, str]:
    """Return the dtype of every tensor, as the files' headers call it."""
    found: dict[str, str] = {}
    for file in sorted(set(tensors.values())):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                if tensors.get(name) == file:
                    found[name] = opened.get_slice(name).get_dtype()
    return found


def decode(folder: Path, form: Format, tensors: Mapping[str, Path]) -> Scratch:
    """Write a plain checkpoint: the same tensors decoded, and a config without the claim.

    About a gigabyte of tensors is in memory at a time. All other files of the folder are linked.

    Raises:
        CheckpointError: tensors that are not what the format says, or too little room.
    """
    scratch = Scratch()
    _check_room(folder, scratch.path, tensors)
    where: dict[str, str] = {}
    by_file = sorted(tensors, key=lambda name: (tensors[name], name))
    for number, plain in enumerate(pieces(_decoded(folder, form, by_file, tensors), PIECE)):
        target = f"model-{number:05d}.safetensors"
        save_file(plain, scratch.path / target, metadata={"format": "pt"})
        where |= dict.fromkeys(plain, target)
    text = json.dumps({"metadata": {}, "weight_map": where})
    (scratch.path / INDEX).write_text(text, encoding="utf-8")
    _link_others(folder, scratch.path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (scratch.path / "config.json").write_text(json.dumps(without_claims(config)), encoding="utf-8")
    return scratch


def without_claims(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of config.json but those that say how, and where, weights are stored."""
    return {key: value for key, value in config.items() if key not in (*CLAIMS, NAMED)}


def _check_room(folder: Path, where: Path, tensors: Mapping[str, Path]) -> None:
    stored = sum(file.stat().st_size for file in set(tensors.values()))
    most, free = 4 * stored, shutil.disk_usage(where).free  # 4 bits become 16
    if most > free:
        raise CheckpointError(
            f"Decoding {folder} takes up to {most / 2**30:.1f} GiB in {where.parent}, where "
            f"{free / 2**30:.1f} GiB are free. Make room, or let TMPDIR name a larger disk."
        )


def _link_others(folder: Path, target: Path) -> None:
    """Make every file that is neither weights nor config known under the other folder too."""
    for path in folder.iterdir():
        weights = path.suffix == ".safetensors" or path.name in (INDEX, "config.json")
        if not weights and not path.name.startswith("."):
            (target / path.name).symlink_to(path.resolve())


def _decoded(
    folder: Path, form: Format, names: list[str], tensors: Mapping[str, Path]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain tensors whose encoded numbers go by these names."""

    def read(name: str) -> Tensor:
        with safe_open(tensors[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    try:
        if form.name == "compressed-tensors":
            yield from _from_compressed(folder, form, names, tensors, read)
        elif form.name == "mxfp4":
            yield from _from_mxfp4(form, names, tensors, read)
        else:
            yield from _from_float8(form, names, tensors, read)
    except CheckpointError:
        raise
    except Exception as error:  # of two libraries, of any kind
        raise CheckpointError(
            f"{folder} cannot be decoded as {form.name}: {first_line(error)}. Get the whole "
            "checkpoint, or prune the one that it was made from."
        ) from error


def _from_float8(
    form: Format, names: list[str], tensors: Mapping[str, Path], read: Read
) -> Iterator[tuple[str, Tensor]]:
    size = form.claim.get("weight_block_size")
    for name in names:
        parameter = next((name.removesuffix(x) for x in SCALES if name.endswith(x)), name)
        if (parameter != name and parameter in tensors) or name.endswith(UNUSED):
            continue
        tensor = read(name)
        if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            scale = next((name + x for x in SCALES if name + x in tensors), None)
            if scale is None:
                raise CheckpointError(f"{name} is float8 and has no scale beside it.")
            tensor = float8(tensor, read(scale), size).to(form.dtype)
        elif tensor.dtype in (torch.int8, torch.uint8) and f"{name}{SCALES[0]}" in tensors:
            raise CheckpointError(
                f"{name} holds 4-bit numbers in bytes, which are not decoded yet."
            )
        yield name, tensor


def float8(weight: Tensor, scale: Tensor, block: list[int] | None = None) -> Tensor:
    """Return float8 weights times their scales, in float32: W[o, i] · s[⌊o / a⌋, ⌊i / b⌋].

    Args:
        weight: (…, O, I) in float8; the last block of a row or column may be cut off.
        scale: one number, or one for each block of a × b weights; in bytes, s = 2^(byte − 127).
        block: (a, b); None: the matrix is divided evenly.
    """
    if scale.dtype == torch.uint8:
        scale = (scale.float() - 127).exp2()
    scale, plain = scale.float(), weight.float()
    if scale.numel() == 1:
        return plain * scale.reshape(())
    rows, columns = weight.shape[-2:]
    if scale.ndim < weight.ndim:
        scale = scale[..., None]
    grid = scale.shape[-2:]
    sizes = block or (-(-rows // grid[0]), -(-columns // grid[1]))
    if grid != (-(-rows // sizes[0]), -(-columns // sizes[1])):  # a row's or a column's own
        sizes = (-(-rows // grid[0]), -(-columns // grid[1]))
    wide = scale.repeat_interleave(sizes[0], -2)[..., :rows, :]
    return plain * wide.repeat_interleave(sizes[1], -1)[..., :columns]


def _from_mxfp4(
    form: Format, names: list[str], tensors: Mapping[str, Path], read: Read
) -> Iterator[tuple[str, Tensor]]:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    for name in names:
        whole, _, part = name.rpartition("_")
        if part == "blocks" and f"{whole}_scales" in tensors:
            scales = read(f"{whole}_scales")
            yield whole, convert_moe_packed_tensors(read(name), scales, dtype=form.dtype)
        elif part != "scales" or f"{whole}_blocks" not in tensors:
            yield name, read(name)


def _from_compressed(
    folder: Path, form: Format, names: list[str], tensors: Mapping[str, Path], read: Read
) -> Iterator[tuple[str, Tensor]]:
    """Decode layer by layer; a layer's tensors may lie in several files."""
    library = _library(folder)(folder, dtype=form.dtype)
    parts: dict[str, list[str]] = {}
    for name in tensors:
        parts.setdefault(name.rpartition(".")[0], []).append(name)
    for name in names:
        layer, _, part = name.rpartition(".")
        beside = parts[layer]
        if not any(other.startswith(f"{layer}.weight_") for other in beside):
            if not name.endswith(UNUSED):
                yield name, read(name)
        elif part in ("weight", "weight_packed"):
            yield from library.process({other: read(other) for other in beside}).items()


def _library(folder: Path) -> Any:
    """Return compressed-tensors' own decoder."""
    try:
        from compressed_tensors.entrypoints.convert.converters import CompressedTensorsDequantizer
    except ImportError:
        raise CheckpointError(
            f"{folder} is stored in the compressed-tensors format. To read it: "
            "pip install 'prunus[export]'."
        ) from None
    return CompressedTensorsDequantizer
