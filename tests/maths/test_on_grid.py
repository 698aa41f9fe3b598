"""Pruning with a grid before and after the mask: the laws hold, and the values are the grid's."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunus
from helpers.models import FAMILIES, MODELS, load_tiny
from prunus.base.errors import InputError
from prunus.maths.grids import Grid
from prunus.maths.patterns import Unstructured
from prunus.maths.pruners import Compose, EachLayer, OnGrid
from prunus.maths.scores import Magnitude
from prunus.maths.updates import LeastSquares
from prunus.methods.build import build_method
from prunus.methods.table import METHODS
from prunus.model.inspect import inspect, start
from prunus.recipe import Recipe
from prunus.run.loop import prune_blocks
from prunus.run.observer import Silent

FAST = {"samples": 2, "length": 48}
IDS = torch.randint(0, 500, (3, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _without_reload(request, monkeypatch):
    if "reload" not in request.keywords:
        monkeypatch.setattr("prunus.judge.reload.check", lambda *args: None)


def run(pruner, sparsity=0.5, family="llama", dtype=torch.float32):
    """Prune the tiny model; its layers, their dense weights, and the reports."""
    model = load_tiny(family)[0].to(dtype)
    blocks, traced = inspect(model, IDS)
    layers = [layer for block in blocks for layer in block.layers]
    dense = {layer.name: layer.weight_OI.clone() for layer in layers}
    plan = dict.fromkeys(dense, sparsity)
    where = {"device": torch.device("cpu"), "observer": Silent()}
    recording = start(model, blocks, traced, IDS)
    reports = prune_blocks(blocks, recording, pruner, plan, **where)
    return layers, dense, {report.name: report for report in reports}


def groups(weight_OI, grid):
    size = grid.group or weight_OI.shape[1]
    return [weight_OI[:, i : i + size] for i in range(0, weight_OI.shape[1], size)]


def on_some_grid(values, top):
    """Whether all are whole steps from 0, with ``top`` steps from end to end at most."""
    gap = values.diff().min() if len(values) > 1 else values.abs().clamp_min(1e-9)[0]
    for step in (gap / k for k in range(1, top + 1)):
        steps = values / step
        whole = (steps - steps.round()).abs().max() < 1e-3
        if whole and steps.max() - steps.min() < top + 0.5:
            return True
    return False


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_any_method_on_a_grid(method, when):
    grid = Grid(3, 24)  # 64 inputs make two groups and a shorter one
    if when == "before" and method in ("sparsegpt", "mrp-ss", "mrp-sm", "mrp-ms", "mrp-mm"):
        with pytest.raises(InputError, match=f"{method} gives the kept weights new values"):
            build_method(method, grid=grid, quantize=when)
        return
    layers, _, reports = run(build_method(method, grid=grid, quantize=when))
    for layer in layers:
        report = reports[layer.name]
        zeros = int((layer.weight_OI == 0).sum())
        assert report.sparsity == zeros / layer.weight_OI.numel()
        rounded = report.notes["kept_but_rounded_to_0"]
        requested = layer.weight_OI.numel() // 2
        assert abs(zeros - rounded - requested) <= layer.weight_OI.shape[1]  # groups round down
        for part_ON in groups(layer.weight_OI, grid):
            for row_N in part_ON:
                assert on_some_grid(row_N.unique(), 7)
        assert report.relative_output_error > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("when", ["before", "after"])
def test_it_is_the_plain_sequence_of_both(when, dtype):
    """Magnitude by rows, done by sorting here."""
    grid = Grid(4, 16)
    pruner = OnGrid(EachLayer(Compose(Magnitude(), Unstructured("row"))), grid, when)
    layers, dense, reports = run(pruner, dtype=dtype)
    for layer in layers:
        weight_OI = dense[layer.name]
        first_OI = grid.quantize(weight_OI).dequantize() if when == "before" else weight_OI
        drop = first_OI.float().abs().sort(dim=1, stable=True).indices[:, : weight_OI.shape[1] // 2]
        masked_OI = first_OI.scatter(1, drop, 0.0)
        new_OI = masked_OI if when == "before" else grid.quantize(masked_OI).dequantize()
        assert torch.equal(layer.weight_OI, new_OI)
        assert (layer.weight_OI.gather(1, drop) == 0).all()
        assert reports[layer.name].updated


def test_the_dense_weight_is_what_the_error_is_measured_against():
    """Also where the method was shown a quantised one: 2 bits before pruning cost more than 8."""
    errors = {}
    for bits in (2, 8):
        pruner = build_method("wanda", grid=Grid(bits, 16), quantize="before")
        errors[bits] = {name: r.relative_output_error for name, r in run(pruner)[2].items()}
    assert all(errors[2][name] > errors[8][name] for name in errors[2])
    plain = {name: r.relative_output_error for name, r in run(build_method("wanda"))[2].items()}
    first = next(iter(plain))
    assert errors[8][first] == pytest.approx(plain[first], rel=0.05)


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_and_everything(sparsity):
    layers, dense, _ = run(build_method("wanda", grid=Grid(4, None)), sparsity)
    for layer in layers:
        if sparsity:
            assert not layer.weight_OI.any()
        else:
            expected_OI = Grid(4, None).quantize(dense[layer.name]).dequantize()
            assert torch.equal(layer.weight_OI, expected_OI)


def test_a_method_that_moves_what_was_on_the_grid_is_stopped():
    pruner = EachLayer(Compose(Magnitude(), Unstructured("row"), update=LeastSquares()))
    with pytest.raises(InputError, match="they leave the grid that they were quantised to"):
        run(OnGrid(pruner, Grid(4, 16), "before"))


def test_it_is_frozen_and_says_what_it_is():
    pruner = build_method("ria", grid=Grid(4, 64), settings={"score.power": 0.4})
    assert isinstance(pruner, OnGrid)
    assert pruner.pruner.pruner.score.power == 0.4
    assert "grid=Grid(bits=4, group=64), when='after'" in repr(pruner)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruner.when = "before"


def test_a_recipe_says_so_and_refuses_half_of_it(tmp_path):
    recipe = Recipe.of(method="wanda", bits=4, group=0, quantize="before")
    assert recipe.grid() == Grid(4, None)
    assert recipe.build()[0] == build_method("wanda", grid=Grid(4, None), quantize="before")
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml("m"))
    assert Recipe.read(file).build() == recipe.build()
    assert Recipe.of(method="wanda", bits=4).grid() == Grid(4, 128)
    for field in ({"group": 64}, {"quantize": "after"}, {"pack": True}):
        with pytest.raises(InputError, match="is for a run with --bits, such as --bits 4"):
            Recipe.of(method="wanda", **field).build()
    with pytest.raises(InputError, match="2 to 8 bits; got 9"):
        Recipe.of(method="wanda", bits=9).build()
    with pytest.raises(InputError, match="quantize: "):
        Recipe.of(method="wanda", bits=4, quantize="during")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_its_files(family, tmp_path):
    fields = {"method": "wanda", "bits": 4, "group": 16, "quantize": "before", **FAST}
    result = prunus.prune(MODELS / family, output=tmp_path / "out", **fields)
    assert result.verification.ok
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    assert report["grid"] == {"bits": 4, "group": 16}
    assert report["packed"] is False
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| integer grid | 4 bits, groups of 16 |" in card
    assert "those that the integers stand for: this checkpoint is as large and as fast" in card
    assert "bits: 4\ngroup: 16\nquantize: before\n" in card
    verified = prunus.verify(tmp_path / "out", source=MODELS / family)
    assert verified.ok, verified.problems


def test_verify_sees_a_value_that_is_on_no_grid(tmp_path):
    fields = {"method": "wanda", "bits": 2, "group": 16, **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "out", **fields)
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    row_I = tensors["model.layers.1.mlp.up_proj.weight"][3]
    row_I[row_I != 0] *= torch.linspace(1, 1.1, int((row_I != 0).sum()))
    save_file(tensors, path, metadata={"format": "pt"})
    (problem,) = prunus.verify(tmp_path / "out").problems
    assert "up_proj.weight is on no grid of 2 bits, groups of 16: a group has" in problem


@pytest.mark.parametrize(("permutation", "group"), [("fold", 16), ("free", 16), ("gather", 0)])
def test_orders_of_channels(permutation, group, tmp_path):
    fields = {"method": "wanda", "pattern": "2:4", "permutation": permutation, **FAST}
    result = prunus.prune(MODELS / "llama", output=tmp_path / "out", bits=4, group=group, **fields)
    assert result.verification.ok, result.verification.problems
    verified = prunus.verify(tmp_path / "out", source=MODELS / "llama")
    assert verified.ok, verified.problems


def test_gathered_groups_are_refused():
    with pytest.raises(InputError, match="neither --group nor --pack can be used"):
        Recipe.of(method="wanda", pattern="2:4", permutation="gather", bits=4, group=16).build()
    with pytest.raises(InputError, match="or --group 0 without --pack"):
        Recipe.of(
            method="wanda", pattern="2:4", permutation="gather", bits=4, group=0, pack=True
        ).build()


def test_a_plan_with_a_grid_leaves_the_model_alone(tmp_path):
    model, tokenizer = load_tiny("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fields = {"method": "wanda", "bits": 4, "group": 16, "tokens_ST": IDS}
    assert prunus.plan(model, tokenizer=tokenizer, **fields).seconds > 0
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
