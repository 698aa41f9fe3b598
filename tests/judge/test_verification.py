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


@pytest.mark.reload
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
    assert "1 tensors that were not to be pruned differ" in said
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
    assert "A fresh load reports missing tensors: ['model.norm.weight']" in said
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "no-such-model"
    (folder / "config.json").write_text(json.dumps(config))
    assert "cannot load it in a fresh process" in " ".join(verify(folder).problems)


def test_folders_that_prunus_did_not_write(tmp_path, damaged):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
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
