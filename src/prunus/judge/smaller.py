"""Proof that a checkpoint with fewer heads and neurons is what its report says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base.errors import CheckpointError, InputError
from ..model.weights import Weights
from ..report.report import PruningReport
from ..storage.checkpoint import load_weights, read_tensors
from ..storage.pruned import pairs
from ..storage.widths import read_widths
from .fresh_process import asked

if TYPE_CHECKING:
    from .verify import Verification

PARTS = ("weight", "bias")
# A new interpreter; prunus alone knows how to put widths.json together with the tensors.
RELOAD = """
import json, sys, torch
import prunus
model = prunus.load(sys.argv[1], trust_remote_code=sys.argv[2] == "True")
ids = torch.arange(8)[None] % model.get_input_embeddings().weight.shape[0]
with torch.no_grad():
    logits = model(input_ids=ids).logits
print(json.dumps({"finite": bool(logits.isfinite().all()),
                  "parameters": sum(p.numel() for p in model.parameters())}))
"""


def check(
    folder: Path,
    tensors: dict[str, Path],
    report: PruningReport,
    demanded: object,
    found: Verification,
) -> None:
    """Look into the files, and note what was found.

    Raises:
        InputError: a pattern was ``demanded``.
    """
    if demanded is not None:
        raise InputError(
            f"{folder} has fewer heads and neurons than the model it was made from, and no pattern "
            "of zeros. Leave --pattern out."
        )
    assert report.structured is not None
    found.problems += problems(folder, tensors, report)
    found.sparsity = report.structured.share
    found.patterns = {"heads and neurons removed": len(report.layers)}
    found.checks += ["finite weights", "shapes of every shrunk layer, against the report"]


def check_against(
    new: Weights, old: Weights, source: str | Path, report: PruningReport, found: Verification
) -> None:
    """Every tensor is the source's, or what the source has there without some heads or neurons.

    Of layers that were updated the shapes alone are known.
    """
    layers = {f"{layer.name}.{part}": layer for layer in report.layers for part in PARTS}
    same, left = 0, 0
    for name, tensor, was in pairs(new, old):
        layer = layers.get(name)
        if layer is not None and layer.updated:
            continue
        same, left = same + (layer is None), left + (layer is not None)
        if layer is None and (was is None or not _equal(tensor, was)):
            found.problems.append(f"{name} was not to be pruned, and differs from {source}.")
        elif layer is not None and (was is None or not _is_left_of(tensor, was)):
            found.problems.append(
                f"{name} is not what {source} has there without some rows or columns; the report "
                "says that this method keeps the rest as it is."
            )
    found.checks.append(f"{same} other tensors as in {source}, {left} shrunk ones parts of its")


def _equal(tensor: Tensor, was: Tensor) -> bool:
    return tensor.shape == was.shape and torch.equal(was.to(tensor.dtype), tensor)


def _is_left_of(tensor: Tensor, was: Tensor) -> bool:
    """Whether it is ``was`` without some rows, or without some columns, in the same order."""
    if tensor.ndim != was.ndim:
        return False
    if tensor.ndim > 1 and tensor.shape[1] != was.shape[1]:
        tensor, was = tensor.T, was.T
    if tensor.shape[1:] != was.shape[1:]:
        return False
    rows, dense = (_row_bytes(x.to(tensor.dtype)) for x in (tensor, was))
    others = iter(dense)
    return all(any(row == other for other in others) for row in rows)


def _row_bytes(tensor: Tensor) -> list[bytes]:
    whole = tensor.detach().contiguous().reshape(len(tensor), -1).view(torch.uint8)
    return [row.tobytes() for row in whole.numpy()]


def check_reload(
    folder: Path, report: PruningReport, trust_remote_code: bool, found: Verification
) -> None:
    """Load what has a widths.json in a fresh process, with ``prunus.load``."""
    found.problems += reload(folder, report, trust_remote_code)
    found.checks.append("reload by prunus.load in a fresh process, finite logits")


def problems(folder: Path, tensors: dict[str, Path], report: PruningReport) -> Iterator[str]:
    """What is wrong in the files: shapes, values, a widths.json too many or too few."""
    assert report.structured is not None
    shapes = {}
    for name, tensor in read_tensors(tensors):
        shapes[name] = tuple(tensor.shape)
        if not bool(tensor.isfinite().all()):
            yield f"{name} holds NaN or inf."
    if any(f"{layer.name}.weight" not in shapes for layer in report.layers):
        shapes |= _as_loaded(folder)  # families whose files have other names than their modules
    for layer in report.layers:
        name = f"{layer.name}.weight"
        shape = tuple(layer.notes["shape"])
        expected = shape[::-1] if layer.transposed else shape
        if name not in shapes:
            yield f"{name} is in the report but not in the checkpoint."
        elif shapes[name] != expected:
            yield f"{name} is {shapes[name]}, not {expected}."
    widths = read_widths(folder)
    if report.structured.stock and widths is not None:
        yield "widths.json is there, and the report says that the stock config is enough."
    if not report.structured.stock and widths is None:
        yield "widths.json is missing: without it nothing knows how wide each block is."


def _as_loaded(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors by the names of the model's modules; none are read."""
    try:
        model = load_weights(folder, stream=True).model
    except CheckpointError:  # tensors are missing, or have other shapes: the caller names them
        return {}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def reload(folder: Path, report: PruningReport, trust_remote_code: bool) -> Iterator[str]:
    """What goes wrong when a fresh process loads it with ``prunus.load``."""
    seen, last = asked(RELOAD, folder, str(trust_remote_code))
    if seen is None:
        yield f"prunus.load cannot load it in a fresh process: {last}"
        return
    if not seen["finite"]:
        yield "Its logits hold NaN or inf in a fresh process."
    if report.structured and seen["parameters"] != report.structured.parameters[1]:
        yield (
            f"It has {seen['parameters']:,} parameters in a fresh process; the report says "
            f"{report.structured.parameters[1]:,}."
        )
