"""Whole evaluations: a dense model that does not fit, checkpoints of every kind, many texts."""

import json
import multiprocessing
import os
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import InputError
from prunus.cli.main import app
from prunus.judge import dense

LLAMA = MODELS / "llama"
FEW = {"length": 64, "windows": 2}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "half"
    prunus.prune(LLAMA, method="magnitude", sparsity=0.5, output=folder)
    return folder


class Ear(prunus.Silent):
    def __init__(self):
        self.heard = []

    def say(self, message):
        self.heard.append(message)


def leave_room(monkeypatch, blocks):
    """Let the model outside of its blocks fit, one block that runs, and so many that stay."""
    model, _ = load_tiny("llama")
    inside = {id(p) for p in model.model.layers.parameters()}
    outside = [*(p for p in model.parameters() if id(p) not in inside), *model.buffers()]
    size = sum(p.numel() * p.itemsize for p in model.model.layers[0].parameters())
    room = sum(x.numel() * x.itemsize for x in outside) + size * (1 + blocks)
    monkeypatch.setattr(dense, "available_on", lambda device: room)
    monkeypatch.setattr(dense, "SHARE", 1)


@pytest.mark.parametrize("stay", [0, 1])
def test_a_dense_model_that_does_not_fit_gives_the_same(stay, pruned, monkeypatch):
    ear, whole = Ear(), prunus.evaluate(pruned, against=LLAMA, **FEW)
    leave_room(monkeypatch, stay)
    found = prunus.evaluate(pruned, against=LLAMA, observer=ear, **FEW)
    assert replace(found, tokens_per_second=0) == replace(whole, tokens_per_second=0)
    assert f"{3 - stay} of 3 blocks are read as they run" in ear.heard[-1]
    with dense.dense_model(LLAMA, CPU) as model:
        there = [not x.mlp.up_proj.weight.is_meta for x in model.model.layers]
    assert there == [True] * stay + [False] * (3 - stay)
    assert model.model.layers[0].mlp.up_proj.weight.is_meta  # in the end all are gone


def test_packed_and_uneven_checkpoints(pruned, tmp_path):
    prunus.write_packed_checkpoint(pruned, tmp_path / "packed")
    plain = prunus.evaluate(pruned, against=LLAMA, **FEW)
    packed = prunus.evaluate(tmp_path / "packed", against=LLAMA, **FEW)
    for name in ("perplexity", "kl", "best_five"):
        assert getattr(packed.against, name) == pytest.approx(getattr(plain.against, name), 1e-4)
    assert packed.perplexity == pytest.approx(plain.perplexity, rel=1e-4)
    back = prunus.evaluate(LLAMA, against=tmp_path / "packed", **FEW).against
    assert back.perplexity == packed.perplexity
    prunus.prune(
        LLAMA, method="flap", sparsity=0.3, samples=8, length=64, output=tmp_path / "narrow"
    )
    assert (tmp_path / "narrow" / "widths.json").exists()
    narrow = prunus.evaluate(tmp_path / "narrow", against=LLAMA, **FEW)
    model, dense_model = prunus.load(tmp_path / "narrow"), prunus.load(LLAMA)
    _, tokenizer = load_tiny("llama")
    again = prunus.evaluate(model, against=dense_model, tokenizer=tokenizer, **FEW)
    assert again.against == replace(narrow.against, model=again.against.model)
    assert again.against.kl > 0


def test_tasks_on_packed_and_uneven_checkpoints(pruned, tmp_path, monkeypatch):
    """No process is forked for the bootstrap: one forked beside torch's threads may hang."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(multiprocessing, "Pool", lambda *args: pytest.fail("a pool of forks"))
    texts = ["Once upon a time there was a dog", "The boy ran to the park", "She was happy"]
    (tmp_path / "lambada_test.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    prunus.write_packed_checkpoint(pruned, tmp_path / "packed")

    def tasks(model):
        found = prunus.evaluate_all(model, tasks="lambada_openai", data_dir=tmp_path)
        return found.tasks[0].values

    plain, packed = tasks(pruned), tasks(tmp_path / "packed")
    assert plain["perplexity_stderr"] > 0
    assert "DISABLE_MULTIPROC" not in os.environ
    assert packed["acc"] == plain["acc"]
    assert packed["perplexity"] == pytest.approx(plain["perplexity"], rel=1e-4)
    last = prunus.evaluate(tmp_path / "packed", texts, last_word=True)
    assert last.perplexity == pytest.approx(packed["perplexity"], rel=1e-3)


def test_several_texts_are_a_result_each(pruned, tmp_path):
    (tmp_path / "a.txt").write_text("A dog ran to the park with a boy. " * 40)
    names = [str(tmp_path / "a.txt"), "builtin"]
    found = prunus.evaluate_all(pruned, names, **FEW).texts
    alone = prunus.evaluate(pruned, names[0], **FEW)
    assert replace(found[0], tokens_per_second=0) == replace(alone, tokens_per_second=0)
    asked = [str(pruned), "--length", "64", "--windows", "2", "--against", str(LLAMA)]
    many = ["--text", names[0], "--text", names[1]]
    said = json.loads(CliRunner().invoke(app, ["eval", *asked, *many, "--json"]).stdout)
    assert set(said) == {"texts", "tasks"}
    assert [text["perplexity"] for text in said["texts"]] == [text.perplexity for text in found]
    assert said["tasks"] == []
    assert said["texts"][0]["against"]["kl"] > 0
    shown = CliRunner().invoke(app, ["eval", *asked, *many]).stdout
    assert all(f"{text.perplexity:.4f}" in shown for text in found)
    expected = said["texts"][1]
    lines = CliRunner().invoke(app, ["eval", *asked]).stdout
    assert f"KL {expected['against']['kl']:.4f} nats per token" in lines
    assert f"{expected['against']['prefix_mean']:.1f} of 64 tokens" in lines


def test_nothing_but_a_list_is_several_texts(pruned):
    with pytest.raises(InputError, match="texts is a list"):
        prunus.evaluate_all(pruned, "builtin")
