"""How much of each layer goes: BESA's shares, exact budgets, OWL, choices of N:M."""

import itertools
import json

import pytest
import torch

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import (
    CalibrationError,
    InputError,
    NumericalError,
    PatternError,
    UnknownNameError,
)
from prunus.maths.grids import Grid
from prunus.maths.patterns import NM, OneOf, Unstructured, parse_pattern
from prunus.maths.scores import OBS, RIA, Magnitude, Wanda
from prunus.maths.shares import BESA, OWL
from prunus.maths.shares.besa import Budget
from prunus.maths.shares.budget import choose_patterns, exact_counts, spread, whole_counts
from prunus.maths.shares.kept import Ranks, Shares, flattest
from prunus.maths.updates import Keep
from prunus.methods.build import build_allocation, build_method
from prunus.model.inspect import inspect, start
from prunus.run.gather import gathered
from prunus.run.learn import Unit
from prunus.run.observer import Silent

CPU = torch.device("cpu")
FEW = {"samples": 3, "length": 48}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Shares against the paper's formulas, one weight at a time


@pytest.mark.parametrize(("candidates", "inputs"), [(10, 40), (10, 37), (7, 5), (100, 64)])
def test_shares_equal_equations_3_to_5(candidates, inputs):
    score_OI = random(3, inputs).abs()
    score_OI[1, 1] = score_OI[1, 2]  # a tie
    shares = Shares.of(random(3, candidates - 1, seed=1).double() * 2)
    ranks = Ranks.of(score_OI, candidates)
    soft_OI, hard_OI = shares.soft(ranks), shares.hard(ranks, "probability")
    count_OI = shares.hard(ranks, "count")
    for row in range(3):
        beta = [*shares.beta_RD[row].tolist(), 0.0]  # of d = 1 … D; the last is 0
        alpha = sum(b * d / candidates for d, b in enumerate(beta, 1))
        assert float(shares.share_R1[row]) == pytest.approx(alpha)
        order = sorted(range(inputs), key=lambda j: (float(score_OI[row, j]), j))
        for place, column in enumerate(order):
            goes = sum(b for d, b in enumerate(beta, 1) if place * candidates < d * inputs)
            assert float(1 - soft_OI[row, column]) == pytest.approx(goes)
            if abs(goes - alpha) > 1e-9:
                assert bool(hard_OI[row, column]) == (goes < alpha)
            assert bool(count_OI[row, column]) == (place >= int(alpha * inputs + 1e-6))


def test_shares_are_on_the_simplex_and_the_best_weight_stays():
    shares = Shares.of(random(50, 99) * 30)
    assert (shares.beta_RD >= 0).all()
    assert torch.allclose(shares.beta_RD.sum(1), torch.ones(50))
    assert (shares.share_R1 > 0).all()
    assert (shares.share_R1 < 1).all()
    ranks = Ranks.of(random(50, 200), 100)
    best_O = ranks.rank_OI.argmax(1)
    for rule in ("probability", "count"):
        assert shares.hard(ranks, rule)[torch.arange(50), best_O].all()


@pytest.mark.parametrize("rule", ["probability", "count"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.62, 0.7, 0.9])
def test_the_start_is_at_the_target(share, rule):
    shares = Shares.of(flattest(share, 100, rule)[None])
    gone = 1 - shares.hard(Ranks.of(random(8, 1000), 100), rule).float().mean()
    assert float(gone) == pytest.approx(share, abs=0.01)


def unit_of(family, dtype):
    model, _ = load_tiny(family)
    model.to(dtype)
    ids_ST = torch.randint(0, 500, (3, 24), generator=torch.Generator().manual_seed(2))
    blocks, traced = inspect(model, ids_ST)
    recording = start(model, blocks, traced, ids_ST)
    with torch.no_grad():
        stats = gathered(blocks[0], recording, (*Wanda.needs,), CPU, Silent())
        targets = [
            call(blocks[0].module, hidden)
            for call, hidden in zip(recording.calls[0], recording.hidden, strict=True)
        ]
    return blocks[0], stats, Unit(blocks[:1], recording, targets, CPU)


