"""Laws over the whole table: a new row is tested by being there."""

import dataclasses

import pytest
import torch

import prunus
from helpers.models import GATED, load_tiny
from prunus.base.errors import InputError, PatternError, UnknownNameError
from prunus.maths.patterns import NM, Unstructured, parse_pattern, removed
from prunus.maths.pruners import DaSS
from prunus.methods.build import build_method
from prunus.methods.table import METHODS, UPDATES
from prunus.model.inspect import inspect, start
from prunus.recipe import Recipe
from prunus.run.loop import prune_blocks
from prunus.run.observer import Silent

CASES = [(None, 0.5), (None, 0.1), ("layer", 0.3), ("row", 0.999), ("column", 0.7)]
CASES += [
    (None, 0.0),
    (None, 1.0),
    ("2:4", 0.5),
    ("1:4", 0.75),
    ("8:16", 0.5),
    ("16:32:output", 0.5),
]

NM_ALONE = ("mrp-ms", "mrp-mm")  # their masks weigh the subsets of N:M groups of inputs
UPDATING = ("sparsegpt", "mrp-ss", "mrp-sm", "mrp-ms", "mrp-mm")
ALL = [
    (method, *case)
    for method in METHODS
    for case in CASES
    if method not in NM_ALONE or case in [(None, 0.5), ("2:4", 0.5), ("1:4", 0.75), ("8:16", 0.5)]
]


def prune_tiny(method, pattern, sparsity, seed=0):
    """Prune the tiny llama on random tokens; blocks, dense weights and reports."""
    model, _ = load_tiny("llama")
    ids_ST = torch.randint(0, 500, (3, 32), generator=torch.Generator().manual_seed(seed))
    blocks, traced = inspect(model, ids_ST)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = {layer.name: sparsity for block in blocks for layer in block.layers}
    pruner = build_method(method, parse_pattern(pattern) if pattern else None)
    reports = prune_blocks(
        blocks,
        start(model, blocks, traced, ids_ST),
        pruner,
        plan,
        device=torch.device("cpu"),
        observer=Silent(),
    )
    return model, blocks, dense, pruner, reports


@pytest.mark.parametrize(("method", "pattern", "sparsity"), ALL)
def test_law_2_exact_counts_and_law_3_exact_zeros(method, pattern, sparsity):
    _, blocks, dense, pruner, reports = prune_tiny(method, pattern, sparsity)
    layers = [layer for block in blocks for layer in block.layers]
    assert [report.name for report in reports] == [layer.name for layer in layers]
    for layer, report in zip(layers, reports, strict=True):
        weight_OI, own = layer.weight_OI, pruner.pattern(layer)
        assert not (dense[f"{layer.name}.weight"] == 0).any()  # so zeros are pruned weights
        if isinstance(own, NM):
            assert ((own.groups(weight_OI) != 0).sum(1) == own.keep).all()
        else:
            groups_GN = own.groups(weight_OI)
            expected = removed(sparsity, groups_GN.shape[1])
            assert ((groups_GN == 0).sum(1) == expected).all()
        assert report.sparsity == float((weight_OI == 0).sum()) / weight_OI.numel()
        kept = weight_OI != 0
        assert report.updated == (method in UPDATING and 0 < sparsity < 1)
        if report.updated:
            if method in ("mrp-sm", "mrp-mm"):
                assert report.relative_output_error < report.error_before_update
            continue
        assert report.relative_output_error == report.error_before_update
        assert torch.equal(weight_OI[kept], dense[f"{layer.name}.weight"][kept])


