"""Orders of channels against a literal implementation of the paper, and brute force."""

from itertools import combinations, permutations, product

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from transformers import AutoModelForCausalLM

import prunus
from helpers.models import MODELS
from prunus.base.errors import InputError, MissingStatisticError, PatternError
from prunus.maths.gram import Gram
from prunus.maths.orders import Assignment, Greedy, Heuristic, Retained
from prunus.maths.orders.assignment import _refill
from prunus.maths.orders.exchanges import Exchanges
from prunus.maths.orders.greedy import halves, kept
from prunus.maths.orders.orders import Orders
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.pruners import Compose, InOrder
from prunus.maths.scores import Magnitude
from prunus.maths.stats import ColumnNorm, TokenSample, gather
from prunus.methods.build import build_method

ALL = [Heuristic(), Heuristic(snake=False), Assignment(), Greedy(escapes=5)]
TWO_FOUR = NM(2, 4)


def scores(outputs=24, inputs=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channel_I = (0.7 * torch.randn(inputs, generator=generator)).exp()
    return torch.randn(outputs, inputs, generator=generator).abs() * channel_I


def literal_retained(score_OI, order, keep, of):
    """Row by row and group by group, with Python's own sort."""
    return sum(
        sum(sorted((float(row[i]) for i in order[lo : lo + of]), reverse=True)[:keep])
        for row in score_OI.double()
        for lo in range(0, len(order), of)
    )


def literal_refill(score_OI, boxes, keep, of, slot):
    """The paper's step 2 for one slot: the K × K matrix by its definition, then LSA."""
    taken = [box[slot] for box in boxes]
    matrix = [
        [
            literal_retained(score_OI, [*box[:slot], candidate, *box[slot + 1 :]], keep, of)
            for candidate in taken
        ]
        for box in boxes
    ]
    rows, chosen = linear_sum_assignment(matrix, maximize=True)
    return sum(matrix[row][which] for row, which in zip(rows, chosen, strict=True))


@pytest.mark.parametrize("permutation", ALL, ids=repr)
def test_an_order_names_every_channel_once_and_is_measured_literally(permutation):
    score_OI = scores()
    order_I = permutation(score_OI, TWO_FOUR, 0.5)
    assert sorted(order_I.tolist()) == list(range(32))
    found = Retained.of(score_OI, TWO_FOUR, order_I)
    assert found.score == pytest.approx(literal_retained(score_OI, order_I.tolist(), 2, 4))
    assert found.stored == pytest.approx(literal_retained(score_OI, range(32), 2, 4))
    best = sum(sum(sorted(row.tolist(), reverse=True)[:16]) for row in score_OI.double())
    assert found.row_optimum == pytest.approx(best)
    assert found.stored < found.score < found.row_optimum
    assert 0 < found.gap_closed < 1


def test_the_heuristic_deals_as_the_paper_and_as_the_code():
    """Figure 3's setting: 8 channels, 2 boxes; the importance of channel i is i."""
    score_OI = torch.arange(8.0).expand(4, 8)
    plain = Heuristic(snake=False)(score_OI, TWO_FOUR, 0.5).tolist()
    assert plain == [7, 5, 3, 1, 6, 4, 2, 0]
    assert Heuristic()(score_OI, TWO_FOUR, 0.5).tolist() == [7, 4, 3, 0, 6, 5, 2, 1]


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(4, 8), NM(1, 4), NM(3, 4), NM(6, 8)], ids=str)
def test_a_refill_keeps_what_the_papers_cost_matrix_and_assignment_do(pattern):
    """Not channel for channel: of a strong channel's places many are equally good."""
    score_OI = scores(outputs=6)
    boxes_KM = Heuristic()(score_OI, pattern, pattern.sparsity).view(-1, pattern.of).clone()
    for slot in range(pattern.of):
        expected = literal_refill(score_OI, boxes_KM.tolist(), pattern.keep, pattern.of, slot)
        before_KM = boxes_KM.clone()
        _refill(score_OI.T.contiguous(), boxes_KM, pattern, slot)
        order = boxes_KM.flatten().tolist()
        found = literal_retained(score_OI, order, pattern.keep, pattern.of)
        assert found == pytest.approx(expected)
        assert sorted(boxes_KM[:, slot].tolist()) == sorted(before_KM[:, slot].tolist())
        before_KM[:, slot] = boxes_KM[:, slot]
        assert torch.equal(before_KM, boxes_KM)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(4, 8), NM(1, 4)], ids=str)
