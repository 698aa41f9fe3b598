"""A pruned checkpoint on disk, beside its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from ..base.errors import CheckpointError
from ..maths.grids import Grid
from ..model.blocks import find_blocks
from ..model.weights import Weights
from ..report.layer import LayerReport
from ..report.report import PruningReport
from .checkpoint import load_weights, read_tensors
from .packing import read_unpacked
from .shards import check_shards

Stored = tuple[str, Tensor, list[tuple[LayerReport, Tensor]]]


def read_layers(
    folder: Path,
    report: PruningReport,
    trust_remote_code: bool = False,
    packed: Grid | None = None,
) -> Iterator[Stored]:
    """Yield every tensor with its name and its layers, each with its weight (O, I).

    First all tensors of the files. What the model has under another name or in another layout, such
    as experts that lie there one by one, comes after that through transformers' own mapping, a
    block at a time. Layers that are nowhere are left out. ``packed`` is the grid of a checkpoint
    that holds integers.
    """
    layers: dict[str, list[LayerReport]] = {}
    for layer in report.layers:
        layers.setdefault(layer.parameter, []).append(layer)
    shards = check_shards(folder)
    tensors = read_tensors(shards) if packed is None else read_unpacked(shards, packed)
    for name, tensor in tensors:
        yield name, tensor, [_of(layer, tensor) for layer in layers.pop(name, [])]
    if not layers:
        return
    try:
        weights = load_weights(folder, trust_remote_code=trust_remote_code, stream=True)
    except CheckpointError:  # tensors are missing: the layers that are left are in none
        return
    for block in find_blocks(weights.model):
        if any(name.startswith(f"{block}.") for name in layers):
            with weights.at_hand(block) as module:
                for key, tensor in module.state_dict().items():
                    name = f"{block}.{key}"
                    if name in layers:
                        yield name, tensor, [_of(layer, tensor) for layer in layers[name]]


def _of(layer: LayerReport, tensor: Tensor) -> tuple[LayerReport, Tensor]:
    if layer.expert is not None and (tensor.ndim != 3 or layer.expert >= len(tensor)):
        raise CheckpointError(
            f"{layer.parameter} is {tuple(tensor.shape)} and has no expert {layer.expert}, which "
            "the report names. The checkpoint is damaged."
        )
    matrix = tensor if layer.expert is None else tensor[layer.expert]
    return layer, matrix.T if layer.transposed else matrix


def pairs(
    new: Weights, old: Weights, before: Callable[[str], None] = lambda block: None
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield every tensor and what it was in the source, with one block in memory at a time.

    Args:
        new: the checkpoint.
        old: what it was made from.
        before: called with the name of a block that is at hand, before its tensors.
    """
    names = list(find_blocks(new.model))
    if names != list(find_blocks(old.model)):
        raise CheckpointError(
            "The source's blocks differ from the checkpoint's: this is not what it was made from."
        )
    for block in names:
        with new.at_hand(block) as module, old.at_hand(block) as dense:
            before(block)
            was = dense.state_dict()
            for key, tensor in module.state_dict().items():
                yield f"{block}.{key}", tensor, was.get(key)
    inside, was = tuple(f"{block}." for block in names), old.model.state_dict()
    for name, tensor in new.model.state_dict().items():
        if not name.startswith(inside):
            yield name, tensor, was.get(name)
