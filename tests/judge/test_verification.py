"""Verification passes what is sound, and names each kind of damage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError, PatternError
from prunus.judge.verify import verify
from prunus.maths.orders import Assignment
from prunus.maths.patterns import NM
from prunus.report.report import read_report

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One checkpoint of each kind of pattern."""
    root = tmp_path_factory.mktemp("pruned")
    for name, family, fields in [
        ("row", "llama", {"method": "wanda", "sparsity": 0.3}),
        ("layer", "llama", {"method": "ria"}),
        ("2:4", "llama", {"method": "wanda", "pattern": "2:4"}),
        ("dass", "llama", {"method": "dass", "pattern": "2:4"}),
        ("conv1d", "gpt2", {"method": "wanda", "pattern": "4:8"}),
        ("fused", "phi3", {"method": "dass", "sparsity": 0.55}),
    ]:
        prunus.prune(MODELS / family, output=root / name, samples=2, length=64, **fields)
    return root


@pytest.fixture
def damaged(checkpoints, tmp_path):
    """A copy to damage, and a way to change one tensor of it."""

    def copy(name, change=lambda tensors: None):
        folder = Path(shutil.copytree(checkpoints / name, tmp_path / name))
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return copy


@pytest.mark.parametrize(
    ("name", "source", "pattern"),
    [
        ("row", "llama", "row"),
        ("layer", "llama", "layer"),
        ("2:4", "llama", "2:4"),
        ("dass", "llama", "2:4, 2:4:output"),
        ("conv1d", "gpt2", "4:8"),
        ("fused", "phi3", "row, column"),
    ],
)
def test_what_prune_writes_passes(name, source, pattern, checkpoints):
    found = verify(checkpoints / name, source=MODELS / source, reload=False)
    assert found.problems == []
    assert found.pattern == pattern
    assert found.sparsity == pytest.approx({"row": 0.3, "fused": 0.55}.get(name, 0.5), abs=0.02)


@pytest.mark.reload(fresh=True)
def test_a_fresh_process_reloads_it(checkpoints):
    found = verify(checkpoints / "conv1d")
    assert found.ok
    assert "fresh process" in found.checks[-1]


def problems(folder, **arguments):
    return " ".join(verify(folder, reload=False, **arguments).problems)


def test_a_pruned_weight_that_came_back(damaged):
    def refill(tensors):
        weight_OI = tensors[UP]
        weight_OI[(weight_OI == 0).nonzero()[5].unbind()] = 0.1

    for name, message in [
        ("row", "is not row: 1 of 160 groups have fewer than 19 zeros"),
        ("layer", "is not layer: 1 of 1 groups have fewer than 5120 zeros"),
        ("2:4", "is not 2:4: 1 of 2560 groups have fewer than 2 zeros"),
        ("dass", "is not 2:4:output: 1 of 2560"),
    ]:
        folder = damaged(name, refill)
        said = problems(folder)
        assert f"{UP} {message}" in said
        assert f"{UP} has" in said  # the report's count is off too


def test_columns_in_another_order_are_not_nm_any_more(damaged):
    def shuffle(tensors):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        tensors[UP] = tensors[UP][:, order].contiguous()

    assert f"{UP} is not 2:4" in problems(damaged("2:4", shuffle))


def test_a_demanded_pattern(checkpoints):
    assert problems(checkpoints / "2:4", pattern="2:4") == ""
    assert problems(checkpoints / "2:4", pattern="4:8") == ""  # 2:4 is 4:8 as well
    assert "is not 2:4" in problems(checkpoints / "row", pattern="2:4")
    assert "is not 1:4" in problems(checkpoints / "2:4", pattern="1:4")
    assert "cannot be 2:7" in problems(checkpoints / "2:4", pattern="2:7")


def relabelled(folder, orders=None, **changes):
    """Say in the report that every layer is 2:4 in an order of its own; store these orders."""
    path = folder / "pruning_report.json"
    report = json.loads(path.read_text())
    for layer in report["layers"]:
        layer["pattern"], layer["requested"] = "2:4", 0.5
        layer["notes"]["order"] = "free"
    path.write_text(json.dumps({**report, "pattern": "2:4", **changes}))
    content = {"residual": None, "folded": {}, "gathered": {}}
    if orders is not None:
        content["free"] = {x["name"]: orders(x["shape"][1], x["name"]) for x in report["layers"]}
    (folder / "channel_orders.json").write_text(json.dumps(content))
    return folder


def best_order(folder):
    """The order under which each layer comes closest to 2:4, found by the default search."""
    tensors = load_file(folder / "model.safetensors")

    def order(inputs, name):
        kept_OI = (tensors[f"{name}.weight"] != 0).float()
        return Assignment()(kept_OI, NM(2, 4), 0.5).tolist()

    return order


