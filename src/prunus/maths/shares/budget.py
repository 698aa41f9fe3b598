"""Exact counts from shares that add up only approximately."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import torch
from torch import Tensor

from ..contracts import Pattern, Plan, Share
from ..patterns import NM, OneOf, Unstructured
from ..views import LayerView


def total(layers: Sequence[LayerView], plan: Plan) -> tuple[int, Fraction]:
    """Return how many of all the layers' weights to remove, and the share that this is."""
    wanted, weights = Fraction(0), 0
    for layer in layers:
        share = plan[layer.name]
        if isinstance(share, Tensor):
            raise TypeError(f"{layer.name}: a budget is made of layers' shares, not of rows'.")
        n = layer.weight_OI.numel()
        wanted, weights = wanted + Fraction(str(share)) * n, weights + n
    return math.floor(wanted), wanted / weights


def settle(
    layers: Sequence[LayerView],
    found: Sequence[Tensor],
    patterns: Sequence[Pattern],
    budget: float,
) -> tuple[dict[str, Share], float]:
    """Return shares that add up to the budget, each of a kind that its layer's pattern can have.

    Args:
        layers: that meet the budget together.
        found: for each of them the shares of its rows (O,), or one for all (1,).
        patterns: of each of them; all ``OneOf``, or none.
        budget: weights that are to go.

    Returns:
        The shares by layer, and what is left of the budget: below 1 for unstructured patterns,
        below one weight a column where all of them compare columns.
    """
    shares: dict[str, Share] = {}
    sizes = [layer.weight_OI.numel() for layer in layers]
    if all(isinstance(pattern, OneOf) for pattern in patterns):
        means = [float(share_R.double().mean()) for share_R in found]
        chosen = choose_patterns(means, sizes, cast(OneOf, patterns[0]).options, budget)
        for layer, pattern, n in zip(layers, chosen, sizes, strict=True):
            shares[layer.name] = pattern.sparsity
            budget -= pattern.sparsity * n
        return shares, budget
    by_row = [pattern == Unstructured("row") for pattern in patterns]
    groups = [x if row else x.mean()[None] for x, row in zip(found, by_row, strict=True)]
    size_G = [torch.full((len(x),), n // len(x)) for x, n in zip(groups, sizes, strict=True)]
    share_G = torch.cat([x.double().cpu() for x in groups])
    whole_G = torch.cat(
        [
            torch.full_like(x, layer.shape[1] if pattern == Unstructured("column") else 1)
            for x, layer, pattern in zip(size_G, layers, patterns, strict=True)
        ]
    )
    counts = whole_counts(share_G, torch.cat(size_G), int(budget), whole_G)
    for layer, count_R, row in zip(
        layers, counts.split([len(x) for x in groups]), by_row, strict=True
    ):
        outputs, inputs = layer.shape
        if row:
            count_O = count_R if len(count_R) == outputs else spread(int(count_R), outputs)
            shares[layer.name] = count_O.double() / inputs
        else:
            shares[layer.name] = Fraction(int(count_R), outputs * inputs)
    return shares, budget - int(counts.sum())


def exact_counts(share_G: Tensor, size_G: Tensor, total: int) -> Tensor:
    """Return how many weights of each group to remove, ``total`` in all, close to the shares.

    The change that is smallest in the sum of squares over all weights is one step up or down for
    all groups (those that reach 0 or 1 stay there), found by bisection. Then counts are rounded
    down, and the largest remainders get one more.

    Args:
        share_G: learned shares of the groups; any numbers.
        size_G: weights in each group.
        total: from 0 to the sum of the sizes.
    """
    share_G, size_G = share_G.double(), size_G.double()
    low, high = -1 - float(share_G.max()), 1 - float(share_G.min())
    for _ in range(80):
        middle = (low + high) / 2
        sum_ = float(((share_G + middle).clamp(0, 1) * size_G).sum())
        low, high = (middle, high) if sum_ <= total else (low, middle)
    wanted_G = (share_G + low).clamp(0, 1) * size_G
    count_G = (wanted_G + 1e-9).floor().minimum(size_G)
    missing = total - int(count_G.sum())
    remainder_G = (wanted_G - count_G).masked_fill(count_G >= size_G, -1)
    count_G[remainder_G.argsort(descending=True, stable=True)[:missing]] += 1
    return count_G.long()


def whole_counts(share_G: Tensor, size_G: Tensor, total: int, whole_G: Tensor) -> Tensor:
    """Return the same counts in multiples of ``whole_G``: compared columns lose equally many each.

    Groups whose weights can be removed one by one make up for the rest; without such groups fewer
    than ``total`` are removed.
    """
    count_G = exact_counts(share_G, size_G, total)
    free_G = whole_G == 1
    if bool(free_G.all()):
        return count_G
    count_G -= count_G % whole_G
    spare = int(size_G[free_G].sum())
    for group in (share_G * size_G - count_G).argsort(descending=True, stable=True).tolist():
        whole, left = int(whole_G[group]), total - int(count_G[~free_G].sum())
        if not free_G[group] and left > spare and left >= whole:
            count_G[group] += min(whole, int(size_G[group] - count_G[group]))
    if spare:
        left = min(max(total - int(count_G[~free_G].sum()), 0), spare)
        count_G[free_G] = exact_counts(share_G[free_G], size_G[free_G], left)
    return count_G


def spread(count: int, rows: int) -> Tensor:
    """Spread ``count`` over rows as evenly as possible; some have one more."""
    edge = torch.arange(rows + 1) * count // rows
    return edge[1:] - edge[:-1]


def choose_patterns(
    shares: Sequence[float], sizes: Sequence[int], options: Sequence[NM], budget: float
) -> list[NM]:
    """Choose one of the N:M patterns for each layer, removing at most ``budget`` weights.

    Each layer first gets the sparsest option that is not above its share; then those that fell
    furthest below it, as a part of the step to the next option, get that one while it fits.
    """
    ladder = sorted(set(options), key=lambda option: option.sparsity)
    rungs = [max((i for i, o in enumerate(ladder) if o.sparsity <= s), default=0) for s in shares]
    left = budget - sum(ladder[i].sparsity * n for i, n in zip(rungs, sizes, strict=True))
    while left < 0 and any(rungs):  # a share was below the least sparse option
        above = {i: ladder[r].sparsity - shares[i] for i, r in enumerate(rungs) if r}
        layer = max(above, key=lambda i: above[i])
        rungs[layer] -= 1
        left += _step(ladder, rungs[layer]) * sizes[layer]
    while True:
        below = {
            i: (shares[i] - ladder[r].sparsity) / _step(ladder, r)
            for i, r in enumerate(rungs)
            if r + 1 < len(ladder) and _step(ladder, r) * sizes[i] <= left * (1 + 1e-9)
        }
        if not below:
            return [ladder[rung] for rung in rungs]
        layer = max(below, key=lambda i: below[i])
        left -= _step(ladder, rungs[layer]) * sizes[layer]
        rungs[layer] += 1


def _step(ladder: Sequence[NM], rung: int) -> float:
    return ladder[rung + 1].sparsity - ladder[rung].sparsity