def test_a_shares_gradient_equals_finite_differences_of_the_soft_masks_loss():
    block, stats, unit = unit_of("gpt2", torch.float64)  # Llama's norms compute in float32
    ranks = {
        layer.name: Ranks.of(Wanda()(layer.weight_OI, stats[layer.site]), 20)
        for layer in block.layers
    }
    logits = {layer.name: random(layer.shape[0], 19).double() for layer in block.layers}

    def loss():
        weights = {}
        for layer in block.layers:
            shares = Shares.of(logits[layer.name])
            soft_OI = shares.soft(ranks[layer.name])
            weights[layer.name] = shares.masked(layer.weight_OI, ranks[layer.name], soft_OI)
        return (unit.forward(1, weights) - unit.target(1)).square().sum()

    def value():
        with torch.no_grad():
            return float(loss())

    for logit_RD in logits.values():
        logit_RD.requires_grad_()
    grads = dict(zip(logits, torch.autograd.grad(loss(), list(logits.values())), strict=True))
    step = 1e-5
    for name, logit_RD in logits.items():
        flat, grad = logit_RD.detach().view(-1), grads[name].reshape(-1)
        for at in (int(grad.abs().argmax()), 0, 7):
            values = []
            for sign in (1, -1):
                flat[at] += sign * step
                values.append(value())
                flat[at] -= sign * step
            numeric = (values[0] - values[1]) / (2 * step)
            assert float(grad[at]) == pytest.approx(numeric, rel=1e-4, abs=1e-9), name


def test_a_masked_weights_own_gradient_is_the_masks():
    weight_OI = random(4, 6).requires_grad_()
    ranks = Ranks.of(weight_OI.detach().abs(), 10)
    shares = Shares.of(torch.zeros(1, 9))
    keep_OI = shares.hard(ranks, "count")
    shares.masked(weight_OI, ranks, keep_OI).sum().backward()
    assert torch.equal(weight_OI.grad, keep_OI.float())


# Budgets