def test_an_unstructured_checkpoint_does_not_pass_as_two_four_in_a_free_order(tmp_path):
    """Half of every row is 0, in no pattern: whatever orders come with it, or none."""
    prunus.prune(
        MODELS / "llama", method="wanda", output=tmp_path / "row", samples=2, length=64
    )  # fmt: skip
    assert problems(tmp_path / "row") == ""
    folder = relabelled(tmp_path / "row")
    said = problems(folder)
    assert "No claim can be checked about the pattern of 21 layers, such as model.layers.0" in said
    assert "channel_orders.json has none that fits" in said
    for order in (
        lambda inputs, _: list(range(inputs)),
        lambda inputs, _: torch.randperm(inputs).tolist(),
        best_order(folder),
    ):
        said = problems(relabelled(folder, order))
        assert f"{UP} is not 2:4: " in said
        assert "No claim" not in said
    assert "is not 2:4" in problems(folder, pattern="2:4")
    assert problems(folder, pattern="row") == ""  # which needs no order, and is true
    said = problems(relabelled(folder, lambda inputs, _: list(range(inputs - 4))))
    assert "No claim can be checked" in said  # orders of another width
    with pytest.raises(CheckpointError, match=r"channel_orders\.json is damaged"):
        verify(relabelled(folder, lambda inputs, _: [0] * inputs), reload=False)
    with pytest.raises(CheckpointError, match=r"channel_orders\.json is damaged"):
        verify(relabelled(folder, lambda n, _: [i + 0.5 for i in range(n)]), reload=False)


def test_parts_that_leave_rows_out_prove_nothing(damaged):
    folder = damaged("fused", lambda tensors: None)
    path = folder / "pruning_report.json"
    report = json.loads(path.read_text())
    layer = next(x for x in report["layers"] if "pruned_apart" in x["notes"])
    layer["notes"]["pruned_apart"] = [[0, 0, 1]]
    path.write_text(json.dumps(report))
    assert "are not the whole of it" in problems(folder)


def test_nan_wrong_shapes_and_missing_tensors(damaged, checkpoints):
    def spoil(tensors):
        tensors["model.norm.weight"][0] = float("nan")
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(3, 4)
        del tensors[UP]

    said = problems(damaged("row", spoil))
    assert "model.norm.weight holds NaN or inf" in said
    assert "q_proj.weight is (3, 4), not (64, 64)" in said
    assert f"{UP} is in the report but not in the checkpoint" in said
    assert checkpoints.exists()


def test_a_tensor_that_was_not_to_be_pruned(damaged):
    def touch(tensors):
        tensors["model.layers.0.input_layernorm.weight"][3] += 1

    folder = damaged("2:4", touch)
    assert problems(folder) == ""
    said = problems(folder, source=MODELS / "llama")
    assert f"Not to be pruned, but not as in {MODELS / 'llama'}: 1 tensor (" in said
    assert "input_layernorm" in said


def test_kept_weights_are_compared_too_where_the_method_keeps_them(damaged):
    def scale(tensors):
        tensors[UP] *= 1.5

    folder = damaged("2:4", scale)
    assert problems(folder) == ""
    assert f"kept weights of {UP}" in problems(folder, source=MODELS / "llama")


def test_claims_that_loaders_would_act_on(damaged):
    folder = damaged("row")
    config = json.loads((folder / "config.json").read_text())
    config["sparsity_config"] = {"format": "dense"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json has a sparsity_config" in problems(folder)


@pytest.mark.reload
def test_a_checkpoint_that_plain_transformers_cannot_load(damaged):
    folder = damaged("row", lambda tensors: tensors.pop("model.norm.weight"))
    said = " ".join(verify(folder).problems)
    assert "A fresh load reports missing tensors: model.norm.weight." in said
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "no-such-model"
    (folder / "config.json").write_text(json.dumps(config))
    assert "cannot load it in a fresh process" in " ".join(verify(folder).problems)


def test_folders_that_prunus_did_not_write(tmp_path, damaged):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: no config\.json"):
        verify(tmp_path)
    dense = verify(MODELS / "llama", reload=False)
    assert (dense.problems, dense.pattern, dense.sparsity) == ([], "dense", 0)
    folder = damaged("row")
    report = folder / "pruning_report.json"
    whole = json.loads(report.read_text())
    for damage in (
        {"layers": 3},
        {"sparsity": "much"},
        {"layers": [{"name": "x"}]},
        {"layers": []},
    ):
        report.write_text(json.dumps({**whole, **damage}))
        with pytest.raises(CheckpointError, match=r"pruning_report\.json is damaged"):
            verify(folder)
    report.write_text(json.dumps(whole))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 0.9}, "The report says that 0.900000 of all weights are zero; it is 0.297"),
        ({"coverage": {"parameters": 9, "embeddings": 1, "block_weights": 5, "pruned_weights": 4}},
         "The report says that 4 weights were covered"),
    ],
)  # fmt: skip
def test_a_report_that_claims_what_is_not_so(change, message, damaged):
    folder = damaged("row")
    report = folder / "pruning_report.json"
    report.write_text(json.dumps({**json.loads(report.read_text()), **change}))
    assert message in problems(folder)


