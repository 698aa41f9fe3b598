"""Check a checkpoint that has no report, because another tool or a person pruned it."""

from __future__ import annotations

from ..base.words import a_few, number_of
from ..maths.contracts import Pattern
from ..maths.found import found_pattern, has_pattern
from ..model.blocks import find_blocks, find_linears, outputs_first
from ..model.weights import Weights
from ..storage.checkpoint import load_weights, read_tensors
from ..storage.shards import check_shards
from .tensor_kinds import kinds_of
from .verification import Subject, Verification, ZerosOfKind


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
    seen: dict[str, tuple[str, int, int]] = {}
    other: list[str] = []
    for name in find_blocks(weights.model):
        with weights.at_hand(name) as block:
            for layer, module in find_linears(name, block).items():
                weight_OI = outputs_first(module)
                if demanded is not None and has_pattern(demanded, weight_OI):
                    shown = str(demanded)
                else:
                    shown = found_pattern(weight_OI)
                    other += [layer] if demanded is not None else []
                seen[layer] = shown, int((weight_OI == 0).sum()), weight_OI.numel()
    kinds = kinds_of(seen)
    for layer, (shown, zeros, total) in seen.items():
        found.count(shown)
        found.kinds.setdefault(kinds[layer], ZerosOfKind()).add(shown, zeros, total)
    every = found.kinds.values()
    found.sparsity = sum(x.zeros for x in every) / max(sum(x.weights for x in every), 1)
    if other:
        layers = f"{number_of(len(other), 'layer')} {'is' if len(other) == 1 else 'are'}"
        found.problems.append(f"{layers} not {demanded}: {a_few(other)}")
