"""The baseline: the best split of every pair of stripes, chosen greedily, with escapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ...base.errors import PatternError
from ..contracts import Pattern, Share
from .retained import along_inputs, retained

FLOATS = 2**24  # held by one batch of pairs
# The first half of every split of eight columns into two times four; the second half is the rest.
SPLITS = [(0, *rest) for rest in combinations(range(1, 8), 3)]


@dataclass(frozen=True)
class Greedy:
    """A greedy search that splits the 8 columns of two stripes of 4 again wherever that gains most.

    Passes over the pairs by falling gain, each stripe touched once a pass, until a pass gains
    nothing. An escape then applies a random exchange between a random pair of stripes, which may
    lose score, and the passes go on. Returns the best order seen.

    Attributes:
        escapes: how often to escape; the paper compares with 100.
        seed: of the escapes.

    2:4 alone. Reference: Pool & Yu 2021, "Channel permutations for N:M sparsity"; here the best
    order is kept, where the authors' code returns the last.
    """

    escapes: int = 100
    seed: int = 0

    def __call__(self, score_OI: Tensor, pattern: Pattern, sparsity: Share) -> Tensor:
        """Return the order, stripe after stripe; position p reads channel ``order_I[p]``."""
        pattern = along_inputs(pattern, score_OI)
        if (pattern.keep, pattern.of) != (2, 4):
            raise PatternError(
                f"The greedy search only works for 2:4, not for {pattern}. Use Assignment."
            )
        generator = torch.Generator().manual_seed(self.seed)
        order_I = torch.arange(score_OI.shape[1], device=score_OI.device)
        search = _Pairs(score_OI.float().T.contiguous(), order_I.view(-1, 4))
        best, best_I = retained(score_OI, pattern, order_I), order_I.clone()
        for escapes in range(self.escapes + 1):
            while search.one_pass():
                pass
            now = retained(score_OI, pattern, search.stripes_K4.flatten())
            if now > best:
                best, best_I = now, search.stripes_K4.flatten().clone()
            if escapes < self.escapes and len(search.stripes_K4) > 1:
                search.escape(generator)
        return best_I


class _Pairs:
    """The best split of every pair of stripes, and its gain."""

    def __init__(self, channels_IO: Tensor, stripes_K4: Tensor) -> None:
        self.channels_IO, self.stripes_K4 = channels_IO, stripes_K4.clone()
        self.least = 1e-6 * float(channels_IO.abs().sum())  # of all: less is rounding
        count = len(stripes_K4)
        self.gain_KK = torch.zeros(count, count, device=channels_IO.device)
        self.split_KK = torch.zeros(count, count, dtype=torch.int64, device=channels_IO.device)
        self._refresh(combinations(range(count), 2))

    def one_pass(self) -> bool:
        """Apply the best splits of untouched stripes; return whether there were any."""
        touched: set[int] = set()
        for flat in self.gain_KK.flatten().argsort(descending=True).tolist():
            a, b = divmod(flat, len(self.gain_KK))
            if float(self.gain_KK[a, b]) <= self.least:
                break
            if a not in touched and b not in touched:
                first = SPLITS[int(self.split_KK[a, b])]
                both = self._both(a, b)
                rest = [both[i] for i in range(8) if i not in first]
                self._write(a, b, [*(both[i] for i in first), *rest])
                touched |= {a, b}
        self._refresh_of(touched)
        return bool(touched)

    def escape(self, generator: torch.Generator) -> None:
        """Exchange one random column of a random pair of stripes."""
        a, b = torch.randperm(len(self.stripes_K4), generator=generator)[:2].tolist()
        i, j = torch.randint(4, (2,), generator=generator).tolist()
        both = self._both(a, b)
        both[i], both[4 + j] = both[4 + j], both[i]
        self._write(a, b, both)
        self._refresh_of({a, b})

    def _both(self, a: int, b: int) -> list[int]:
        return [*self.stripes_K4[a].tolist(), *self.stripes_K4[b].tolist()]

    def _write(self, a: int, b: int, both: list[int]) -> None:
        self.stripes_K4[a], self.stripes_K4[b] = torch.tensor(both).view(2, 4)

    def _refresh_of(self, touched: set[int]) -> None:
        pairs = {(min(a, b), max(a, b)) for a in touched for b in range(len(self.gain_KK))}
        self._refresh(pair for pair in sorted(pairs) if pair[0] != pair[1])

    def _refresh(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Recompute best split and gain of these pairs, in batches."""
        pairs_P2 = torch.tensor(list(pairs), dtype=torch.int64, device=self.gain_KK.device).view(
            -1, 2
        )
        rows = self.channels_IO.shape[1]
        for pairs_B2 in pairs_P2.split(max(FLOATS // (8 * rows), 1)):
            columns_B8O = self.channels_IO[self.stripes_K4[pairs_B2].flatten(1)]
            kept_BS = torch.stack(
                [
                    _two_of_four(columns_B8O, first)
                    + _two_of_four(columns_B8O, tuple(set(range(8)) - set(first)))
                    for first in SPLITS
                ],
                1,
            )
            best_B, split_B = kept_BS.max(1)
            a_B, b_B = pairs_B2.T
            self.gain_KK[a_B, b_B] = best_B - kept_BS[:, SPLITS.index((0, 1, 2, 3))]
            self.split_KK[a_B, b_B] = split_B


def _two_of_four(columns_B8O: Tensor, four: tuple[int, ...]) -> Tensor:
    """Sum the two highest of four columns over rows: max(h + h', a + b, c + d), h the higher."""
    a, b, c, d = (columns_B8O[:, i] for i in four)
    high_BO = torch.maximum(a, b) + torch.maximum(c, d)
    return torch.maximum(high_BO, torch.maximum(a + b, c + d)).sum(1)
