"""Check a checkpoint that has no report, because another tool or a person pruned it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..maths.contracts import Pattern
from ..maths.patterns import NM, Unstructured
from ..model.blocks import find_blocks, find_linears, outputs_first
from ..model.weights import Weights
from ..storage.checkpoint import load_weights, read_tensors
from ..storage.shards import check_shards
from .verification import Subject, Verification

# The more a pattern removes, the more it says; of two that remove as much, the finer one.
KNOWN = (NM(1, 8), NM(1, 4), NM(2, 8), NM(1, 2), NM(2, 4), NM(4, 8), NM(3, 4), NM(6, 8))
SOME = 0.01  # a layer with fewer zeros was not pruned


def check(subject: Subject, found: Verification) -> None:
    """Find the pattern of each layer, or check the demanded one; check that all values are finite.

    Raises:
        UnsupportedModelError: no blocks can be found in the model.
    """
    for name, tensor in read_tensors(check_shards(subject.folder)):
        found.check_finite(name, tensor)
    trust = subject.trust_remote_code
    weights = load_weights(subject.folder, trust_remote_code=trust, stream=True)
    _check_layers(weights, subject.demanded, found)
    found.checks += ["finite weights", "zeros and pattern of every linear layer in the blocks"]


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
                found.count(shown)
    found.sparsity = zeros / total if total else 0.0
    if other:
        found.problems.append(
            f"{len(other)} layers are not {demanded}: {', '.join(other[:3])}"
            f"{' …' if len(other) > 3 else ''}"
        )


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
