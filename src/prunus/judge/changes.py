"""What changed in one tensor, from one checkpoint to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..maths.found import found_pattern
from .comparison import is_left_of
from .reordered import Reordering

CHUNK = 2**22  # numbers that are compared at once
MANY = 0.1  # of the kept values changed: perhaps only their order did


@dataclass
class Counts:
    """Places of tensors of one shape, counted.

    Attributes:
        new_zeros: places that became zero.
        returned: places that were zero and have a value.
        kept: places with a value before and after.
        changed: those of them whose value is another number; NaN and NaN are the same.
        change_squares: Σ (b − a)² over kept places with finite values a and b, in float64.
        squares: Σ a² over the same.
        largest: max |b − a| over the same.
        rounded: whether every kept value is the other one, rounded to a narrower dtype.
    """

    new_zeros: int = 0
    returned: int = 0
    kept: int = 0
    changed: int = 0
    change_squares: float = 0.0
    squares: float = 0.0
    largest: float = 0.0
    rounded: bool = False

    @property
    def relative(self) -> float:
        """‖B − A‖ / ‖A‖ on the kept places (Frobenius norms); 0 where nothing changed."""
        return (self.change_squares / self.squares) ** 0.5 if self.squares else 0.0

    @property
    def none(self) -> bool:
        """Whether all values are what they were."""
        return not (self.new_zeros or self.returned or self.changed)

    def add(self, other: Counts) -> None:
        """Add the counts of other tensors."""
        for name in ("new_zeros", "returned", "kept", "changed", "change_squares", "squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest = max(self.largest, other.largest)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for ``--json``."""
        return {**asdict(self), "relative": self.relative}


