"""BESA's and OWL's arithmetic, and exact budgets, against plain loops and automatic gradients."""

import itertools

import pytest
import torch

from prunus.base.errors import InputError
from prunus.maths.patterns import NM, Unstructured, removed
from prunus.maths.shares import BESA, OWL
from prunus.maths.shares.besa import Budget, _State
from prunus.maths.shares.budget import choose_patterns, exact_counts
from prunus.maths.shares.kept import Ranks, Shares, flattest


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shares", [1, 5], ids=["of the layer", "of each row"])
def test_the_gradient_of_logits_is_that_of_the_soft_mask(shares):
    """With shared logits every row adds its part: the sum, not the mean."""
    weight_OI, onto_OI = random(5, 30), random(5, 30, seed=1)
    ranks = Ranks.of(weight_OI.abs(), 10)
    logit_RD = random(shares, 9, seed=2).requires_grad_()
    found = Shares.of(logit_RD)
    keep_OI = found.hard(ranks, "probability")
    masked_OI = found.masked(weight_OI, ranks, keep_OI)
    assert torch.equal(masked_OI.detach(), weight_OI * keep_OI)
    (grad_RD,) = torch.autograd.grad((masked_OI * onto_OI).sum(), logit_RD)
    soft_OI = Shares.of(logit_RD).soft(ranks)
    (expected_RD,) = torch.autograd.grad((weight_OI * soft_OI * onto_OI).sum(), logit_RD)
    torch.testing.assert_close(grad_RD, expected_RD)


def test_a_weight_whose_probability_to_go_is_the_share_goes():
    """Equation (5) says at least. Two candidates, β = ½ each: P is 1, ½, 0, and α = ½."""
    shares = Shares.of(torch.zeros(1, 2))
    assert shares.tail_RD.tolist() == [[1.0, 0.5, 0.0]]
    assert float(shares.share_R1) == 0.5
    ranks = Ranks.of(torch.arange(6.0)[None], 3)
    expected = [False, False, False, False, True, True]
    assert shares.hard(ranks, "probability").tolist() == [expected]


def test_what_is_counted_moves_as_the_share_does():
    logit_RD = random(3, 9).requires_grad_()
    shares = Shares.of(logit_RD)
    keep_OI = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    counted = shares.counted(keep_OI)
    assert float(counted.detach()) == pytest.approx(0.5)  # 6 of 12
    (grad_RD,) = torch.autograd.grad(counted, logit_RD)
    beta_RD = torch.softmax(logit_RD, 1)
    alpha = (beta_RD * torch.arange(1, 10) / 10).sum(1).mean()
    (expected_RD,) = torch.autograd.grad(alpha, logit_RD)
    torch.testing.assert_close(grad_RD, expected_RD)


@pytest.mark.parametrize("candidates", [4, 5, 10, 101])
@pytest.mark.parametrize("rule", ["probability", "count"])
def test_half_is_the_uniform_mixture_and_the_rest_is_symmetric(candidates, rule):
    """Also between two candidates, where the mask of one row says nothing."""
    assert flattest(0.5, candidates, rule).abs().max() < 1e-5
    for share in (0.3, 0.42):
        one_D, other_D = (flattest(x, candidates, rule) for x in (share, 1 - share))
        torch.testing.assert_close(one_D, other_D.flip(0), rtol=1e-3, atol=1e-4)
        assert one_D[0] > one_D[-1]


def test_the_deviation_counts_weights_not_layers():
    """A layer of 240 weights beside one of 24, in one budget; a third in its own."""
    shapes = {"large": (8, 30), "small": (4, 6), "apart": (5, 10)}
    weights = {
        name: random(*shape, seed=i).float() for i, (name, shape) in enumerate(shapes.items())
    }
    budgets = [Budget(("large", "small"), 0.5), Budget(("apart",), 0.4)]
    state = _State(BESA(), weights, {n: w.abs() for n, w in weights.items()}, budgets)
    with torch.no_grad():
        state.logits["large"] += torch.linspace(2, -2, 99)
        state.logits["small"] -= torch.linspace(2, -2, 99)
    masked = state.masked()
    gone = {name: int((masked[name] == 0).sum()) for name in weights}
    assert gone["large"] / 240 < 0.4 < 0.6 < gone["small"] / 24
    together, apart = (gone["large"] + gone["small"]) / (0.5 * 264), gone["apart"] / (0.4 * 50)
    expected = (together - 1) ** 2 + (apart - 1) ** 2
    assert float(state.deviation().detach()) == pytest.approx(expected, abs=1e-5)


# Epochs