def test_search_paper_deals_round_robin_and_assigns_each_slot_once(pattern):
    score_OI = scores(outputs=6)
    ranked = sorted(range(32), key=lambda i: -float(score_OI[:, i].sum()))
    boxes = [
        ranked[k :: 32 // pattern.of] for k in range(32 // pattern.of)
    ]  # one card each, M times
    boxes_KM = torch.tensor(boxes)
    for slot in range(pattern.of):
        expected = literal_refill(score_OI, boxes_KM.tolist(), pattern.keep, pattern.of, slot)
        _refill(score_OI.T.contiguous(), boxes_KM, pattern, slot)
        found = literal_retained(score_OI, boxes_KM.flatten().tolist(), pattern.keep, pattern.of)
        assert found == pytest.approx(expected)
    pruner = build_method("ria", pattern, permutation="free", search="paper").pruner
    order_I = pruner.permutation(score_OI, pattern, pattern.sparsity)
    assert order_I.tolist() == boxes_KM.flatten().tolist()
    code = build_method(
        "ria", pattern, permutation="free", search="paper",
        settings={"permutation.start.snake": True},
    ).pruner  # fmt: skip
    assert code.permutation == Assignment(sweeps=1, exchanges=0)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(5, 8)], ids=str)
def test_exchanges_gain_exactly_and_end_at_a_local_optimum(pattern):
    """Until no exchange of any two channels, tried one by one, gains."""
    score_OI = scores(outputs=5, inputs=16)
    boxes_KM = torch.arange(16).view(-1, pattern.of)

    def kept(boxes_KM):
        return literal_retained(score_OI, boxes_KM.flatten().tolist(), pattern.keep, pattern.of)

    search, before = Exchanges(score_OI.T.contiguous(), boxes_KM, pattern), kept(boxes_KM)
    found_II = search.gain_II()
    for a, b in combinations(range(16), 2):
        order = torch.arange(16)
        order[a], order[b] = b, a
        gain = 0 if a // pattern.of == b // pattern.of else kept(order) - before
        assert float(found_II[a, b]) == pytest.approx(gain, abs=1e-4)
    while search.one_round():
        assert kept(search.boxes_KM) > before
        before = kept(search.boxes_KM)
        fresh = Exchanges(score_OI.T.contiguous(), search.boxes_KM, pattern)
        assert torch.allclose(search.gain_II(), fresh.gain_II(), atol=1e-5)
    boxes_KM = search.boxes_KM
    for a, b in combinations(range(16), 2):
        order = boxes_KM.flatten().tolist()
        order[a], order[b] = order[b], order[a]
        assert literal_retained(score_OI, order, pattern.keep, pattern.of) <= before * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_eight_channels_reach_the_best_order_of_all(seed):
    """Two boxes: greedy weighs all 35 splits; assignment comes within 1 %."""
    score_OI = scores(outputs=8, inputs=8, seed=seed)
    best = max(
        literal_retained(score_OI, [*first, *(set(range(8)) - set(first))], 2, 4)
        for first in combinations(range(8), 4)
    )
    greedy = Retained.of(score_OI, TWO_FOUR, Greedy(escapes=0)(score_OI, TWO_FOUR, 0.5))
    assigned = Retained.of(score_OI, TWO_FOUR, Assignment()(score_OI, TWO_FOUR, 0.5))
    assert greedy.score == pytest.approx(best)
    assert assigned.score >= 0.99 * best


def test_the_splits_are_all_and_what_they_keep_is_counted():
    assert len(halves(4)) == len(set(halves(4))) == 35
    assert [len(halves(size)) for size in (1, 2, 3, 5, 6)] == [1, 3, 10, 126, 462]
    assert all(halves(size)[0] == tuple(range(size)) for size in range(1, 7))  # as it is
    columns_BCO = torch.rand(1, 8, 24)
    columns_BCO[0, :4] = torch.tensor(list(permutations([1.0, 2.0, 5.0, 9.0]))).T
    for keep, of_row in ((1, 9), (2, 14), (3, 16)):
        assert float(kept(columns_BCO, (0, 1, 2, 3), keep)[0]) == 24 * of_row


@pytest.mark.parametrize(
    "pattern", [NM(1, 4), NM(3, 4), NM(1, 2), NM(2, 3), NM(2, 5), NM(3, 6)], ids=str
)
def test_greedy_finds_the_best_split_of_two_boxes_of_any_n_m(pattern):
    """Brute force over every split, each counted with Python's own sort."""
    columns = range(2 * pattern.of)
    score_OI = scores(outputs=5, inputs=len(columns))
    best = max(
        literal_retained(score_OI, [*first, *(set(columns) - set(first))], pattern.keep, pattern.of)
        for first in combinations(columns, pattern.of)
    )
    order = Greedy(escapes=0)(score_OI, pattern, pattern.sparsity).tolist()
    found = literal_retained(score_OI, order, pattern.keep, pattern.of)
    assert found == pytest.approx(best)


