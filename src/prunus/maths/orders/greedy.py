"""The baseline: the best split of every pair of stripes, chosen greedily, with escapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from ..contracts import Pattern, Share
from ..patterns import NM
from .exchanges import Exchanges
from .retained import along_inputs, retained

FLOATS = 2**24  # held by one batch of pairs
WIDEST = 6  # M with 462 splits of 2M columns into two halves; of 8 there are 6,435


@dataclass(frozen=True)
class Greedy:
    """A greedy search that splits the 2M columns of two stripes of M again where that gains most.

    Passes over the pairs by falling gain, each stripe touched once a pass, until a pass gains
    nothing. An escape then applies a random exchange between a random pair of stripes, which may
    lose score, and the passes go on. Returns the best order seen.

    Up to M = 6 every split of a pair is tried (35 for M = 4, as in the paper). Above that there are
    too many, and the M² exchanges of one column for another take their place.

    Attributes:
        escapes: how often to escape; the paper compares with 100.
        seed: of the escapes.

    Reference: Pool & Yu 2021, "Channel permutations for N:M sparsity", for 2:4. Other N:M are ours,
    and so is that the best order is kept: the authors' code returns the last.
    """

    escapes: int = 100
    seed: int = 0

    def __call__(self, score_OI: Tensor, pattern: Pattern, sparsity: Share) -> Tensor:
        """Return the order, stripe after stripe; position p reads channel ``order_I[p]``."""
        pattern = along_inputs(pattern, score_OI)
        generator = torch.Generator().manual_seed(self.seed)
        order_I = torch.arange(score_OI.shape[1], device=score_OI.device)
        if pattern.keep == pattern.of or len(order_I) == pattern.of:
            return order_I
        search_among = Splits if pattern.of <= WIDEST else Exchanges
        boxes_KM = order_I.view(-1, pattern.of)
        search = search_among(score_OI.float().T.contiguous(), boxes_KM, pattern)
        best, best_I = retained(score_OI, pattern, order_I), order_I.clone()
        for escapes in range(self.escapes + 1):
            while search.one_round():
                pass
            now = retained(score_OI, pattern, search.boxes_KM.flatten())
            if now > best:
                best, best_I = now, search.boxes_KM.flatten().clone()
            if escapes < self.escapes:
                search.escape(generator)
        return best_I


class Splits:
    """The best split of every pair of stripes, and its gain."""

    def __init__(self, channels_IO: Tensor, boxes_KM: Tensor, pattern: NM) -> None:
        self.channels_IO, self.boxes_KM, self.pattern = channels_IO, boxes_KM.clone(), pattern
        self.halves = halves(pattern.of)
        self.least = 1e-6 * float(channels_IO.abs().sum())  # of all: less is rounding
        count = len(boxes_KM)
        self.gain_KK = torch.zeros(count, count, device=channels_IO.device)
        self.split_KK = torch.zeros(count, count, dtype=torch.int64, device=channels_IO.device)
        self._refresh(combinations(range(count), 2))

    def one_round(self) -> bool:
        """Apply the best splits of untouched stripes; return whether there were any."""
        touched: set[int] = set()
        for flat in self.gain_KK.flatten().argsort(descending=True).tolist():
            a, b = divmod(flat, len(self.gain_KK))
            if float(self.gain_KK[a, b]) <= self.least:
                break
            if a not in touched and b not in touched:
                first = self.halves[int(self.split_KK[a, b])]
                both = self._both(a, b)
                rest = [both[i] for i in range(len(both)) if i not in first]
                self._write(a, b, [*(both[i] for i in first), *rest])
                touched |= {a, b}
        self._refresh_of(touched)
        return bool(touched)

    def escape(self, generator: torch.Generator) -> None:
        """Exchange one random column of a random pair of stripes."""
        a, b = torch.randperm(len(self.boxes_KM), generator=generator)[:2].tolist()
        i, j = torch.randint(self.pattern.of, (2,), generator=generator).tolist()
        both = self._both(a, b)
        j += self.pattern.of
        both[i], both[j] = both[j], both[i]
        self._write(a, b, both)
        self._refresh_of({a, b})

    def _both(self, a: int, b: int) -> list[int]:
        return [*self.boxes_KM[a].tolist(), *self.boxes_KM[b].tolist()]

    def _write(self, a: int, b: int, both: list[int]) -> None:
        self.boxes_KM[a], self.boxes_KM[b] = torch.tensor(both).view(2, -1)

    def _refresh_of(self, touched: set[int]) -> None:
        pairs = {(min(a, b), max(a, b)) for a in touched for b in range(len(self.gain_KK))}
        self._refresh(pair for pair in sorted(pairs) if pair[0] != pair[1])

    def _refresh(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Recompute best split and gain of these pairs, in batches."""
        pairs_P2 = torch.tensor(list(pairs), dtype=torch.int64, device=self.gain_KK.device).view(
            -1, 2
        )
        both, rows = 2 * self.pattern.of, self.channels_IO.shape[1]
        for pairs_B2 in pairs_P2.split(max(FLOATS // (both * rows), 1)):
            columns_BCO = self.channels_IO[self.boxes_KM[pairs_B2].flatten(1)]
            kept_BS = torch.stack(
                [
                    kept(columns_BCO, first, self.pattern.keep)
                    + kept(columns_BCO, tuple({*range(both)} - {*first}), self.pattern.keep)
                    for first in self.halves
                ],
                1,
            )
            best_B, split_B = kept_BS.max(1)
            a_B, b_B = pairs_B2.T
            self.gain_KK[a_B, b_B] = best_B - kept_BS[:, 0]  # the stripes as they are
            self.split_KK[a_B, b_B] = split_B


@cache
def halves(size: int) -> list[tuple[int, ...]]:
    """Return the first half of every split of twice ``size`` columns; the second is the rest."""
    return [(0, *rest) for rest in combinations(range(1, 2 * size), size - 1)]


def kept(columns_BCO: Tensor, chosen: tuple[int, ...], keep: int) -> Tensor:
    """Sum the ``keep`` highest of the chosen columns, row by row, over all rows.

    For 2 of 4 it is max(h + h', a + b, c + d), h the higher of a pair: no sorting.
    """
    if keep == 1:
        return columns_BCO[:, list(chosen)].amax(1).sum(1)
    if (keep, len(chosen)) != (2, 4):
        return columns_BCO[:, list(chosen)].topk(keep, 1).values.sum((1, 2))
    a, b, c, d = (columns_BCO[:, i] for i in chosen)
    high_BO = torch.maximum(a, b) + torch.maximum(c, d)
    return torch.maximum(high_BO, torch.maximum(a + b, c + d)).sum(1)