class Counted:
    """A unit of one 4 × 30 layer, whose calls are counted by sample."""

    def __init__(self, samples):
        self.samples, self.seen = samples, [0] * samples
        self.weight_OI = random(4, 30).float()
        self.inputs = [random(6, 30, seed=i).float() for i in range(samples)]

    def has(self, sample):
        return True

    def forward(self, sample, weights):
        self.seen[sample] += torch.is_grad_enabled()  # not where the unit of the loss is found
        return self.inputs[sample] @ weights["w"].T

    def target(self, sample):
        return self.inputs[sample] @ self.weight_OI.T

    def learn(self, besa, **others):
        weights, scores = {"w": self.weight_OI}, {"w": self.weight_OI.abs()}
        return besa.learn(weights, scores, [Budget(("w",), 0.5)], self, **others)


@pytest.mark.parametrize(
    ("settings", "samples", "steps"),
    [({}, 128, 128), ({}, 16, 64), ({}, 3, 66), ({}, 100, 100), ({"steps": 65}, 64, 128),
     ({"epochs": 1}, 16, 16), ({"epochs": 3, "steps": 1000}, 5, 15), ({"steps": 1}, 7, 7)],
)  # fmt: skip
def test_every_sample_is_used_equally_often(settings, samples, steps):
    """The paper's 128 samples are 1 epoch; 16 are 4, which makes the same number of 64 steps."""
    unit, said = Counted(samples), []
    learned = unit.learn(BESA(rest=0, **settings), stepped=lambda *at: said.append(at))
    assert unit.seen == [steps // samples] * samples
    assert len(learned.losses) == steps == BESA(**settings).steps_over(samples)
    assert said == [(step, steps) for step in range(1, steps + 1)]


def test_the_rate_falls_to_0_over_all_epochs(monkeypatch):
    rates, own = [], _State.descend
    monkeypatch.setattr(
        _State,
        "descend",
        lambda self, loss, part, *a: (rates.append(part), own(self, loss, part, *a)),
    )
    Counted(5).learn(BESA(rest=0, epochs=4))
    assert rates == pytest.approx([1 - i / 20 for i in range(20)])


@pytest.mark.parametrize(("samples", "steps"), [(5, 20), (16, 16), (40, 40), (1, 16), (9, 18)])
def test_learning_rests_only_where_an_epoch_ends(samples, steps):
    """Shares always move by less than 1: it rests at the first look, after 16 steps or more."""
    unit = Counted(samples)
    assert len(unit.learn(BESA(rest=1.0, epochs=100)).losses) == steps
    assert set(unit.seen) == {steps // samples}


@pytest.mark.parametrize("bad", [{"epochs": -1}, {"rest": -0.1}, {"steps": 0}])
def test_numbers_of_steps_that_make_no_sense(bad):
    with pytest.raises(InputError, match=r"0 or more|at least one step"):
        BESA(**bad)


# Budgets


@pytest.mark.parametrize("seed", range(4))
def test_exact_counts_of_equal_groups_are_the_best_of_all(seed):
    """By trying every split: the largest remainders are rounded up, no others."""
    share_G = torch.rand(3, generator=torch.Generator().manual_seed(seed)).double()
    for total in range(1, 18):
        splits = (x for x in itertools.product(range(7), repeat=3) if sum(x) == total)
        best = min(
            splits, key=lambda x: sum((n / 6 - s) ** 2 for n, s in zip(x, share_G, strict=True))
        )
        assert exact_counts(share_G, torch.full((3,), 6), total).tolist() == list(best)


def test_a_pattern_goes_to_whom_it_is_nearest_in_steps():
    """0.6 is 0.4 of the way from 2:4 to 1:4, and 0.25 a third of the way from 7:8 to 2:4."""
    options = [NM(7, 8), NM(2, 4), NM(1, 4)]
    budget = 800 * (0.5 + 0.125) + 800 * 0.375  # enough for either step, not for both
    chosen = choose_patterns([0.6, 0.25], [800, 800], options, budget)
    assert [str(x) for x in chosen] == ["1:4", "7:8"]


def test_a_count_for_each_row_is_that_of_the_decimal_typed_and_ties_go_by_position():
    share_O = torch.tensor([0.29, 0.57, 0.5], dtype=torch.float64)
    assert float(share_O[0]) * 100 < 29  # what floor() would make 28
    assert removed(share_O, 100).tolist() == [29, 57, 50]
    mask_OI = Unstructured("row").mask(torch.ones(3, 100), share_O)
    for mask_I, count in zip(mask_OI, (29, 57, 50), strict=True):
        assert mask_I.tolist() == [False] * count + [True] * (100 - count)


def test_owls_mean_is_over_weights_not_layers():
    small_OI = torch.tensor([[10.0, 6, 6, 6, 6]])
    mean = (100 * 1 + 10 + 4 * 6) / 105
    assert 6 < 5 * mean < 10 < 5 * (1 + 34 / 5) / 2
    assert OWL().outliers([torch.ones(10, 10), small_OI]) == pytest.approx(1 / 105)