@pytest.mark.parametrize("seed", range(6))
def test_exact_counts_are_the_nearest_that_add_up(seed):
    size_G = torch.tensor([3, 5, 2, 4])
    share_G = torch.rand(4, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2
    for total in range(15):
        count_G = exact_counts(share_G, size_G, total)
        assert int(count_G.sum()) == total
        assert (count_G >= 0).all()
        assert (count_G <= size_G).all()

        def change(counts):
            part_G = torch.tensor(counts) / size_G - share_G
            return float((size_G * part_G.square()).sum())

        every = itertools.product(*(range(int(n) + 1) for n in size_G))
        best = min(change(counts) for counts in every if sum(counts) == total)
        assert change(count_G.tolist()) <= best + 0.34  # rounding: 1/n at most for a weight


def test_columns_lose_equally_many_and_the_others_make_up_for_it():
    share_G = torch.tensor([0.3, 0.61, 0.5, 0.47]).double()
    size_G, whole_G = torch.tensor([60, 60, 40, 40]), torch.tensor([6, 6, 1, 1])
    for total in (0, 1, 50, 97, 199, 200):
        count_G = whole_counts(share_G, size_G, total, whole_G)
        assert int(count_G.sum()) == total
        assert (count_G % whole_G == 0).all()
        assert ((count_G >= 0) & (count_G <= size_G)).all()
        count_G = whole_counts(share_G[:2], size_G[:2], min(total, 120), whole_G[:2])
        assert (count_G % 6 == 0).all()
        assert 0 <= min(total, 120) - int(count_G.sum()) < 6


def test_exact_counts_of_many_rows_move_all_by_the_same_step():
    share_G, size_G = torch.rand(500), torch.full((500,), 10_000)
    count_G = exact_counts(share_G, size_G, 2_345_678)
    assert int(count_G.sum()) == 2_345_678
    moved_G = count_G / size_G - share_G
    inner_G = moved_G[(count_G > 0) & (count_G < size_G)]
    assert float(inner_G.max() - inner_G.min()) < 2.1e-4


def test_spread_is_even():
    assert spread(7, 3).tolist() == [2, 2, 3]
    assert spread(0, 3).tolist() == [0, 0, 0]


def test_patterns_are_chosen_within_the_budget():
    options = [NM(1, 4), NM(3, 4), NM(2, 4)]
    sizes, shares = [400, 100, 200, 300], [0.7, 0.3, 0.55, 0.26]
    for budget in (250, 400, 517, 750):
        chosen = choose_patterns(shares, sizes, options, budget)
        gone = sum(x.sparsity * n for x, n in zip(chosen, sizes, strict=True))
        assert gone <= budget
        more = [n / 4 for x, n in zip(chosen, sizes, strict=True) if x.sparsity < 0.75]
        assert not more or gone + min(more) > budget  # nothing else fits
    assert [str(x) for x in choose_patterns([0.1, 0.9], [100, 100], options, 100)] == ["3:4", "1:4"]


# Runs


def besa(**settings):
    return {f"allocation.{key}": value for key, value in settings.items()}


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("granularity", ["attention-mlp", "block", "two-blocks"])
def test_the_budget_is_met_to_one_weight(granularity, sparsity):
    model, tokenizer = load_tiny("llama")
    result = prunus.prune(
        model, method="besa", sparsity=sparsity, tokenizer=tokenizer,
        settings=besa(granularity=granularity, steps=20), **FEW,
    )  # fmt: skip
    units = {}
    for layer in result.report.layers:
        half = layer.role in ("gate", "up", "down") if granularity == "attention-mlp" else None
        block = layer.block // 2 if granularity == "two-blocks" else layer.block
        n = layer.shape[0] * layer.shape[1]
        unit = units.setdefault((block, half), [0, 0])
        unit[0] += round(layer.sparsity * n)
        unit[1] += n
    for zeros, weights in units.values():
        assert zeros == int(weights * sparsity + 1e-6)
    found = [layer.sparsity for layer in result.report.layers]
    assert max(found) - min(found) > 0.005  # it did learn


def test_besa_finds_the_layers_that_matter_not_and_beats_uniform():
    """Attention writes almost nothing: its four layers can go, and the MLP's three can stay."""
    errors = {}
    for allocation in ("besa", "uniform"):
        model, tokenizer = load_tiny("llama")
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.o_proj.weight *= 1e-3
        hidden = []
        model.model.layers[0].register_forward_hook(lambda *a, out=hidden: out.append(a[2]))
        ids = torch.arange(64)[None]
        model(ids)
        result = prunus.prune(
            model, method="wanda", allocation=allocation, sparsity=0.4, tokenizer=tokenizer,
            settings=besa(per="layer") if allocation == "besa" else {}, **FEW,
        )  # fmt: skip
        del hidden[1:]
        model(ids)
        first, last = (x[0] if isinstance(x, tuple) else x for x in (hidden[0], hidden[-1]))
        errors[allocation] = float((last - first).detach().norm())
        if allocation == "besa":
            by_role = {x.role: x.sparsity for x in result.report.layers if x.block == 0}
    assert min(by_role[role] for role in "qkvo") > 0.6
    assert max(by_role[role] for role in ("gate", "up", "down")) < 0.4
    assert errors["besa"] < 0.6 * errors["uniform"]


def test_learning_lowers_the_loss_and_is_reported():
    model, tokenizer = load_tiny("llama")
    report = prunus.prune(model, method="besa", tokenizer=tokenizer, **FEW).report
    assert [curve["blocks"] for curve in report.learning] == [[0], [1], [2]]
    for curve in report.learning:
        assert curve["steps"] <= 66  # 22 epochs of 3 samples
        assert len(curve["loss"]) == -(-curve["steps"] // 16)
        assert curve["loss"][-1] < 0.9
    assert "BESA(" in report.allocation
    json.loads(report.to_json())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_is_learned_where_nothing_or_everything_goes(sparsity):
    model, tokenizer = load_tiny("llama")
    run = {"method": "besa", "tokenizer": tokenizer, **FEW}
    report = prunus.prune(model, sparsity=sparsity, **run).report
    assert report.learning == []
    assert {layer.sparsity for layer in report.layers} == {sparsity}


def test_a_loss_that_is_no_number_is_said(monkeypatch):
    monkeypatch.setattr(BESA, "_error", lambda *args: torch.tensor(float("nan")))
    model, tokenizer = load_tiny("llama")
    with pytest.raises(NumericalError, match=r"model\.layers\.0: the loss became NaN or inf"):
        prunus.prune(model, method="besa", tokenizer=tokenizer, **FEW)


def test_learning_stops_when_the_shares_rest():
    model, tokenizer = load_tiny("llama")
    run = {"method": "besa", "tokenizer": tokenizer, **FEW}
    report = prunus.prune(model, settings=besa(rest=1.0, steps=200), **run).report
    assert {curve["steps"] for curve in report.learning} == {18}  # 6 epochs of 3 samples


@pytest.mark.parametrize(
    "settings",
    [
        besa(reference="dense"),
        besa(rule="count"),
        besa(norm="channel"),
        besa(per="layer", candidates=10),
    ],
)
def test_readings(settings):
    model, tokenizer = load_tiny("llama")
    run = {"method": "besa", "tokenizer": tokenizer, **FEW}
    report = prunus.prune(model, settings={**settings, **besa(steps=16)}, **run).report
    assert report.sparsity == 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "ria"},
        {"method": "mrp-sm"},
        {"method": "sparsegpt", "pattern": "row"},
        {"method": "wanda", "update": "least-squares", "refine": "swaps"},
        {"method": "magnitude"},
        {"method": "dass"},
        {"method": "wanda", "pattern": "column"},
    ],
)
@pytest.mark.parametrize("allocation", ["besa", "owl"])
def test_every_method_takes_an_allocation(fields, allocation):
    model, tokenizer = load_tiny("llama")
    settings = besa(steps=8) if allocation == "besa" else {}
    report = prunus.prune(
        model, allocation=allocation, tokenizer=tokenizer, settings=settings, **fields, **FEW
    ).report
    assert report.sparsity == pytest.approx(0.5, abs=1e-6)
    assert len({round(layer.sparsity, 2) for layer in report.layers}) > 1


