"""What a run will cover and cost, and that finding out changes nothing."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import CheckpointError
from prunus.cli.main import app
from prunus.model.replay import Recording
from prunus.run import rehearse, walk

FAST = {"samples": 4, "length": 48}


@pytest.mark.parametrize(
    "run",
    [
        {"method": "magnitude"},
        {"method": "wanda", "mlp_only": True},
        {"method": "mrp-sm", "pattern": "2:4", "permutation": "fold", "true_sequential": True},
        {"method": "dass", "pattern": "2:4", "skip_blocks": "0:1"},
    ],
    ids=lambda run: run["method"],
)
def test_it_counts_what_prune_will_prune(run, tmp_path):
    plan = prunus.plan(MODELS / "llama", output=tmp_path / "out", **run, **FAST)
    assert os.listdir(tmp_path) == []
    report = prunus.prune(MODELS / "llama", **run, **FAST).report
    assert plan.coverage == report.coverage.share
    assert sum(kind.parameters for kind in plan.kinds) == report.coverage.parameters
    assert sum(kind.pruned for kind in plan.kinds) == report.coverage.pruned_weights
    roles = {layer.role for layer in report.layers}
    assert {kind.kind for kind in plan.kinds if kind.pruned} == roles
    assert plan.seconds > 0
    assert plan.disk_bytes == 2 * 4 * report.coverage.parameters  # shards, then one file of them
    assert plan.blocks == 3


def test_every_kind_of_tensor_has_a_name():
    kinds = {kind.kind: kind for kind in prunus.plan(MODELS / "gpt_neox", method="ri").kinds}
    assert kinds["embeddings"].pruned == kinds["head"].pruned == 0
    assert kinds["embeddings"].parameters == kinds["head"].parameters > 0
    assert kinds["qkv"].pruned == kinds["qkv"].parameters
    assert "norms and biases of blocks" in kinds


def test_a_model_in_memory_keeps_its_weights():
    model, tokenizer = load_tiny("opt")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    plan = prunus.plan(
        model, method="ria", pattern="2:4", permutation="fold", tokenizer=tokenizer, **FAST
    )
    assert plan.rehearsed["record"] > 0
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_a_block_runs_only_where_it_was_put(monkeypatch):
    """A rehearsal on another device: the block has to be there for every forward."""
    there = []

    @contextmanager
    def watched(device, block, enter=walk.on):
        with enter(device, block):
            there.append(block.name)
            yield
            there.pop()

    def advance(self, index, module, *args, old=Recording.advance):
        assert len(there) == 1
        return old(self, index, module, *args)

    for module in (walk, rehearse):
        monkeypatch.setattr(module, "on", watched)
    monkeypatch.setattr(Recording, "advance", advance)
    prunus.plan(MODELS / "llama", method="wanda", **FAST)


def test_spilling_moves_activations_from_memory_to_disk(tmp_path):
    ids_ST = torch.randint(0, 500, (64, 512))
    run = {"method": "wanda", "tokens_ST": ids_ST}
    held = prunus.plan(MODELS / "llama", **run)
    spilled = prunus.plan(MODELS / "llama", spill=tmp_path, **run)
    assert spilled.disk_bytes - held.disk_bytes == 64 * 512 * 64 * 4
    assert os.listdir(tmp_path) == []  # nothing is written by a plan


def test_the_forecast_of_memory_is_that_of_the_run(tmp_path):
    """In processes of their own; within a third of what the run then takes."""
    code = (
        "import resource, sys, prunus\n"
        "from prunus.judge import reload\n"
        "reload.check = lambda *args: None\n"
        "run = dict(method='sparsegpt', samples=64, length=512)\n"
        "if sys.argv[1] == 'plan':\n"
        "    print(prunus.plan(sys.argv[2], **run).peak_bytes)\n"
        "else:\n"
        "    prunus.prune(sys.argv[2], output=sys.argv[3], **run)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    command = [sys.executable, "-c", code]
    model, out = str(MODELS / "llama"), str(tmp_path / "out")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = [
        int(subprocess.run([*command, kind, model, out], env=env, check=True, capture_output=True,
                           text=True).stdout)
        for kind in ("plan", "prune")
    ]  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=1 / 3)


def test_the_command(tmp_path):
    runner = CliRunner()
    arguments = ["plan", str(MODELS / "llama"), "--method", "wanda", "--samples", "2",
                 "--length", "48"]  # fmt: skip
    found = runner.invoke(app, arguments)
    assert found.exit_code == 0
    assert "save no memory and no time" in found.stdout
    assert "covers 79.5% of all parameters" in found.stdout
    found = runner.invoke(app, [*arguments, "--json"])
    assert {"coverage", "peak_bytes", "disk_bytes", "seconds"} <= set(json.loads(found.stdout))
    (tmp_path / "here" / "already").mkdir(parents=True)
    found = runner.invoke(app, [*arguments, "--output", str(tmp_path / "here")])
    assert found.exit_code == 2
    assert "--resume" not in runner.invoke(app, ["plan", "--help"]).stdout
    with pytest.raises(CheckpointError, match="exists"):
        prunus.plan(MODELS / "llama", method="wanda", output=tmp_path / "here")


@pytest.mark.parametrize(
    ("fields", "exact"),
    [
        ({"method": "goa", "recovery": "both"}, True),
        ({"method": "l2", "blocks": "1:3", "settings": {"target": "neurons"}}, True),
        ({"method": "flap"}, False),
        ({"method": "goa", "settings": {"heads.threshold": 0.3}}, False),
        ({"method": "l1", "allocation": "adaptive"}, True),
        ({"method": "flap", "samples": 2}, True),
        ({"method": "llm-pruner"}, True),
    ],
    ids=lambda fields: fields["method"] if isinstance(fields, dict) else "",
)
def test_a_smaller_model_is_foreseen(fields, exact):
    model, tokenizer = load_tiny("llama")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.train()
    run = {"sparsity": 0.4, "tokenizer": tokenizer, **FAST, **fields}
    plan = prunus.plan(model, **run)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    found = prunus.prune(model, **run).report.structured
    assert plan.exact == exact
    if exact:
        assert plan.structured.parameters == found.parameters
        assert plan.to_dict()["blocks"][1]["neurons"] == found.blocks[1].neurons
        assert plan.disk_bytes == 4 * found.parameters[1]
    assert plan.structured.predicted_speedup == pytest.approx(found.predicted_speedup, rel=0.05)
    assert plan.seconds > 0


def test_a_threshold_that_takes_nothing_by_a_few_samples_has_a_plan():
    model, tokenizer = load_tiny("llama")
    settings = {"heads.threshold": 1e-6, "target": "heads"}
    plan = prunus.plan(model, method="goa", settings=settings, tokenizer=tokenizer, **FAST)
    assert not plan.exact
    assert plan.structured.removed == 0
    assert plan.structured.predicted_speedup == 1
    assert plan.sparsity == 0  # what the default share is says nothing about it
    assert "no two heads are closer" in plan.to_dict()["bound"]


def test_time_grows_with_samples_and_memory_with_spill(tmp_path):
    model, tokenizer = load_tiny("llama")
    run = {"method": "goa", "tokenizer": tokenizer, "length": 48}
    few, many = (prunus.plan(model, samples=n, **run) for n in (2, 2000))
    assert many.seconds > 20 * few.seconds
    spilled = prunus.plan(model, samples=2000, spill=tmp_path, **run)
    hidden = 2000 * 48 * model.config.hidden_size * 4
    assert many.disk_bytes + hidden == spilled.disk_bytes


def test_plan_of_a_smaller_model_on_the_command_line():
    asked = ["plan", str(MODELS / "llama"), "--method", "flap", "--samples", "4", "--length", "48"]
    run = CliRunner().invoke(app, asked)
    assert run.exit_code == 0, run.output
    assert "by two samples" in run.stdout
    assert "key/value heads" in run.stdout
    assert "of all parameters in these blocks" in run.stdout
    assert "prunus.load" in run.stdout
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert found["loads_in_transformers"] is False
    assert found["exact"] is False
    gone = 1 - found["parameters"] / found["parameters_before"]
    assert found["removed_share_of_model"] == pytest.approx(gone)
    assert found["removed_share"] > found["removed_share_of_blocks"] > gone
    assert found["parameters"] < found["parameters_before"]


def test_only_what_grows_with_samples_is_scaled(monkeypatch):
    """The solves, and the heads' comparison on 16 samples, are as long with more of them."""
    watched = []

    class Watch(rehearse.Stopwatch):
        def __init__(self):
            super().__init__()
            watched.append(self)

        def seconds(self, *steps):
            return float(len([1 for step, _ in self._steps if step in steps]))

    monkeypatch.setattr("prunus.run.rehearse.Stopwatch", Watch)
    model, tokenizer = load_tiny("llama")
    few = {"tokenizer": tokenizer, "length": 48, "method": "goa", "recovery": "before"}
    plan = prunus.plan(model, samples=200, **few)
    scaled = watched[0].seconds("gradients", "recover", "record", "advance")
    assert plan.seconds == pytest.approx(99 * scaled + 7 * watched[0].seconds("compare"), rel=0.2)
    assert watched[0].seconds("prune") > watched[0].seconds("recover") > 0


@pytest.mark.parametrize("method", ["goa", "wanda"])
def test_a_folder_that_cannot_take_activations_is_refused(method, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="--spill"):
        prunus.plan(MODELS / "llama", method=method, spill=tmp_path / "file" / "x", **FAST)
    prunus.plan(MODELS / "llama", method=method, spill=tmp_path / "new" / "x", **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
