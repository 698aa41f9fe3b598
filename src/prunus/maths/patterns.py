"""The weights that compete: unstructured within a layer, row or column, and N:M.

Counts are exact: of ``n`` competing weights ``floor(sparsity · n)`` are removed. (The authors'
code of several papers removes everything ``<=`` a threshold: one weight more than requested, and
all its ties.) Among equal scores the earlier position is removed first, so a mask depends on
nothing but the scores.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, cast, overload

import torch
from torch import Tensor

from ..base.errors import NumericalError, PatternError
from .contracts import Pattern, Share


@dataclass(frozen=True)
class Unstructured:
    """A pattern that removes the ``floor(sparsity · n)`` lowest scores of each comparison group.

    Attributes:
        group: ``"layer"`` compares all weights of the matrix, ``"row"`` those of one output
            (Wanda's groups), ``"column"`` those of one input (DaSS's groups for gate and up).
    """

    group: Literal["layer", "row", "column"] = "row"
    group_size: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.group not in ("layer", "row", "column"):
            raise PatternError(f"A comparison group is layer, row or column, not {self.group!r}.")

    def __str__(self) -> str:
        return self.group

    def at(self, sparsity: Share) -> Pattern:
        """Return itself; with a share for each row, the layer's count is known only as a whole."""
        return Unstructured("layer") if isinstance(sparsity, Tensor) else self

    def check(self, shape_OI: tuple[int, int], sparsity: Share) -> None:
        """Check that the sparsity is a fraction, and that shares of rows have the pattern row."""
        check_sparsity(sparsity)
        if isinstance(sparsity, Tensor) and self.group != "row":
            raise PatternError(
                f"A sparsity for each row needs the pattern row; this is {self.group}."
            )

    def mask(self, score_OI: Tensor, sparsity: Share) -> Tensor:
        """Return the keep-mask (O, I) with exactly ``floor(sparsity · n)`` False per group."""
        self.check((score_OI.shape[0], score_OI.shape[1]), sparsity)
        score_GN = self.groups(_comparable(score_OI))
        count = removed(sparsity, score_GN.shape[1])
        if isinstance(count, Tensor):
            return ~_lowest_by_row(score_GN, count)
        keep_GN = ~_lowest(score_GN, count)
        if self.group == "column":
            return keep_GN.T.contiguous()
        return keep_GN.view(score_OI.shape)

    def groups(self, tensor_OI: Tensor) -> Tensor:
        """Return the same entries as (G, N): one row per comparison group."""
        if self.group == "column":
            return tensor_OI.T
        return tensor_OI if self.group == "row" else tensor_OI.reshape(1, -1)