@pytest.mark.parametrize("allocation", ["besa", "owl"])
def test_patterns_from_a_list_meet_an_average(allocation):
    model, tokenizer = load_tiny("llama")
    report = prunus.prune(
        model, method="wanda", pattern="1:4,2:4,3:4", sparsity=0.55, allocation=allocation,
        settings=besa(steps=16) if allocation == "besa" else {}, tokenizer=tokenizer, **FEW,
    ).report  # fmt: skip
    assert 0.53 < report.sparsity <= 0.55
    assert {layer.pattern for layer in report.layers} <= {"1:4", "2:4", "3:4"}
    for layer in report.layers:
        assert layer.sparsity == parse_pattern(layer.pattern).sparsity


def test_dass_groups_along_outputs_also_where_it_may_choose():
    model, tokenizer = load_tiny("llama")
    report = prunus.prune(
        model, method="dass", pattern="4:16,8:16,12:16", sparsity=0.55, allocation="owl",
        refine="swaps", tokenizer=tokenizer, **FEW,
    ).report  # fmt: skip
    for layer in report.layers:
        assert layer.pattern.endswith(":output") == (layer.role in ("gate", "up"))
        assert layer.sparsity == parse_pattern(layer.pattern).sparsity


@pytest.mark.parametrize("permutation", ["fold", "gather", "free"])
def test_a_choice_of_long_patterns_in_an_order_meets_the_budget(permutation, tmp_path):
    """Quarters of 2,048, 4,096 and 10,240 weights add up to the budget exactly."""
    result = prunus.prune(
        MODELS / "llama", method="mrp-sm", pattern="4:16,8:16,12:16", sparsity=0.5,
        allocation="owl", settings={"allocation.reach": 0.3, "permutation.sweeps": 1},
        permutation=permutation, output=tmp_path / "out", samples=3, length=48,
    )  # fmt: skip
    layers = result.report.layers
    assert len({layer.pattern for layer in layers}) > 1
    assert result.report.sparsity == 0.5
    said = [parse_pattern(layer.pattern).sparsity for layer in layers]
    assert [layer.sparsity for layer in layers] == said
    found = prunus.verify(tmp_path / "out", reload=False)
    assert found.ok, found.problems
    assert sum(found.patterns.values()) == len(layers)


def test_an_order_is_for_groups_of_one_size():
    with pytest.raises(InputError, match="groups of one size, and the patterns 2:4,6:16 have"):
        build_method("wanda", parse_pattern("2:4,6:16"), permutation="fold")