@pytest.mark.parametrize("pattern", [NM(4, 8), NM(2, 8), NM(1, 7)], ids=str)
def test_greedy_ends_where_no_exchange_gains_for_a_large_m_and_near_the_best(pattern):
    inputs = 2 * pattern.of
    score_OI = scores(outputs=5, inputs=inputs)

    def kept_in(order):
        return literal_retained(score_OI, order, pattern.keep, pattern.of)

    order = Greedy(escapes=0)(score_OI, pattern, pattern.sparsity).tolist()
    found = kept_in(order)
    for a, b in product(range(pattern.of), range(pattern.of, inputs)):
        other = list(order)
        other[a], other[b] = other[b], other[a]
        assert kept_in(other) <= found * (1 + 1e-6)
    escaped = kept_in(Greedy(escapes=20)(score_OI, pattern, pattern.sparsity).tolist())
    columns_IO = score_OI.T[None]
    best = max(
        float(
            kept(columns_IO, first, pattern.keep)
            + kept(columns_IO, tuple({*range(inputs)} - {*first}), pattern.keep)
        )
        for first in halves(pattern.of)
    )
    assert found <= escaped <= best * (1 + 1e-6)
    assert escaped >= 0.999 * best


@pytest.mark.parametrize("seed", range(3))
def test_assignment_keeps_at_least_what_the_greedy_search_does(seed):
    score_OI = scores(outputs=64, inputs=128, seed=seed)
    kept = {
        name: Retained.of(score_OI, TWO_FOUR, permutation(score_OI, TWO_FOUR, 0.5)).score
        for name, permutation in {
            "heuristic": Heuristic(),
            "one sweep": Assignment(sweeps=1, exchanges=0),
            "assignment": Assignment(sweeps=200),
            "greedy": Greedy(escapes=100),
        }.items()
    }
    assert kept["heuristic"] < kept["one sweep"] < kept["assignment"]
    assert kept["assignment"] >= kept["greedy"]


@pytest.mark.parametrize(
    "score_OI",
    [torch.zeros(4, 16), torch.ones(4, 16), torch.eye(16), torch.rand(1, 4), torch.rand(3, 16)],
    ids=["zeros", "ones", "eye", "one box", "sorted"],
)
@pytest.mark.parametrize("permutation", [Assignment(), Greedy(escapes=3)], ids=repr)
def test_never_below_the_stored_order(permutation, score_OI):
    if len(score_OI) == 3:  # a stored order that is the best already
        score_OI = torch.tensor([4.0, 3.0, 0.1, 0.2]).repeat(3, 4)
    found = Retained.of(score_OI, TWO_FOUR, permutation(score_OI, TWO_FOUR, 0.5))
    assert found.score >= found.stored


def test_half_precision_scores_and_the_same_order_again():
    score_OI = scores().bfloat16()
    first, second = (Assignment()(score_OI, TWO_FOUR, 0.5) for _ in range(2))
    assert torch.equal(first, second)
    for search in (Assignment(), Greedy()):
        for pattern in (NM(4, 4), NM(8, 8), NM(3, 32)):  # nothing to choose
            stored_I = search(score_OI, pattern, pattern.sparsity)
            assert torch.equal(stored_I, torch.arange(32))


@pytest.mark.parametrize("pattern", [Unstructured("row"), NM(2, 4, "output"), NM(3, 7)], ids=str)
def test_only_n_m_along_inputs_and_a_layer_that_divides(pattern):
    with pytest.raises(PatternError):
        Assignment()(scores(), pattern, 0.5)


@pytest.mark.parametrize("pattern", [TWO_FOUR, NM(4, 8)], ids=str)
def test_the_greedy_search_returns_the_best_order_seen_not_the_last(pattern):
    """One seed: a longer search begins with the shorter one, and an escape may lose."""
    for seed in range(3):
        score_OI = scores(outputs=8, inputs=24, seed=seed)
        orders = [Greedy(escapes=n)(score_OI, pattern, 0.5).tolist() for n in range(9)]
        found = [literal_retained(score_OI, order, pattern.keep, pattern.of) for order in orders]
        assert found == sorted(found)


