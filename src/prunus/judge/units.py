"""Check the shapes of a model that lost heads and neurons, and the widths of its blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..base.errors import CheckpointError, InputError
from ..report.layer import LayerReport
from ..report.report import PruningReport
from ..report.units import UnitsReport
from ..storage.checkpoint import load_weights, read_tensors
from ..storage.shards import check_shards
from ..storage.widths import FILE as WIDTHS
from ..storage.widths import read_widths
from .verification import Subject, Verification


def check(subject: Subject, found: Verification) -> None:
    """Check all values, the shape of every shrunk layer, and the widths of every block.

    Raises:
        InputError: a pattern of zeros is demanded.
    """
    report = subject.report
    assert report is not None
    assert report.structured is not None
    if subject.demanded is not None:
        raise InputError(
            f"{subject.folder} has fewer heads and neurons than the model it was made from, and no "
            "pattern of zeros. Leave --pattern out."
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in read_tensors(check_shards(subject.folder)):
        shapes[name] = tuple(tensor.shape)
        found.check_finite(name, tensor)
    if any(f"{layer.name}.weight" not in shapes for layer in report.layers):
        shapes |= _as_loaded(subject)  # families whose files have other names than their modules
    found.problems += _shape_problems(shapes, report)
    found.problems += _width_problems(subject.folder, report.structured)
    found.sparsity = report.structured.share
    found.patterns = dict(Counter(map(_lost, report.layers)))
    found.checks += [
        "finite weights",
        "shapes of every shrunk layer and widths of every block, against the report",
    ]


def _lost(layer: LayerReport) -> str:
    """Say whether a layer lost units; some are recovered alone, or are in a block that kept all."""
    smaller = tuple(layer.notes["shape"]) != tuple(layer.shape)
    return "heads and neurons removed" if smaller else "none removed"


def _as_loaded(subject: Subject) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors by the names of the model's modules, without reading one."""
    trust = subject.trust_remote_code
    try:
        model = load_weights(subject.folder, trust_remote_code=trust, stream=True).model
    except CheckpointError:  # tensors are missing, or have other shapes: the caller names them
        return {}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _shape_problems(shapes: dict[str, tuple[int, ...]], report: PruningReport) -> Iterator[str]:
    for layer in report.layers:
        name = f"{layer.name}.weight"
        shape = tuple(layer.notes["shape"])
        expected = shape[::-1] if layer.transposed else shape
        if name not in shapes:
            yield f"{name} is in the report but not in the checkpoint."
        elif shapes[name] != expected:
            yield f"{name} is {shapes[name]}, not {expected}."


def _width_problems(folder: Path, report: UnitsReport) -> Iterator[str]:
    """Yield what is wrong with widths.json: it must be there if it is needed, and agree."""
    widths = read_widths(folder)
    if report.stock and widths is not None:
        yield f"{WIDTHS} is there, and the report says that the stock config is enough."
    elif not report.stock and widths is None:
        yield f"{WIDTHS} is missing: without it nothing knows how wide each block is."
    elif widths is not None and len(widths) != len(report.blocks):
        yield f"{WIDTHS} has {len(widths)} blocks; the report has {len(report.blocks)}."
    elif widths is not None:
        for change, block in zip(report.blocks, widths, strict=True):
            if not change.became(block):
                yield (
                    f"Block {change.block} has {block.heads} query heads, {block.kv_heads} "
                    f"key/value heads and {block.intermediate} neurons in {WIDTHS}; the report "
                    "says otherwise."
                )