@pytest.mark.parametrize("sparsity", [0.1, 0.9])
def test_a_sparsity_that_no_choice_of_patterns_has_is_refused(sparsity):
    model, tokenizer = load_tiny("llama")
    with pytest.raises(
        PatternError, match=r"sparsities from 0.25 to 0.75, but 0\.\d was requested"
    ):
        prunus.prune(
            model, method="ria", pattern="1:4,2:4,3:4", sparsity=sparsity, allocation="owl",
            tokenizer=tokenizer, **FEW,
        )  # fmt: skip


def test_owl_equals_its_formula():
    scores = [random(20, 30, seed=seed).square() for seed in range(2)]
    flat = torch.cat([score.flatten() for score in scores]).tolist()
    mean = sum(flat) / len(flat)
    expected = sum(x > 5 * mean for x in flat) / len(flat)
    assert OWL().outliers(scores) == pytest.approx(expected)
    shares = OWL(reach=0.1).shares({0: 0.02, 1: 0.06, 3: 0.04})
    assert shares[0] - shares[1] == pytest.approx(0.2)
    assert shares[0] - shares[3] == pytest.approx(0.1)
    assert set(OWL().shares({0: 0.1, 1: 0.1}).values()) == {0.0}  # nothing to tell them apart


def test_joint_learning_puts_weights_on_learned_grids(tmp_path):
    block, stats, unit = unit_of("llama", torch.float32)
    layers = {layer.name: layer for layer in block.layers}
    grid = Grid(bits=3, group=16)
    weights = {name: layer.weight_OI for name, layer in layers.items()}
    scores = {name: Wanda()(layer.weight_OI, stats[layer.site]) for name, layer in layers.items()}
    allocation = BESA(grid=grid, steps=32, clip_rate=0.1)
    with torch.enable_grad():
        learned = allocation.learn(weights, scores, [Budget(tuple(layers), 0.5)], unit)
    assert learned.clipping.keys() == layers.keys()
    for name, clip in learned.clipping.items():
        new_OI = grid.quantize(weights[name], *clip).dequantize()
        plain_OI = grid.quantize(weights[name]).dequantize()
        assert not torch.equal(new_OI, plain_OI)  # clipping was learned
        for group in new_OI.unflatten(1, (-1, 16)).flatten(0, 1):
            assert len(group.unique()) <= 8
    assert sum(learned.losses[-8:]) < sum(learned.losses[:8])


def test_joint_quantisation_keeps_zeros_exact_and_beats_unlearned_clipping(tmp_path):
    errors = {}
    for rate in (0.0, 0.1):
        model, tokenizer = load_tiny("llama")
        dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        report = prunus.prune(
            model, method="besa", bits=3, group=16, quantize="before", tokenizer=tokenizer,
            settings=besa(clip_rate=rate, steps=24), **FEW,
        ).report  # fmt: skip
        assert report.sparsity >= 0.5  # what is kept may round to 0
        for layer in report.layers:
            new_OI = model.get_parameter(f"{layer.name}.weight")
            assert all(len(x.unique()) <= 8 for x in new_OI.unflatten(1, (-1, 16)).flatten(0, 1))
            assert not torch.equal(new_OI, dense[f"{layer.name}.weight"])
        errors[rate] = sum(curve["loss"][-1] for curve in report.learning)
    assert errors[0.1] < errors[0.0]


# What cannot be


def test_settings_and_their_errors():
    ria = build_method("ria", Unstructured("row"))
    found = build_allocation("ria", ria, "besa", {"allocation.steps": "9"})
    assert (found.steps, found.score, found.per) == (9, RIA(), "row")
    assert build_allocation("magnitude", build_method("magnitude"), "besa", {}).score == Magnitude()
    assert build_allocation("mrp-sm", build_method("mrp-sm"), "besa", {}).per == "layer"
    assert build_allocation("besa", build_method("besa"), None, {}).per == "row"
    assert (
        build_allocation("besa", build_method("besa"), None, {"allocation.epochs": 2}).epochs == 2
    )
    with pytest.raises(
        UnknownNameError, match=r"besa, evolve, evolve\+besa, owl, owl\+besa, slope"
    ):
        build_allocation("ria", ria, "best", {})
    with pytest.raises(InputError, match="no field 'step'"):
        build_allocation("ria", ria, "besa", {"allocation.step": 1})
    with pytest.raises(InputError, match="no field 'steps'"):
        build_allocation("ria", ria, None, {"allocation.steps": 1})
    with pytest.raises(InputError, match="rule is probability or count"):
        build_allocation("ria", ria, "besa", {"allocation.rule": "odds"})
    with pytest.raises(InputError, match="2 to 1000 candidates"):
        BESA(candidates=1)