@dataclass(frozen=True)
class NM:
    """A pattern that keeps ``keep`` of every ``of`` consecutive weights: N of M, N *kept*.

    (The papers and their code count the zeros; for 2:4 and 4:8 the two readings agree.)

    Attributes:
        along: ``"input"`` groups consecutive inputs within an output row, what sparse tensor cores
            read; ``"output"`` groups consecutive outputs within an input column (DaSS's gate, up).

    >>> NM(2, 4).mask(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 0.5)
    tensor([[ True, False,  True, False]])
    """

    keep: int = 2
    of: int = 4
    along: Literal["input", "output"] = "input"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= self.of:
            raise PatternError(
                f"N:M keeps N of every M weights with 0 < N <= M; got {self.keep}:{self.of}."
            )
        if self.along not in ("input", "output"):
            raise PatternError(f"N:M runs along input or output, not {self.along!r}.")

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}" + (":output" if self.along == "output" else "")

    @property
    def group_size(self) -> int:
        """M, the number of weights that are decided together."""
        return self.of

    @property
    def sparsity(self) -> float:
        """The one sparsity that the pattern has: ``1 − keep / of``."""
        return 1 - self.keep / self.of

    def at(self, sparsity: Share) -> Pattern:
        """Return itself."""
        return self

    def check(self, shape_OI: tuple[int, int], sparsity: Share) -> None:
        """Check that M divides the grouped side, and that the sparsity is the pattern's own."""
        check_sparsity(sparsity)
        if isinstance(sparsity, Tensor):
            raise PatternError(f"{self} leaves no choice of a sparsity for each row.")
        if abs(sparsity - self.sparsity) > 1e-6:
            raise PatternError(
                f"{self} always has sparsity {self.sparsity:g}, but {float(sparsity):g} was "
                "requested. Leave the sparsity out, or choose another N:M."
            )
        length = shape_OI[1] if self.along == "input" else shape_OI[0]
        if length % self.of:
            raise PatternError(
                f"{self} needs a number of {self.along}s divisible by {self.of}; this layer has "
                f"{length}. Choose an M that divides it, or an unstructured pattern."
            )

    def mask(self, score_OI: Tensor, sparsity: Share) -> Tensor:
        """Return the keep-mask (O, I) with exactly ``keep`` True in every group."""
        self.check((score_OI.shape[0], score_OI.shape[1]), sparsity)
        score_GN = self.groups(_comparable(score_OI))
        keep_GN = ~_lowest(score_GN, self.of - self.keep)
        if self.along == "output":
            return keep_GN.view(score_OI.shape[1], score_OI.shape[0]).T.contiguous()
        return keep_GN.view(score_OI.shape)

    def groups(self, tensor_OI: Tensor) -> Tensor:
        """Return the same entries as (G, M): one row per group of M consecutive weights."""
        side = tensor_OI if self.along == "input" else tensor_OI.T
        return side.reshape(-1, self.of)


@dataclass(frozen=True)
class OneOf:
    """A choice of one of several N:M patterns for each layer, by its share.

    ``--pattern 1:4,2:4,3:4 --sparsity 0.5 --allocation besa``: the allocation chooses so that the
    average is met.
    """

    options: tuple[NM, ...]

    def __post_init__(self) -> None:
        known: dict[float, NM] = {}
        for option in self.options:
            other = known.setdefault(option.sparsity, option)
            if other is not option:
                raise PatternError(
                    f"{other} and {option} have the same sparsity, so a share does not choose "
                    "between them. Give one of them."
                )

    def __str__(self) -> str:
        return ",".join(map(str, self.options))

    @property
    def group_size(self) -> int:
        """A number of weights that is a whole number of groups of every option."""
        return math.lcm(*(option.of for option in self.options))

    def at(self, sparsity: Share) -> NM:
        """Return the option with this sparsity.

        Raises:
            PatternError: there is none.
        """
        for option in self.options:
            if not isinstance(sparsity, Tensor) and abs(option.sparsity - sparsity) < 1e-6:
                return option
        shown = ", ".join(f"{option.sparsity:g}" for option in self.options)
        raise PatternError(
            f"{self} can only have the sparsities {shown}. Add --allocation besa, owl, slope "
            "or evolve, which chooses one of them for each layer."
        )

    def check(self, shape_OI: tuple[int, int], sparsity: Share) -> None:
        """Check that every M divides the grouped side; the choice for each layer comes later."""
        check_sparsity(sparsity)
        found = sorted(option.sparsity for option in self.options)
        if isinstance(sparsity, Tensor):
            raise PatternError(f"{self} leaves no choice of a sparsity for each row.")
        if not found[0] - 1e-6 <= sparsity <= found[-1] + 1e-6:
            raise PatternError(
                f"{self} can have sparsities from {found[0]:g} to {found[-1]:g}, but "
                f"{float(sparsity):g} was requested. Choose one in that range, or other patterns."
            )
        for option in self.options:
            option.check(shape_OI, option.sparsity)

    def mask(self, score_OI: Tensor, sparsity: Share) -> Tensor:
        """Return the mask of the option with this sparsity."""
        return self.at(sparsity).mask(score_OI, sparsity)


