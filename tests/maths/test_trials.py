"""Searches for shares on functions that are known, and the masks and divergence behind them."""

import math
from fractions import Fraction

import pytest
import torch

from prunus.base.errors import InputError
from prunus.maths.likeliest import Likeliest
from prunus.maths.patterns import NM, OneOf, Unstructured
from prunus.maths.shares import Evolve, Slope
from prunus.maths.shares.slope import line_search
from prunus.maths.shares.trials import depths, threshold


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Bowl:
    """Σ (trial − best)², read on any part of the text; counts what was asked."""

    def __init__(self, best, pieces=32):
        self.best, self.pieces, self.asked = best, pieces, []

    def __call__(self, trials, pieces):
        self.asked.append((len(trials), len(pieces)))
        assert all(0 <= piece < self.pieces for piece in pieces)
        return [
            sum((a - b) ** 2 for a, b in zip(trial, self.best, strict=True)) for trial in trials
        ]


# Masks


@pytest.mark.parametrize("group", ["layer", "row", "column"])
def test_a_comparison_of_depths_is_the_mask_at_every_share(group):
    score_OI = random(12, 20).abs()
    score_OI[3, 4:9] = score_OI[5, 1]  # ties
    pattern = Unstructured(group)
    depth_OI = depths(score_OI, pattern)
    for share in (0.0, 0.05, 0.25, 0.5, Fraction(1, 3), Fraction(7, 20), 0.77, 0.95, 1.0):
        expected_OI = pattern.mask(score_OI, share)
        assert torch.equal(depth_OI > threshold(float(share)), expected_OI), share


def test_a_choice_of_patterns_goes_one_after_the_other():
    pattern = OneOf((NM(3, 4), NM(1, 4), NM(2, 4)))
    score_OI = random(6, 16).abs()
    depth_OI = depths(score_OI, pattern)
    for option in pattern.options:
        expected_OI = option.mask(score_OI, option.sparsity)
        assert torch.equal(depth_OI > threshold(option.sparsity), expected_OI)


# Divergence


def test_divergence_is_that_of_the_likeliest_and_all_others():
    dense_TV, other_TV = random(9, 50) * 3, random(9, 50, seed=1) * 3
    found = Likeliest.of(dense_TV, k=7).divergence(other_TV)
    expected = whole = 0.0
    for dense_V, other_V in zip(dense_TV.double(), other_TV.double(), strict=True):
        p_V, q_V = dense_V.softmax(0).tolist(), other_V.softmax(0).tolist()
        whole += sum(p * math.log(p / q) for p, q in zip(p_V, q_V, strict=True))
        best = sorted(range(50), key=lambda v: -p_V[v])[:7]
        pairs = [(p_V[v], q_V[v]) for v in best]
        pairs.append((1 - sum(p for p, _ in pairs), 1 - sum(q for _, q in pairs)))
        expected += sum(p * math.log(p / q) for p, q in pairs)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found < whole
    assert Likeliest.of(dense_TV).divergence(other_TV) == pytest.approx(whole, rel=1e-4)
    assert Likeliest.of(dense_TV, k=7).divergence(dense_TV) == pytest.approx(0, abs=1e-5)


def test_divergence_of_many_tokens_is_the_sum_over_them():
    dense_TV, other_TV = random(600, 30), random(600, 30, seed=1)
    parts = sum(
        Likeliest.of(x[None], k=5).divergence(y[None])
        for x, y in zip(dense_TV, other_TV, strict=True)
    )
    assert Likeliest.of(dense_TV, k=5).divergence(other_TV) == pytest.approx(parts, rel=1e-4)


# Slope


@pytest.mark.parametrize("minimum", [-0.31, -0.02, 0.0, 0.11, 0.4])
def test_line_search_ends_beside_the_minimum(minimum):
    found = line_search(lambda xs: [abs(x - minimum) ** 1.5 for x in xs], 0.4, halvings=5)
    assert abs(min(found, key=found.get) - minimum) <= 0.2 / 2**5
    assert all(abs(x) <= 0.4 for x in found)


def test_slope_is_the_formula_and_its_sign_is_found():
    blocks, beta = [0, 1, 2, 3, 4], 0.03
    line = [beta * (block - 2) for block in blocks]
    judge = Bowl(line)
    found = Slope(halvings=4).search(blocks, 0.5, judge)
    assert found.trial == pytest.approx(line, abs=0.1 / 2**4)
    assert found.steps[found.losses.index(found.loss)] == pytest.approx(beta, abs=0.01)
    assert found.uniform == pytest.approx(sum(x * x for x in line))
    assert judge.asked == Slope(halvings=4).rounds(32)
    assert Slope().search(blocks, 0.5, Bowl([0.0] * 5)).trial == (0.0,) * 5


def test_slope_leaves_every_share_within_its_bounds():
    found = Slope(reach=0.5).search([0, 1, 2], 0.9, Bowl([-1.0, 0.0, 1.0]))
    assert found.trial == pytest.approx((-0.1, 0, 0.1))


# Evolve


def test_evolve_descends_and_keeps_its_sum():
    best = [0.1, -0.1, 0.04, -0.04, 0.0, 0.0]
    judge, evolve = Bowl(best), Evolve(generations=40, start="uniform")
    found = evolve.search(range(6), 0.5, judge)
    assert found.losses == sorted(found.losses, reverse=True)
    assert found.loss < 0.05 * found.uniform
    assert found.uniform == pytest.approx(sum(x * x for x in best))
    assert sum(found.trial) == pytest.approx(0)
    assert found.loss == pytest.approx(Bowl(best)([found.trial], range(32))[0])
    assert judge.asked == evolve.rounds(32)


def test_evolve_repeats_itself_and_follows_its_seed():
    best = [0.3, -0.3, 0.1, -0.1]
    run = {"generations": 3, "offspring": 4, "start": "uniform"}
    first, again, other = (
        Evolve(**run, seed=seed).search(range(4), 0.5, Bowl(best)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.trial != other.trial


def test_evolve_is_never_worse_than_where_it_starts():
    """The first rounds mislead it: they prefer what is worst on the whole text."""

    class Misleading(Bowl):
        def __call__(self, trials, pieces):
            losses = super().__call__(trials, pieces)
            return losses if len(pieces) == self.pieces else [-loss for loss in losses]

    found = Evolve(generations=8, start="uniform").search(range(5), 0.5, Misleading([0.0] * 5))
    assert (found.trial, found.loss) == ((0.0,) * 5, found.uniform)


def test_evolve_starts_where_slope_ends():
    line = [-0.05, 0.0, 0.05]
    judge = Bowl(line)
    found = Evolve(generations=2).search([0, 1, 2], 0.5, judge)
    assert found.losses[0] == pytest.approx(0)
    assert judge.asked == Evolve(generations=2).rounds(32)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Slope(reach=0), "reach is above 0"),
        (lambda: Slope(tokens=100), "pieces of at least 2 tokens"),
        (lambda: Evolve(per="row"), "per is block or layer, not 'row'"),
        (lambda: Evolve(start="owl"), "start is uniform or slope"),
        (lambda: Evolve(step=0), "between 0 and 1"),
        (lambda: Evolve(offspring=0), "offspring is 0; it must be 1 or more"),
    ],
)
def test_settings_that_cannot_be(make, said):
    with pytest.raises(InputError, match=said):
        make()