@pytest.mark.parametrize(
    ("method", "score"),
    [("magnitude", Magnitude()), ("wanda", Wanda()), ("obs", OBS("trailing"))],
)
def test_the_metrics_of_besas_table_5_are_methods(method, score):
    """Weight, Wanda, SparseGPT: shares are learned, and weights removed, in the same order."""
    pruner = build_method(method, Unstructured("row"))
    found = build_allocation(method, pruner, "besa")
    assert (found.score, found.per, pruner.pruner.score) == (score, "row", score)
    assert pruner.pruner.update == Keep()  # Table 5 has no weights that were updated
    model, tokenizer = load_tiny("llama")
    run = {"method": method, "pattern": "row", "allocation": "besa", "tokenizer": tokenizer}
    report = prunus.prune(model, settings=besa(epochs=2), **run, **FEW).report
    assert report.sparsity == pytest.approx(0.5, abs=1e-6)
    assert {curve["steps"] for curve in report.learning} == {6}


def test_one_pattern_leaves_nothing_to_allocate():
    model, tokenizer = load_tiny("llama")
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = {"method": "wanda", "tokenizer": tokenizer, **FEW}
    with pytest.raises(InputError, match=r"q_proj: with 2:4 every layer has the same sparsity"):
        prunus.prune(model, pattern="2:4", allocation="besa", **run)
    with pytest.raises(PatternError, match=r"can only have the sparsities 0\.75, 0\.5"):
        prunus.prune(model, pattern="1:4,2:4", sparsity=0.6, **run)
    with pytest.raises(CalibrationError, match="--allocation besa"):
        prunus.prune(model, method="magnitude", allocation="besa", calibration="none")
    assert all(torch.equal(tensor, dense[name]) for name, tensor in model.state_dict().items())


def test_a_share_for_each_row():
    score_OI = random(4, 10)
    share_O = torch.tensor([0.0, 0.3, 0.75, 1.0])
    mask_OI = Unstructured("row").mask(score_OI, share_O)
    assert (~mask_OI).sum(1).tolist() == [0, 3, 7, 10]
    for row, mask_I, share in zip(score_OI, mask_OI, share_O.tolist(), strict=True):
        assert torch.equal(mask_I, Unstructured("row").mask(row[None], share)[0])
    with pytest.raises(PatternError, match="needs the pattern row"):
        Unstructured("layer").mask(score_OI, share_O)
    with pytest.raises(PatternError, match="no choice"):
        NM(2, 4).mask(random(4, 8), share_O)


def test_one_of_several_patterns():
    pattern = parse_pattern("1:4, 4:8")
    assert pattern == OneOf((NM(1, 4), NM(4, 8)))
    assert (str(pattern), pattern.group_size) == ("1:4,4:8", 8)
    score_OI = random(3, 16)
    assert torch.equal(pattern.mask(score_OI, 0.75), NM(1, 4).mask(score_OI, 0.75))
    with pytest.raises(PatternError, match="one of N:M ones"):
        parse_pattern("2:4,row")
    with pytest.raises(PatternError, match="divisible by 8"):
        pattern.check((3, 12), 0.6)


def test_a_plan_counts_the_steps_of_learning():
    model, tokenizer = load_tiny("llama")
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = {"method": "besa", "tokenizer": tokenizer, **FEW}
    few, many = (prunus.plan(model, settings=besa(epochs=n), **run) for n in (4, 400))
    assert few.rehearsed["learn"] > 0
    assert many.seconds > 3 * 3 * 400 * many.rehearsed["learn"]  # blocks, samples, epochs
    assert few.seconds < 3 * 3 * 40 * few.rehearsed["learn"]
    assert all(torch.equal(tensor, dense[name]) for name, tensor in model.state_dict().items())
    owl = prunus.plan(model, method="wanda", pattern="1:4,2:4", sparsity=0.6, allocation="owl",
                      tokenizer=tokenizer, **FEW)  # fmt: skip
    assert owl.seconds > 0
