"""Proof that a checkpoint with fewer heads and neurons is what its report says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import read_tensors
from ..errors import InputError
from ..fresh import asked
from ..report.pruning_report import PruningReport
from .widths import read_widths

if TYPE_CHECKING:
    from ..verification import Verification

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
        InputError: a pattern, or a source to compare with, was ``demanded``.
    """
    if demanded is not None:
        raise InputError(
            f"{folder} has fewer heads and neurons than the model it was made from: it has no "
            "pattern of zeros, and no tensor to compare one by one. Leave --source and --pattern "
            "out."
        )
    assert report.structured is not None
    found.problems += problems(folder, tensors, report)
    found.sparsity = report.structured.share
    found.patterns = {"heads and neurons removed": len(report.layers)}
    found.checks += ["finite weights", "shapes of every shrunk layer, against the report"]


def check_reload(
    folder: Path, report: PruningReport, trust_remote_code: bool, found: Verification
) -> None:
    """Load it in a fresh process, with ``prunus.load``."""
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


def reload(folder: Path, report: PruningReport, trust_remote_code: bool) -> Iterator[str]:
    """What goes wrong when a fresh process loads it with ``prunus.load``."""
    assert report.structured is not None
    seen, last = asked(RELOAD, folder, str(trust_remote_code))
    if seen is None:
        yield f"prunus.load cannot load it in a fresh process: {last}"
        return
    if not seen["finite"]:
        yield "Its logits hold NaN or inf in a fresh process."
    if seen["parameters"] != report.structured.parameters[1]:
        yield (
            f"It has {seen['parameters']:,} parameters in a fresh process; the report says "
            f"{report.structured.parameters[1]:,}."
        )
