"""Verifies a checkpoint that no report comes with: one that another tool, or a person, pruned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..base.errors import InputError
from ..maths.contracts import Pattern, parameter_of
from ..maths.patterns import NM, Unstructured
from ..model.blocks import find_blocks, find_linears, outputs_first
from ..model.experts import Expert
from ..model.weights import Weights
from ..storage.checkpoint import load_weights, read_tensors
from ..storage.origin import origin_of
from ..storage.shards import check_shards
from .comparison import Changes, compare, on_disk

if TYPE_CHECKING:
    from .verify import Verification

# The more a pattern removes, the more it says; of two that remove as much, the finer one.
KNOWN = (NM(1, 8), NM(1, 4), NM(2, 8), NM(1, 2), NM(2, 4), NM(4, 8), NM(3, 4), NM(6, 8))
SOME = 0.01  # a layer with fewer zeros was not pruned


def check(
    folder: Path,
    source: str | Path | None,
    demanded: Pattern | None,
    trust_remote_code: bool,
    found: Verification,
) -> None:
    """Find each layer's pattern, or hold it against the one that is demanded; look at all values.

    With ``source``: what is no linear layer of a block must be the source's, bit for bit.

    Raises:
        UnsupportedModelError: no blocks can be found in the model.
    """
    for name, tensor in read_tensors(check_shards(folder)):
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            found.problems.append(f"{name} holds NaN or inf.")
    weights = load_weights(folder, trust_remote_code=trust_remote_code, stream=True)
    _check_layers(weights, demanded, found)
    found.checks += ["finite weights", "zeros and pattern of every linear layer in the blocks"]
    if source is not None:
        old = load_weights(source, trust_remote_code=trust_remote_code, stream=True)
        layers = on_disk(weights, _parameters(weights))
        ours, theirs = origin_of(weights), origin_of(old)
        if ours is None or theirs is None:
            raise InputError("--source compares folders of safetensors; give the source's folder.")
        free = Changes(pruned=layers, updated=layers)
        found.problems += compare(ours, theirs, free, source)
        found.checks.append(f"everything but those layers, bit for bit, against {source}")


def _check_layers(weights: Weights, demanded: Pattern | None, found: Verification) -> None:
    zeros = total = 0
    other: list[str] = []
    for name in find_blocks(weights.model):
        with weights.at_hand(name) as block:
            for layer, module in find_linears(name, block).items():
                weight_OI = outputs_first(module)
                zeros, total = zeros + int((weight_OI == 0).sum()), total + weight_OI.numel()
                shown = found_pattern(weight_OI)
                if demanded is not None and _has(demanded, weight_OI):
                    shown = str(demanded)
                elif demanded is not None:
                    other.append(layer)
                found.patterns[shown] = found.patterns.get(shown, 0) + 1
    found.sparsity = zeros / total if total else 0.0
    if other:
        found.problems.append(
            f"{len(other)} layers are not {demanded}: {', '.join(other[:3])}"
            f"{' …' if len(other) > 3 else ''}"
        )


def _parameters(weights: Weights) -> set[str]:
    """Return the names of the parameters that hold linear layers and experts of the blocks."""
    names: set[str] = set()
    for name, block in find_blocks(weights.model).items():
        for layer, module in find_linears(name, block).items():
            index = module.index if isinstance(module, Expert) else None
            names.add(parameter_of(layer, index))
    return names


def _has(pattern: Pattern, weight_OI: Tensor) -> bool:
    """Whether the layer has the pattern: N:M in every group, or the same share in every one."""
    if isinstance(pattern, NM):
        return _holds(pattern, weight_OI)
    assert isinstance(pattern, Unstructured)  # the two patterns that parse_pattern knows
    counts_G = (pattern.groups(weight_OI) == 0).sum(1)
    return int(counts_G.min()) > 0 and int(counts_G.max() - counts_G.min()) <= 1


def found_pattern(weight_OI: Tensor) -> str:
    """Return the pattern of a layer's zeros: N:M, row, column, layer, zero or dense.

    N:M where every group of M inputs has no more than N weights; row or column where all have the
    same share of zeros, to one weight.
    """
    zero_OI = weight_OI == 0
    share = float(zero_OI.float().mean())
    if share == 1:
        return "zero"
    if share < SOME:
        return "dense"
    for along in ("input", "output"):
        for known in KNOWN:
            pattern = replace(known, along=along)
            if share >= pattern.sparsity - SOME and _holds(pattern, weight_OI):
                return str(pattern)
    for group in ("row", "column"):
        if _has(Unstructured(group), weight_OI):
            return group
    return "layer"


def _holds(pattern: NM, weight_OI: Tensor) -> bool:
    if weight_OI.shape[1 if pattern.along == "input" else 0] % pattern.of:
        return False
    return bool(((pattern.groups(weight_OI) != 0).sum(1) <= pattern.keep).all())
