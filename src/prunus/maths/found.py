"""The pattern that the zeros of a matrix have, found without knowing how they came about."""

from __future__ import annotations

from collections.abc import Iterator
from math import comb, log, log1p
from typing import Literal

from torch import Tensor

from .contracts import Pattern
from .patterns import NM, Unstructured

LENGTHS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)  # every M of N:M that is looked for
SOME = 0.01  # a matrix with a smaller share of zeros was not pruned
SPARE = 0.1  # further zeros that a matrix may have beside those of its N:M
CHANCE = 1e-6  # how rarely zeros at random places may look like N:M
GLANCE = 64  # rows that rule out most M

WHOLE = {(True, False): "whole rows", (False, True): "whole columns",
         (True, True): "whole rows and columns"}  # fmt: skip


def found_pattern(weight_OI: Tensor) -> str:
    """Return what the zeros of a matrix (O, I) have in common.

    - ``dense``: less than 1 % is zero; ``zero``: all of it.
    - ``whole rows``, ``whole columns``, ``whole rows and columns``: all but 1 % of the matrix is
      explained by outputs, or inputs, that are zero throughout.
    - ``N:M``, ``N:M:output``: no group of M consecutive inputs (outputs) has more than N weights,
      which zeros at random places would show in fewer than one of a million matrices, and there are
      few zeros besides. Of several the one that removes the most, of those the smallest M, and
      inputs rather than outputs: what is 2:4 is 4:8 too.
    - ``row``, ``column``: every output (input) has the same number of zeros, to one.
    - ``layer``: none of these.

    >>> import torch
    >>> found_pattern(torch.tensor([[4.0, 0.0, 3.0, 0.0]]).tile(8, 16))
    'whole columns'
    """
    zero_OI = weight_OI == 0
    zeros, total = int(zero_OI.count_nonzero()), zero_OI.numel()
    if zeros == total:
        return "zero"
    if zeros < SOME * total:
        return "dense"
    whole = _whole(zero_OI, zeros)
    if whole is not None:
        return whole
    found = [*_tight(zero_OI, "input"), *_tight(zero_OI, "output")]
    if found:
        return str(min(found, key=lambda pattern: (pattern.keep / pattern.of, pattern.of)))
    for group in ("row", "column"):
        if has_pattern(Unstructured(group), weight_OI):
            return group
    return "layer"


def has_pattern(pattern: Pattern, weight_OI: Tensor) -> bool:
    """Whether every group has no more than N weights, or the same share of zeros as the others."""
    if isinstance(pattern, NM):
        side = weight_OI.shape[1 if pattern.along == "input" else 0]
        return side % pattern.of == 0 and bool(
            ((pattern.groups(weight_OI) != 0).sum(1) <= pattern.keep).all()
        )
    assert isinstance(pattern, Unstructured)  # the two patterns that parse_pattern knows
    counts_G = (pattern.groups(weight_OI) == 0).sum(1)
    return int(counts_G.min()) > 0 and int(counts_G.max() - counts_G.min()) <= 1


def _whole(zero_OI: Tensor, zeros: int) -> str | None:
    """Say whether outputs and inputs that are zero throughout explain nearly all zeros."""
    outputs, inputs = zero_OI.shape
    rows, columns = int(zero_OI.all(1).sum()), int(zero_OI.all(0).sum())
    inside = rows * inputs + columns * outputs - rows * columns
    return WHOLE.get((rows > 0, columns > 0)) if zeros - inside < SOME * zero_OI.numel() else None


def _tight(zero_OI: Tensor, along: Literal["input", "output"]) -> Iterator[NM]:
    """Yield each N:M that holds, has few zeros besides, and is no accident."""
    side_RC = zero_OI if along == "input" else zero_OI.T
    kept_RC = ~side_RC[~side_RC.all(1)]  # rows without a weight have any pattern
    share = 1 - int(kept_RC.count_nonzero()) / kept_RC.numel()
    glance_RC = kept_RC[:: max(1, len(kept_RC) // GLANCE)]
    length = kept_RC.shape[1]
    for of in LENGTHS:
        if length % of or length == of or _most(glance_RC, of) == of:
            continue
        keep = _most(kept_RC, of)
        if keep < of:
            pattern = NM(keep, of, along)
            spare = share - pattern.sparsity
            if spare <= SPARE and not _by_chance(pattern, share, kept_RC.numel() // of):
                yield pattern


def _most(kept_RC: Tensor, of: int) -> int:
    """Return the most weights that any group has."""
    columns = kept_RC.reshape(-1, of).byte().unbind(1)  # a tenth of the time of a sum over rows
    return int(sum(columns[1:], columns[0]).max())


def _by_chance(pattern: NM, share: float, groups: int) -> bool:
    """Whether as many zeros at random places would leave all groups with N weights at most.

    P = P(B ≤ N)^groups, with B binomial: M weights, each kept with probability 1 − share.
    """
    keep, of = pattern.keep, pattern.of
    more = sum(comb(of, k) * (1 - share) ** k * share ** (of - k) for k in range(keep + 1, of + 1))
    return groups * log1p(-min(more, 1 - 1e-12)) > log(CHANCE)
