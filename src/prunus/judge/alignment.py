"""Which tensor of one checkpoint is which of the other, by names and by values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..storage.opened import Opened
from .comparison import same_bits
from .tensor_kinds import natural

SAMPLE = 4096  # values of a tensor that are compared before all are
FEW = 16  # equal values that make two tensors the same, pruned or not


@dataclass
class Alignment:
    """How the tensors of two checkpoints belong together.

    Attributes:
        pairs: names in the new checkpoint, each with the name in the old one.
        renamed: those of them whose names differ, but for a prefix.
        prefix: what all names have in front in one of the checkpoints and not in the other, such as
            ``transformer.``: transformers reads both.
        copies: tensors that only one checkpoint stores, as a copy of another tensor, such as a head
            that is tied to embeddings; each with that other tensor.
        added: names that only the new checkpoint has.
        removed: names that only the old checkpoint has.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    copies: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def align(new: Opened, old: Opened) -> Alignment:
    """Pair tensors: those of one name, of one name behind a prefix, of the same values.

    A tensor that was pruned on the way has the same values where both are nonzero. Of a pair under
    two names that is tried on 4096 values.
    """
    both = sorted(new.stored.keys() & old.stored.keys(), key=natural)
    found = Alignment({name: name for name in both})
    ours = sorted(new.stored.keys() - set(both), key=natural)
    theirs = sorted(old.stored.keys() - set(both), key=natural)
    found.prefix, behind = _behind_prefix(ours, theirs)
    found.renamed = _same_values(
        {name: new for name in ours if name not in behind},
        {name: old for name in theirs if name not in behind.values()},
    )
    found.pairs |= behind | found.renamed
    found.added = [name for name in ours if name not in found.pairs]
    found.removed = [name for name in theirs if name not in found.pairs.values()]
    for side, other, names in ((new, old, found.added), (old, new, found.removed)):
        if _ties(other.config):
            copies = _copies(side, names)
            names[:] = [name for name in names if name not in copies]
            found.copies |= copies
    return found


def _behind_prefix(ours: list[str], theirs: list[str]) -> tuple[str, dict[str, str]]:
    """Return the prefix that most names have on one side only, and the pairs that it makes."""
    tries = []
    for longer, shorter in ((ours, theirs), (theirs, ours)):
        known = set(shorter)
        prefixes = Counter(
            name[: -len(end)] for name in longer for end in _ends(name) if end in known
        )
        for prefix, count in prefixes.most_common(1):
            pairs = {x: x.removeprefix(prefix) for x in longer if x.removeprefix(prefix) in known}
            turned = pairs if longer is ours else {short: x for x, short in pairs.items()}
            tries.append((count, prefix, turned))
    if not tries:
        return "", {}
    _, prefix, pairs = max(tries, key=lambda found: found[0])
    return prefix, pairs


def _ends(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(1, len(parts)))


def _same_values(ours: Mapping[str, Opened], theirs: Mapping[str, Opened]) -> dict[str, str]:
    """Pair tensors of one shape whose values agree wherever both are nonzero, in natural order."""
    shapes = {side.stored[name].shape for name, side in ours.items()}
    left = {
        name: _sample(side.read(name))
        for name, side in theirs.items()
        if side.stored[name].shape in shapes
    }
    found: dict[str, str] = {}
    for name, side in ours.items():
        sample, shape = _sample(side.read(name)), side.stored[name].shape
        for other, there in left.items():
            if theirs[other].stored[other].shape == shape and _agree(sample, there):
                found[name] = other
                del left[other]
                break
    return found


def _sample(tensor: Tensor) -> Tensor:
    """Return values at places that depend on the shape alone, copied."""
    flat = tensor.reshape(-1)
    step = max(1, len(flat) // SAMPLE)
    return flat[::step][:SAMPLE].clone()


def _agree(sample: Tensor, other: Tensor) -> bool:
    """Whether enough values are nonzero in both, and all of those agree in the narrower dtype."""
    if sample.dtype != other.dtype and sample.is_floating_point() and other.is_floating_point():
        narrow = min(sample.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).bits)
        sample, other = sample.to(narrow), other.to(narrow)
    both = (sample != 0) & (other != 0)
    enough = int(both.sum()) >= min(FEW, len(sample))
    return enough and bool((sample[both] == other[both]).all())


def _copies(side: Opened, names: Collection[str]) -> dict[str, str]:
    """Return those of the names that hold the very bits of another tensor of their checkpoint."""
    found = {}
    for name in names:
        stored, own = side.stored[name], None
        for other, like in side.stored.items():
            if other in names or (like.dtype, like.shape) != (stored.dtype, stored.shape):
                continue
            own = side.read(name) if own is None else own
            there = side.read(other)
            if torch.equal(_sample(own), _sample(there)) and same_bits(own, there):
                found[name] = other
                break
    return found


def _ties(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config may leave out a head that equals its embeddings."""
    text = config.get("text_config")
    said = [x.get("tie_word_embeddings") for x in (config, text) if isinstance(x, Mapping)]
    return False not in said