def test_a_report_that_leaves_layers_out(damaged):
    folder = damaged("row")
    report = folder / "pruning_report.json"
    content = json.loads(report.read_text())
    content["layers"] = content["layers"][:1]
    report.write_text(json.dumps(content))
    assert "weights were covered; its layers have 4096" in problems(folder)


@pytest.mark.reload
def test_files_beside_the_user_do_not_matter(checkpoints, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert verify(checkpoints / "row").problems == []


def test_a_choice_of_patterns_cannot_be_demanded(checkpoints):
    with pytest.raises(PatternError, match="leaves a choice"):
        verify(checkpoints / "row", pattern="1:4,2:4", reload=False)


QUANTISED = {  # how it is pruned, and the patterns that it has then
    "dass": ({"method": "dass", "pattern": "2:4"}, {"2:4": 15, "2:4:output": 6}),
    "dass, unstructured": ({"method": "dass", "sparsity": 0.3}, {"row": 15, "column": 6}),
    "free": ({"pattern": "2:4", "permutation": "free"}, {"2:4 in a free order": 21}),
    "gather": (
        {"pattern": "2:4", "permutation": "gather"},
        {"2:4": 6, "2:4 behind an index": 15},
    ),
    "fold": ({"pattern": "2:4", "permutation": "fold"}, {"2:4": 21}),
    "MLP alone": ({"pattern": "2:4", "mlp_only": True}, {"layer": 12, "2:4": 9}),
    "a choice": (
        {
            **{"pattern": "1:4,2:4,3:4", "sparsity": 0.5, "allocation": "owl"},
            "settings": {"allocation.reach": 0.3},
        },
        {"1:4": 7, "2:4": 7, "3:4": 7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("pack", [False, True])
def test_quantize_makes_every_claim_again_and_it_is_checked(kind, pack, tmp_path):
    fields, patterns = QUANTISED[kind]
    pruned, small = tmp_path / "pruned", tmp_path / "small"
    prunus.prune(
        MODELS / "llama", output=pruned, samples=2, length=64, **{"method": "wanda", **fields}
    )
    before = verify(pruned, reload=False)
    if kind != "MLP alone":
        assert sum(before.patterns.values()) == 21
    search = {"scales": False, "clip": False, "pack": pack, "calibration": "none"}
    report = prunus.quantize(pruned, bits=8, group=16, output=small, **search).report
    found = verify(small, reload=False)
    assert found.problems == []
    assert found.patterns.keys() == patterns.keys()
    if kind == "a choice":
        assert found.patterns == before.patterns
    else:
        assert found.patterns == patterns
    wanted = [x.requested for x in read_report(pruned).layers]
    if kind != "MLP alone":
        assert [x.requested for x in report.layers] == wanted
        assert report.requested == pytest.approx(read_report(pruned).requested, abs=0.01)
    # Once more, by the recipe, on what is quantised by now; and a weight that came back is seen.
    again = tmp_path / "again"
    prunus.prune(small, small / "recipe.yaml", output=again, pack=False)
    assert verify(again, reload=False).patterns == found.patterns
    tensors = load_file(again / "model.safetensors")
    tensors[UP][(tensors[UP] == 0).nonzero()[5].unbind()] = 0.1
    save_file(tensors, again / "model.safetensors", metadata={"format": "pt"})
    assert f"{UP} is not " in problems(again)


def test_quantize_keeps_the_claims_of_halves_and_loses_what_nothing_proves(checkpoints, tmp_path):
    search = {"scales": False, "clip": False, "calibration": "none"}
    prunus.quantize(checkpoints / "fused", bits=8, group=16, output=tmp_path / "8", **search)
    assert verify(tmp_path / "8", reload=False).pattern == "row, column"
    layers = read_report(tmp_path / "8").layers
    assert sum("pruned_apart" in layer.notes for layer in layers) == 3
    folder = Path(shutil.copytree(checkpoints / "2:4", tmp_path / "old"))
    relabelled(folder)
    prunus.quantize(folder, bits=8, group=16, output=tmp_path / "no", **search)
    found = verify(tmp_path / "no", reload=False)
    assert (found.problems, found.patterns) == ([], {"layer": 21})
    prunus.quantize(folder, bits=8, group=16, pattern="2:4", output=tmp_path / "yes", **search)
    assert verify(tmp_path / "yes", reload=False).patterns == {"2:4": 21}
