"""``verify --source`` for heads and neurons, whatever the source's files call their tensors."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunus
from helpers.models import MODELS
from helpers.random_models import MIXTURES, build
from helpers.structured_models import IDS
from prunus.judge.comparison import is_left_of
from prunus.judge.verify import verify

WEIGHTS = "model.safetensors"
RUN = {"tokens_ST": IDS, "sparsity": 0.4}


@pytest.fixture(autouse=True)
def _without_reload(monkeypatch):
    monkeypatch.setattr("prunus.judge.reload.check", lambda *args: None)


def base_gpt2(folder):
    """GPT-2 as the hub has it: its tensors are called as in the base model."""
    shutil.copytree(MODELS / "gpt2", folder)
    tensors = load_file(folder / WEIGHTS)
    short = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    short.pop("lm_head.weight", None)
    save_file(short, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def changed(folder, name, change):
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["base gpt2", "gpt_neox"])  # both renamed as they are loaded
def test_tensors_under_the_models_own_names(name, tmp_path):
    source = base_gpt2(tmp_path / "dense") if name == "base gpt2" else MODELS / name
    out = tmp_path / "out"
    report = prunus.prune(source, method="goa", blocks="1:2", output=out, **RUN).report
    assert not report.structured.stock
    assert verify(out, source=source, reload=False).problems == []
    norms = ("h.0.ln_1.weight", "layers.0.input_layernorm.weight")
    key = next(key for key in load_file(out / WEIGHTS) if key.endswith(norms))
    changed(out, key, lambda x: x + 1)
    problems = verify(out, source=source, reload=False).problems
    assert problems == [f"Not to be pruned, but not as in {source}: 1 tensor ({key})"]


def test_experts_that_are_merged_as_they_are_loaded(tmp_path):
    """On disk one by one in the source, and in one tensor where widths.json names the heads."""
    source, out = tmp_path / "dense", tmp_path / "out"
    build("mixtral", MIXTURES["mixtral"]).save_pretrained(source)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "llama" / file, source)
    heads = {"settings": {"target": "heads"}, "blocks": "0:1"}
    prunus.prune(source, method="goa", output=out, **{**RUN, "sparsity": 0.5}, **heads)
    assert verify(out, source=source, reload=False).problems == []
    key = "model.layers.0.mlp.experts.down_proj"
    changed(out, key, lambda x: x + (torch.arange(len(x)) == 2).view(-1, 1, 1))
    problems = verify(out, source=source, reload=False).problems
    assert problems == [f"Not to be pruned, but not as in {source}: 1 tensor ({key})"]


def test_shrunk_tensors_are_parts_of_the_sources(tmp_path):
    source, out = MODELS / "llama", tmp_path / "out"
    prunus.prune(source, method="goa", output=out, **RUN)
    assert verify(out, source=source, reload=False).problems == []
    key = "model.layers.1.mlp.up_proj.weight"
    changed(out, key, lambda x: x.flip(0))
    (problem,) = verify(out, source=source, reload=False).problems
    assert problem.startswith(f"{key}: not what {source} has there without some rows or columns")


def test_widths_that_the_report_does_not_have(tmp_path):
    out = tmp_path / "out"
    prunus.prune(MODELS / "llama", method="flap", output=out, **RUN)
    text = (out / "widths.json").read_text()
    (out / "widths.json").write_text(text.replace('"heads": 4', '"heads": 2', 1))
    assert text != (out / "widths.json").read_text()
    (problem,) = verify(out, reload=False).problems
    assert problem.startswith("Block ")
    assert "2 query heads" in problem


def test_a_part_is_some_rows_or_columns_in_their_order():
    was = torch.arange(12.0).view(3, 4)
    for part, expected in [
        (was, True), (was[1:], True), (was[[0, 2]], True), (was[:, [0, 3]], True),
        (was[[2, 0]], False), (was[:, [3, 0]], False), (was[1:] + 1, False), (was[0], False),
        (was[:0], True), (was[[0, 0]], False), (was[0:1, [0, 3]], False),
    ]:  # fmt: skip
        assert is_left_of(part, was) is expected, part
    assert is_left_of(was[0][1:], was[0])
