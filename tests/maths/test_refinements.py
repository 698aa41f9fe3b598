"""Exchanges against brute force, and what they may never do: raise the loss, break the pattern."""

from itertools import pairwise, product

import pytest
import torch

from helpers.problems import loss, optimum, problem
from prunus.base.errors import InputError
from prunus.maths.gram import Gram
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.pruners import MRP, Compose, SparseGPT
from prunus.maths.refinements import Swaps
from prunus.maths.refinements.bundles import exchange
from prunus.maths.refinements.cells import Cells
from prunus.maths.refinements.compensated import _OptimalValues
from prunus.maths.refinements.dense import _DenseValues, one_by_one
from prunus.maths.scores import OBS, Wanda
from prunus.maths.stats import ColumnNorm, gather
from prunus.maths.updates import LeastSquares
from prunus.methods.build import build_method

PATTERNS = [
    Unstructured("layer"),
    Unstructured("row"),
    Unstructured("column"),
    NM(2, 4),
    NM(4, 8),
    NM(1, 4),
    NM(2, 4, "output"),
]


def same_counts(pattern, mask_OI, new_OI):
    if isinstance(pattern, NM):
        return (pattern.groups(new_OI).sum(1) == pattern.keep).all()
    axis = 0 if pattern.group == "column" else 1
    return torch.equal(mask_OI.sum(axis), new_OI.sum(axis))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("against", ["dense", "compensated"])
@pytest.mark.parametrize("tokens", [400, 12])  # 12: a Gram of rank 12 for 32 inputs
def test_swaps_lower_the_loss_and_keep_the_pattern(pattern, against, tokens):
    weight_OI, stats, matrix_II = problem(outputs=24, tokens=tokens)
    sparsity = pattern.sparsity if isinstance(pattern, NM) else 0.5
    mask_OI = pattern.mask(weight_OI.abs(), sparsity)
    given_OI = mask_OI.clone()
    new_OI, notes = Swaps(against)(weight_OI, mask_OI, stats, pattern)
    assert torch.equal(mask_OI, given_OI)
    assert same_counts(pattern, mask_OI, new_OI)
    assert notes["swaps"] == int((new_OI & ~mask_OI).sum()) > 0

    def values(mask_OI):
        return weight_OI * mask_OI if against == "dense" else optimum(weight_OI, mask_OI, matrix_II)

    before, after = (loss(values(m), weight_OI, matrix_II) for m in (mask_OI, new_OI))
    assert after < 0.95 * before
    assert after / before <= notes["loss_after_swaps"] * (1 + 1e-2)


def best_pair(weight_I, mask_I, matrix_II):
    """All exchanges of one row, by their definition."""
    losses = {}
    for k, p in product(mask_I.nonzero().flatten(), (~mask_I).nonzero().flatten()):
        tried_I = mask_I.clone()
        tried_I[k], tried_I[p] = False, True
        losses[int(k), int(p)] = loss((weight_I * tried_I)[None], weight_I[None], matrix_II)
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_each_single_exchange_equals_brute_force_on_small_rows(monkeypatch, seed):
    weight_OI, stats, matrix_II = problem(outputs=6, inputs=14, seed=seed)
    mask_OI = Unstructured("row").mask(weight_OI.abs(), 0.5)
    cells = Cells.of(Unstructured("row"), (6, 14))
    masks = []
    taken = Cells.place

    def watched(self, *args):
        masks.append(kept_OI.clone())
        return taken(self, *args)

    monkeypatch.setattr(Cells, "place", watched)
    kept_OI = mask_OI.clone()
    one_by_one(weight_OI, kept_OI, stats[Gram].damped(0.01), cells)
    steps = [*masks[::2], kept_OI]  # place is asked twice a step
    assert len(steps) > 1
    for before_OI, after_OI in pairwise(steps):
        for weight_I, before_I, after_I in zip(weight_OI, before_OI, after_OI, strict=True):
            if torch.equal(before_I, after_I):
                continue
            losses = best_pair(weight_I, before_I, matrix_II)
            found = loss((weight_I * after_I)[None], weight_I[None], matrix_II)
            assert found == pytest.approx(min(losses.values()), rel=1e-5)
    for weight_I, kept_I in zip(weight_OI, kept_OI, strict=True):  # nothing improves any more
        now = loss((weight_I * kept_I)[None], weight_I[None], matrix_II)
        assert min(best_pair(weight_I, kept_I, matrix_II).values()) > now * (1 - 2e-5)