@pytest.mark.parametrize("method", METHODS)
def test_law_1_same_seed_same_bits(method):
    first = prune_tiny(method, None, 0.5)[0].state_dict()
    second = prune_tiny(method, None, 0.5)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_law_4_everything_outside_of_the_plan_is_untouched(method):
    model, blocks, dense, _, _ = prune_tiny(method, None, 0.5)
    pruned = {f"{layer.name}.weight" for block in blocks for layer in block.layers}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, dense[name]) == (name not in pruned)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_frozen_prints_its_settings_and_says_where_it_is_from(method):
    pruner = build_method(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruner.pruner = None
    assert "pattern=" in repr(pruner)
    row = METHODS[method]
    assert row.paper
    assert row.differs
    assert row.url.startswith("https://")


@pytest.mark.parametrize("method", METHODS)
def test_data_free_methods_need_nothing_and_run_without_text(method):
    needs = METHODS[method].needs
    assert (needs == "nothing (data-free)") == (method in ("magnitude", "ri"))


def test_default_groups_are_the_papers():
    groups = {name: build_method(name).pattern(None) for name in METHODS if name != "dass"}
    assert all(groups[name] == Unstructured("row") for name in ("wanda", "besa"))
    for name in ("magnitude", "ri", "ria", "obs", "sparsegpt", "mrp-ss", "mrp-sm"):
        assert groups[name] == Unstructured("layer")
    assert groups["mrp-ms"] == groups["mrp-mm"] == NM(2, 4)
    assert DaSS().gate_up.pattern == Unstructured("column")
    assert DaSS().down.pattern == DaSS().rest.pattern == Unstructured("row")
    assert DaSS.with_pattern(NM(4, 8)).gate_up.pattern == NM(4, 8, "output")


def test_unknown_method_suggests_and_lists():
    with pytest.raises(UnknownNameError, match=r"'wnda'\. Did you mean 'wanda'\? Available: besa"):
        build_method("wnda")


def test_settings_reach_the_fields_of_the_parts():
    assert build_method("ria", settings={"score.power": "0.4"}).pruner.score.power == 0.4
    assert build_method("ria", settings={"score.power": 1}).pruner.score.power == 1.0
    assert build_method("ria", settings={"score.terms": "in"}).pruner.score.terms == "in"
    assert build_method("dass", settings={"gate_up.score.power": 0.25}).gate_up.score.power == 0.25
    with pytest.raises(InputError, match=r"RIA has no field 'pwer'; it has power, terms"):
        build_method("ria", settings={"score.pwer": 1})
    assert build_method("ria", settings={"score.power": "1e-1"}).pruner.score.power == 0.1
    with pytest.raises(InputError, match="is a part, not a number or a word"):
        build_method("ria", settings={"pattern": "x"})
    with pytest.raises(InputError, match=r"expected float such as 0\.5, got 'much'"):
        build_method("ria", settings={"score.power": "much"})
    with pytest.raises(InputError, match="both, in or out"):
        build_method("ria", settings={"score.terms": "rows"})
    with pytest.raises(InputError, match="float has no field"):
        build_method("ria", settings={"score.power.x": 1})


def test_a_recipe_survives_yaml_and_refuses_what_it_does_not_know(tmp_path):
    recipe = Recipe.of(method="ria", settings={"score.power": 0.4}, skip_blocks="0:1", sparsity=0.6)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml("some/model"))
    assert Recipe.read(file) == recipe
    assert Recipe.read(file, seed=3).seed == 3
    with pytest.raises(InputError, match="no field 'sparsty'; it has method, sparsity"):
        Recipe.of(method="ria", sparsty=1)
    with pytest.raises(InputError, match="No method was given"):
        Recipe.of()
    with pytest.raises(InputError, match=r"samples: .*greater than or equal to 1; got 0"):
        Recipe.of(method="ria", samples=0)
    file.write_text("method: wanda\npattern: 2:4\nskip_blocks: 1:2\nseed: 010\n")
    assert Recipe.read(file).pattern == "2:4"  # not 124, as YAML 1.1 would have it
    assert Recipe.read(file).skip_blocks == "1:2"
    file.write_text("method: wanda\nsparsity: 1e-1\nsettings: {a: 1}\n")
    assert Recipe.read(file).sparsity == 0.1
    assert Recipe.read(file, settings={"b": 2}).settings == {"a": 1, "b": 2}
    assert Recipe.read(file, pattern="1:4", settings={}).sparsity is None  # N:M brings its own
    for bad in ("sparsity: true", "samples: 2.5", "1: 2"):
        file.write_text(f"method: wanda\n{bad}\n")
        with pytest.raises(InputError):
            Recipe.read(file)
    file.write_text("- a list")
    with pytest.raises(InputError, match="must be a mapping"):
        Recipe.read(file)


def test_a_recipe_can_be_written_before_its_sparsity_is_known():
    assert "sparsity" not in Recipe.of(method="ria", pattern="2:4").to_yaml("m")


def test_mrp_ss_is_sparsegpt_as_the_paper_says():
    assert build_method("mrp-ss") == build_method("sparsegpt")


def test_nm_brings_its_own_sparsity_and_everything_else_half():
    assert Recipe.of(method="ria", pattern="1:4").build()[2] == 0.75
    assert Recipe.of(method="ria").build()[2] == 0.5
    with pytest.raises(PatternError, match=r"got 1\.5"):
        Recipe.of(method="ria", sparsity=1.5).build()


def test_every_gated_tiny_model_takes_dass():
    for family in GATED:
        model, _ = load_tiny(family)
        blocks, _ = inspect(model, torch.arange(1, 33)[None])
        for block in blocks:
            build_method("dass", NM(2, 4)).check(block, {x.name: 0.5 for x in block.layers})


@pytest.mark.parametrize("update", ["sparsegpt", "least-squares"])
@pytest.mark.parametrize("pattern", [None, "2:4", "2:4:output"])
@pytest.mark.parametrize("method", ["magnitude", "ri", "wanda", "ria", "dass"])
def test_any_score_with_any_update(method, pattern, update):
    model, _ = load_tiny("llama")
    ids_ST = torch.randint(0, 500, (3, 64), generator=torch.Generator().manual_seed(0))
    report = prunus.prune(
        model, method=method, pattern=pattern, update=update, tokens_ST=ids_ST
    ).report
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    for layer in report.layers:
        assert layer.relative_output_error < layer.error_before_update
        if update == "least-squares":
            assert layer.notes["gap"] <= 1e-3
            assert layer.notes["iterations"] > 0


@pytest.mark.parametrize("method", UPDATING)
def test_a_certified_gap_is_promised_where_the_report_has_one(method):
    _, _, _, _, reports = prune_tiny(method, "2:4", 0.5)
    promised = "with a certified gap" in METHODS[method].differs
    assert all(("gap" in report.notes) == promised for report in reports)


def test_updates_are_named_and_their_settings_reached():
    pruner = build_method("ria", update="least-squares", settings={"update.tolerance": 1e-5})
    assert pruner.pruner.update.tolerance == 1e-5
    assert build_method("dass", update="sparsegpt").rest.update == UPDATES["sparsegpt"]
    with pytest.raises(UnknownNameError, match="Did you mean 'least-squares'"):
        build_method("ria", update="least-square")
    with pytest.raises(InputError, match="sparsegpt chooses weights and updates them together"):
        build_method("sparsegpt", update="keep")
    with pytest.raises(PatternError, match="mask M weighs the subsets"):
        build_method("mrp-mm", Unstructured("row"))