def test_composed_masks_have_the_pattern_in_the_order_and_keep_what_it_promises():
    weight_OI = scores() - 0.5
    pruner = InOrder(Compose(Magnitude(), TWO_FOUR), Magnitude())
    pruned = pruner(weight_OI, gather(torch.ones(1, 32), ()), 0.5)
    ordered_OI = pruned.mask_OI[:, pruned.order_I]
    assert (TWO_FOUR.groups(ordered_OI).sum(1) == 2).all()
    kept = float(weight_OI.abs()[pruned.mask_OI].sum())
    found = Retained.of(weight_OI.abs(), TWO_FOUR, pruned.order_I)
    assert kept == pytest.approx(found.score)


@pytest.mark.parametrize("name", ["wanda", "ria", "sparsegpt", "mrp-sm", "mrp-mm"])
def test_in_order_is_the_method_on_permuted_weights_and_inputs(name):
    """An oracle that never calls ``reordered``: permute the inputs themselves."""
    pruner = build_method(name, TWO_FOUR, permutation="free").pruner
    generator = torch.Generator().manual_seed(3)
    weight_OI, inputs_TI = scores() - 0.5, torch.randn(200, 32, generator=generator)
    pruned = pruner(weight_OI, gather(inputs_TI, pruner.needs), 0.5)
    plain = build_method(name, TWO_FOUR).pruner
    order_I = pruned.order_I
    expected = plain(weight_OI[:, order_I], gather(inputs_TI[:, order_I], plain.needs), 0.5)
    assert torch.equal(pruned.mask_OI[:, order_I], expected.mask_OI)
    assert torch.allclose(pruned.weight_OI[:, order_I], expected.weight_OI, atol=1e-5)
    assert (pruned.weight_OI[~pruned.mask_OI] == 0).all()
    assert (TWO_FOUR.groups(pruned.mask_OI[:, order_I]).sum(1) == 2).all()
    assert not (TWO_FOUR.groups(pruned.mask_OI).sum(1) == 2).all()
    assert 0 < pruned.notes["score_gap_closed"] < 1


def test_every_statistic_reorders_as_its_inputs_do():
    inputs_TI, order_I = torch.randn(300, 12), torch.randperm(12)
    kinds = (ColumnNorm, TokenSample, Gram)
    found, expected = (
        gather(inputs_TI, kinds).reordered(order_I),
        gather(inputs_TI[:, order_I], kinds),
    )
    assert torch.equal(found[ColumnNorm].rms_I, expected[ColumnNorm].rms_I)
    assert torch.equal(found[TokenSample].inputs_TI, expected[TokenSample].inputs_TI)
    assert torch.allclose(found[Gram].matrix_II, expected[Gram].matrix_II, atol=1e-6)
    assert found[Gram] is found[Gram]
    assert Gram in found
    with pytest.raises(MissingStatisticError):
        _ = gather(inputs_TI, ()).reordered(order_I)[Gram]


def test_a_free_order_is_said_and_is_no_hardware_pattern(tmp_path):
    """The checkpoint verifies for what it is, and not for 2:4 as hardware reads it."""
    result = prunus.prune(
        MODELS / "llama", method="wanda", pattern="2:4", permutation="free",
        settings={"permutation.sweeps": 2}, samples=2, length=64, output=tmp_path / "free",
    )  # fmt: skip
    assert "permutation=Assignment(start=Heuristic(snake=True), sweeps=2" in result.report.pruner
    found = result.verification
    assert found.ok
    assert found.patterns == {"2:4 in a free order": 21}
    asked = prunus.verify(tmp_path / "free", pattern="2:4", reload=False)
    assert len(asked.problems) == 21
    assert "weight has 2:4 in a free order, but not in the stored order" in asked.problems[0]
    assert sorted(result.orders.free) == sorted(x.name for x in result.report.layers)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "free").state_dict()
    loaded = prunus.load(tmp_path / "free").state_dict()  # which must not apply these orders
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in plain.items())
    for name, order_I in Orders.read(tmp_path / "free").free.items():
        ordered_OI = plain[f"{name}.weight"][:, order_I]
        assert (TWO_FOUR.groups(ordered_OI == 0).sum(1) == 2).all()
    assert "no hardware for N:M" in (tmp_path / "free" / "README.md").read_text()
    assert "permutation: free\n" in (tmp_path / "free" / "recipe.yaml").read_text()


@pytest.mark.parametrize("permutation", ["fold", "gather", "free"])
def test_a_permutation_needs_n_m_along_inputs(permutation):
    with pytest.raises(InputError, match="--permutation is for N:M along inputs"):
        build_method("wanda", None, permutation=permutation)
    with pytest.raises(InputError, match="dass prunes some layers along outputs"):
        build_method("dass", TWO_FOUR, permutation=permutation)