def test_compensated_swaps_come_near_the_best_mask_of_all():
    """Ten weights, five kept: 252 masks, tried one by one."""
    weight_OI, stats, matrix_II = problem(outputs=8, inputs=10)
    masks = [torch.tensor(m, dtype=torch.bool) for m in product([0, 1], repeat=10) if sum(m) == 5]
    best = 0.0
    for row_I in weight_OI:
        best += min(
            loss(optimum(row_I[None], mask_I[None], matrix_II), row_I[None], matrix_II)
            for mask_I in masks
        )
    mask_OI = Unstructured("row").mask(OBS()(weight_OI, stats), 0.5)
    new_OI, _ = Swaps()(weight_OI, mask_OI, stats, Unstructured("row"))
    before, after = (
        loss(optimum(weight_OI, m, matrix_II), weight_OI, matrix_II) for m in (mask_OI, new_OI)
    )
    assert best <= after < before
    assert after - best < 0.5 * (before - best)


@pytest.mark.parametrize("against", ["dense", "compensated"])
def test_prices_are_what_one_weight_changes(monkeypatch, against):
    """Of dense values exactly; of optimal ones, with e = 1 / H_ii, while all others stay."""
    monkeypatch.setattr("prunus.maths.refinements.compensated.FIRST_TOLERANCE", 1e-9)
    weight_OI, stats, matrix_II = problem(outputs=3, inputs=12)
    system = stats[Gram].damped(0.01)
    mask_OI = Unstructured("row").mask(weight_OI.abs(), 0.5)
    if against == "dense":
        values, now_OI = _DenseValues(weight_OI, mask_OI, system), weight_OI * mask_OI
    else:
        values = _OptimalValues(weight_OI, mask_OI, system)
        values.e_I, now_OI = 1 / system.matrix_II.diagonal(), values.new_OI
    gain_OI, cost_OI = values.prices(torch.arange(3), mask_OI)
    for o, i in product(range(3), range(12)):
        row_I, dense_I = now_OI[o].double(), weight_OI[o].double()
        before = loss(row_I[None], dense_I[None], matrix_II)
        assert float(values.loss_O[o]) == pytest.approx(before, rel=1e-4)
        tried_I = row_I.clone()
        if mask_OI[o, i]:
            tried_I[i] = 0
        elif against == "dense":
            tried_I[i] = dense_I[i]
        else:  # the minimum over this weight alone
            tried_I[i] += ((dense_I - row_I) @ matrix_II[:, i]) / matrix_II[i, i]
        change = loss(tried_I[None], dense_I[None], matrix_II) - before
        found = float(cost_OI[o, i]) if mask_OI[o, i] else -float(gain_OI[o, i])
        assert found == pytest.approx(change, rel=1e-3, abs=1e-3 * before)


class Watched:
    """Values of which every exchange gains 1 and helps only as often as is said."""

    def __init__(self, rows, helps):
        self.loss_O, self.helps, self.exchanged = torch.zeros(rows), helps, []

    def prices(self, rows_R, kept_RI):
        self.kept_RI = kept_RI
        return torch.ones(kept_RI.shape), torch.zeros(kept_RI.shape)

    def attempt(self, rows_R, tried_RI):
        self.exchanged.append((tried_RI & ~self.kept_RI).sum(1).tolist())
        return torch.full((len(rows_R),), -1.0 if len(self.exchanged) <= self.helps else 1.0)

    def accept(self, rows_R, better_R): ...


@pytest.mark.parametrize("pattern", [Unstructured("row"), NM(2, 4)], ids=str)
def test_a_bundle_has_a_twentieth_of_a_rows_weights_at_first_then_twice_or_half_as_many(pattern):
    mask_OI = torch.arange(200) % 2 == 0
    values = Watched(2, helps=1)
    cells = Cells.of(pattern, (2, 200))
    exchange(mask_OI.expand(2, -1), values, cells, rounds=20)
    expected = [10, 20, 10, 5, 2, 1]
    assert values.exchanged == [[n, n] for n in expected]


def test_units_that_an_exchange_made_worse_are_put_back(monkeypatch):
    weight_OI, stats, _ = problem(outputs=3, inputs=8)
    mask_OI = Unstructured("row").mask(weight_OI.abs(), 0.5)

    def flipped(weight_RI, mask_RI, *_):
        return ~mask_RI, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.5, 3.0])

    monkeypatch.setattr("prunus.maths.refinements.swaps.exchange_dense", flipped)
    new_OI, notes = Swaps("dense")(weight_OI, mask_OI, stats, Unstructured("row"))
    assert torch.equal(new_OI, torch.stack([~mask_OI[0], mask_OI[1], ~mask_OI[2]]))
    assert notes == {"swaps": 8, "loss_after_swaps": pytest.approx(5.5 / 6)}