def parse_pattern(text: str) -> Pattern:
    """Parse the command line's spelling of a pattern.

    ``layer``, ``row``, ``column``, ``N:M``, ``N:M:output``, or several N:M with commas between.
    """
    if text in ("layer", "row", "column"):
        return Unstructured(text)  # type: ignore[arg-type]
    if "," in text:
        options = [parse_pattern(part.strip()) for part in text.split(",")]
        if not all(isinstance(option, NM) for option in options):
            raise PatternError(f"A choice of patterns is one of N:M ones; got {text!r}.")
        return OneOf(tuple(cast(list[NM], options)))
    match = re.fullmatch(r"(\d+):(\d+)(?::(input|output))?", text)
    if match is None:
        raise PatternError(
            f"Unknown pattern {text!r}. Use layer, row, column, or N:M such as 2:4 or 4:8 "
            "(N kept of every M inputs; 2:4:output groups along outputs)."
        )
    return NM(int(match[1]), int(match[2]), match[3] or "input")  # type: ignore[arg-type]


def rows_compete(pattern: Pattern) -> bool:
    """Return whether the mask of a row depends on the scores of other rows."""
    if isinstance(pattern, NM):
        return pattern.along == "output"
    return not isinstance(pattern, Unstructured) or pattern.group != "row"


def check_sparsity(sparsity: Share) -> None:
    """Raise PatternError unless ``sparsity`` is a fraction."""
    ends = (sparsity.min(), sparsity.max()) if isinstance(sparsity, Tensor) else (sparsity,) * 2
    if not (0.0 <= ends[0] and ends[1] <= 1.0):
        raise PatternError(
            f"Sparsity is the fraction of weights to remove, 0 to 1; got {float(ends[0]):g}. "
            "For 50 % write 0.5."
        )


@overload
def removed(sparsity: float | Fraction, n: int) -> int: ...
@overload
def removed(sparsity: Tensor, n: int) -> Tensor: ...
def removed(sparsity: Share, n: int) -> int | Tensor:
    """Compute ``floor(sparsity · n)`` of the decimal as typed: 0.29 of 100 is 29, not 28."""
    if isinstance(sparsity, Tensor):
        return (sparsity.double() * n + 1e-6).floor().long()
    return int(Fraction(str(sparsity)) * n)


def _comparable(score_OI: Tensor) -> Tensor:
    if not bool(score_OI.isfinite().all()):
        raise NumericalError("The scores hold NaN or inf, so they cannot be compared.")
    return score_OI.float()


def _lowest(score_GN: Tensor, k: int) -> Tensor:
    """Mark the ``k`` lowest of each row; among equals, earlier positions come first."""
    groups, n = score_GN.shape
    if k == 0 or k == n:
        return torch.full((groups, n), k == n, dtype=torch.bool, device=score_GN.device)
    if n <= 32:
        return _lowest_of_few(score_GN, k)
    # Selection, not sorting: a fifth of the time of a stable sort on a 576 × 1536 layer.
    threshold_G1 = score_GN.kthvalue(k, dim=1, keepdim=True).values
    below_GN = score_GN < threshold_G1
    tied_GN = score_GN == threshold_G1
    spare_G1 = k - below_GN.sum(1, keepdim=True)
    if bool((tied_GN.sum(1, keepdim=True) == spare_G1).all()):
        return below_GN | tied_GN
    return below_GN | (tied_GN & (tied_GN.cumsum(1) <= spare_G1))


def _lowest_by_row(score_GN: Tensor, count_G: Tensor) -> Tensor:
    """Mark the lowest of each row, with a count for each row."""
    order_GN = score_GN.argsort(dim=1, stable=True)
    place_N = torch.arange(score_GN.shape[1], device=score_GN.device)
    goes_GN = place_N < count_G[:, None].to(score_GN.device)
    return torch.zeros_like(goes_GN).scatter_(1, order_GN, goes_GN)


def _lowest_of_few(score_GN: Tensor, k: int) -> Tensor:
    """Mark the lowest of short rows by counting, for each weight, those that come before it."""
    columns = score_GN.unbind(1)
    lowest = []
    for j, column_G in enumerate(columns):
        rank_G = torch.zeros_like(column_G, dtype=torch.int16)
        for i, other_G in enumerate(columns):
            if i != j:
                rank_G += (other_G <= column_G) if i < j else (other_G < column_G)
        lowest.append(rank_G < k)
    return torch.stack(lowest, 1)