@dataclass(frozen=True)
class Look:
    """What a tensor holds, seen alone.

    Attributes:
        dtype: as its file has it.
        shape: as its file has it.
        zeros: how many there are.
        nonfinite: how many values are NaN or inf.
        patterns: patterns of its matrices (a tensor of experts has several), each with their
            number; none for vectors.
    """

    dtype: str
    shape: tuple[int, ...]
    zeros: int
    nonfinite: int
    patterns: Mapping[str, int]

    @classmethod
    def at(cls, tensor: Tensor, dtype: str, transposed: bool) -> Look:
        """Count, and find the pattern of each matrix."""
        parts = list(_chunks(tensor))
        zeros = sum(int((part == 0).count_nonzero()) for part in parts)
        nonfinite = sum(map(_nonfinite, parts))
        patterns: Counter[str] = Counter()
        if tensor.ndim > 1 and tensor.numel():
            for matrix in tensor.reshape(-1, *tensor.shape[-2:]):
                patterns[found_pattern(matrix.T if transposed else matrix)] += 1
        return cls(dtype, tuple(tensor.shape), zeros, nonfinite, dict(patterns))

    @property
    def weights(self) -> int:
        """Numbers in it."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class TensorChange:
    """A tensor of both checkpoints.

    Attributes:
        name: in the new checkpoint.
        was_called: in the old one.
        kind: the same part of all blocks, such as ``q_proj``.
        block: number of its block; None outside of blocks.
        old: what it held.
        new: what it holds.
        counts: place by place; None where the shapes differ and no way to compare them was found.
        order: whose channels are in another order: ``outputs``, ``inputs`` or both; the counts are
            those after the old tensor was put into that order. "" where none was shown.
        shape_note: what was found where shapes differ.
    """

    name: str
    was_called: str
    kind: str
    block: int | None
    old: Look
    new: Look
    counts: Counts | None = field(default_factory=Counts)
    order: str = ""
    shape_note: str = ""

    @property
    def same_values(self) -> bool:
        """Whether all values are what they were, in the same places, in whatever dtype."""
        return (
            self.counts is not None
            and self.counts.none
            and not self.order
            and (self.old.shape == self.new.shape)
        )

    @property
    def notes(self) -> list[str]:
        """What is to be said of it beside counts."""
        found = [f"{self.order} in another order"] if self.order else []
        if self.counts is not None and self.counts.rounded:
            found.append(f"rounded, {self.old.dtype} → {self.new.dtype}")
        return [*found, self.shape_note] if self.shape_note else found

    def to_dict(self) -> dict[str, Any]:
        """Return the tensor for ``--json``."""
        counts = None if self.counts is None else self.counts.to_dict()
        return {**asdict(self), "counts": counts, "same_values": self.same_values}


def looked_at(new: Tensor, old: Tensor, orders: Reordering) -> tuple[Counts | None, str, str]:
    """Compare two tensors: their counts, the order of channels, a note on shapes."""
    if new.shape != old.shape:
        counts, note = _of_other_shape(new, old)
        return counts, "", note
    counts = count(new, old)
    if counts.changed > MANY * counts.kept and not counts.rounded:
        shown = orders.found(*_alike(new, old))
        if shown is not None:
            return count(new, shown[0]), shown[1], ""
    return counts, "", ""


def _of_other_shape(new: Tensor, old: Tensor) -> tuple[Counts | None, str]:
    """Say how a tensor of another shape comes from the old one, if that can be shown."""
    if new.ndim == 2 and new.shape == old.shape[::-1]:
        counts = count(new, old.T)
        if not counts.changed:
            return counts, "transposed"
    if new.numel() == old.numel():
        counts = count(new.reshape(-1), old.reshape(-1))
        if not counts.changed:
            return counts, "the same values in another shape"
    if new.ndim == old.ndim and new.dtype == old.dtype and new.ndim in (1, 2):
        cut = [i for i in range(new.ndim) if new.shape[i] != old.shape[i]]
        if len(cut) == 1 and is_left_of(new, old):
            went = old.shape[cut[0]] - new.shape[cut[0]]
            return None, f"without {went} {('rows', 'columns')[cut[0]]}, the rest as it was"
    return None, "other values or sizes"


def count(new: Tensor, old: Tensor) -> Counts:
    """Count what changed between two tensors of one shape, place by place."""
    found, rounded = Counts(), new.dtype != old.dtype
    for ours, theirs in zip(_chunks(new), _chunks(old), strict=True):
        both = _count_chunk(*_alike(ours, theirs), found)
        rounded = rounded and _is_rounded(ours, theirs, both)
    found.rounded = rounded and found.changed > 0
    return found


def _count_chunk(new: Tensor, old: Tensor, found: Counts) -> Tensor:
    """Add the counts of a part of two tensors; return where both have a value."""
    there, was = new != 0, old != 0
    both = there & was
    kept = int(both.count_nonzero())  # of bools it takes a twentieth of the time of a sum
    found.kept += kept
    found.new_zeros += int(was.count_nonzero()) - kept
    found.returned += int(there.count_nonzero()) - kept
    differ, finite = both & (new != old), both
    if _nonfinite(new) or _nonfinite(old):
        finite = both & new.isfinite() & old.isfinite()
        differ &= ~(new.isnan() & old.isnan())
    was_N = torch.where(finite, old, 0).double()
    found.squares += float(was_N.dot(was_N))
    changed = int(differ.count_nonzero())
    if changed:
        found.changed += changed
        change_N = torch.where(finite, new, 0).double() - was_N
        found.change_squares += float(change_N.dot(change_N))
        found.largest = max(found.largest, float(change_N.abs().max()))
    return both


def _is_rounded(new: Tensor, old: Tensor, both: Tensor) -> bool:
    """Whether either is the other in its own dtype, wherever neither is zero."""
    return any(bool(((x == y.to(x.dtype)) | ~both).all()) for x, y in ((new, old), (old, new)))


def _nonfinite(part: Tensor) -> int:
    """Count NaN and inf, which a sum shows in a tenth of the time if there are none."""
    if not part.is_floating_point() or bool(part.sum().isfinite()):
        return 0
    return part.numel() - int(part.isfinite().count_nonzero())


def _alike(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in a dtype that holds the numbers of either."""
    wide = torch.promote_types(new.dtype, old.dtype)
    wide = torch.int32 if wide == torch.bool else wide
    return new.to(wide), old.to(wide)


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    return iter(tensor.reshape(-1).split(CHUNK))