@pytest.mark.parametrize("against", ["dense", "compensated"])
@pytest.mark.parametrize("pattern", [Unstructured("layer"), Unstructured("column"), NM(2, 4)])
@pytest.mark.parametrize("case", ["nothing pruned", "all pruned", "one row", "dead", "bfloat16"])
def test_swaps_at_the_ends(against, pattern, case):
    weight_OI, stats, _ = problem(outputs=1 if case == "one row" else 7, inputs=8)
    if case == "dead":
        inputs_TI = torch.randn(50, 8)
        inputs_TI[:, 2:6] = 0
        stats = gather(inputs_TI, (Gram,))
    if case == "bfloat16":
        weight_OI = weight_OI.bfloat16()
    mask_OI = pattern.mask(weight_OI.abs(), 0.5)
    if case.endswith("pruned"):
        mask_OI = torch.full_like(mask_OI, case == "nothing pruned")
    new_OI, notes = Swaps(against)(weight_OI, mask_OI, stats, pattern)
    assert new_OI.sum() == mask_OI.sum()
    assert 0 <= notes["loss_after_swaps"] <= 1


@pytest.mark.parametrize("against", ["dense", "compensated"])
def test_swaps_leave_dead_weights_pruned(against):
    """By the Gram itself: H has a diagonal for dead inputs, which matter to nobody."""
    generator = torch.Generator().manual_seed(0)
    inputs_TI = torch.randn(300, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    inputs_TI[:, ::4] = 0
    weight_OI, stats = torch.randn(24, 32, generator=generator), gather(inputs_TI, (Gram,))
    gram_II = stats[Gram].matrix_II.double()
    mask_OI = Unstructured("row").mask(OBS()(weight_OI, stats), 0.5)
    new_OI, notes = Swaps(against)(weight_OI, mask_OI, stats, Unstructured("row"))
    assert notes["swaps"] > 0
    assert not new_OI[:, ::4].any()
    before, after = (
        loss(optimum_or_dense(weight_OI, m, stats, against), weight_OI, gram_II)
        for m in (mask_OI, new_OI)
    )
    assert after < before


def optimum_or_dense(weight_OI, mask_OI, stats, against):
    if against == "dense":
        return weight_OI * mask_OI
    return LeastSquares(tolerance=1e-6)(weight_OI, mask_OI, stats)


@pytest.mark.parametrize(
    "pruner",
    [
        Compose(Wanda(), NM(2, 4), refinement=Swaps("dense")),
        Compose(Wanda(), Unstructured("row"), refinement=Swaps(), update=LeastSquares()),
        SparseGPT(refinement=Swaps()),
        SparseGPT(NM(2, 4), refinement=Swaps()),
        MRP(refinement=Swaps()),
        MRP(NM(2, 4), "M", "M", refinement=Swaps()),
        MRP(NM(2, 4), "M", "S", refinement=Swaps()),
    ],
    ids=repr,
)
def test_a_refined_pruner_ends_lower_with_the_same_counts(pruner):
    from dataclasses import replace

    weight_OI, _, matrix_II = problem(outputs=32, inputs=64, tokens=500)
    generator = torch.Generator().manual_seed(0)
    torch.randn(32, 64, generator=generator)  # the draws of problem()
    mixing_II = torch.randn(64, 64, generator=generator) / 8
    stats = gather(torch.randn(500, 64, generator=generator) @ mixing_II, (Gram, ColumnNorm))
    refined = pruner(weight_OI, stats, 0.5)
    plain = replace(pruner, refinement=None)(weight_OI, stats, 0.5)
    assert (refined.weight_OI[~refined.mask_OI] == 0).all()
    assert same_counts(pruner.pattern, plain.mask_OI, refined.mask_OI)
    assert refined.notes["swaps"] > 0
    costs = [loss(p.weight_OI, weight_OI, matrix_II) for p in (plain, refined)]
    assert costs[1] < 0.97 * costs[0]


def test_swaps_are_against_the_values_that_the_weights_will_have():
    def against(*args, **kwargs):
        return build_method(*args, refine="swaps", **kwargs).pruner.refinement.against

    assert against("wanda") == "dense"
    assert against("wanda", update="least-squares") == "compensated"
    assert against("sparsegpt") == against("mrp-sm") == "compensated"
    assert build_method("mrp-sm", refine="none") == build_method("mrp-sm")
    dass = build_method("dass", refine="swaps", update="sparsegpt")
    assert (
        dass.gate_up.refinement
        == dass.down.refinement
        == dass.rest.refinement
        == Swaps("compensated")
    )
    tuned = build_method("mrp-sm", refine="swaps", settings={"refinement.rounds": 3})
    assert tuned.pruner.refinement == Swaps(rounds=3)
    with pytest.raises(InputError, match=r"refinement 'swap'.*Did you mean 'swaps'"):
        build_method("wanda", refine="swap")
