"""The command line: what it prints, what it leaves, and one sentence for each bad input."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS
from prunus.cli.main import app
from prunus.judge.perplexity import Evaluation
from prunus.recipe import Recipe

LLAMA = str(MODELS / "llama")
FAST = ["--samples", "2", "--length", "64"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    output = tmp_path_factory.mktemp("cli") / "pruned"
    result = run("prune", LLAMA, "--method", "wanda", "--pattern", "2:4", "--output", output, *FAST)
    assert result.exit_code == 0, result.stderr
    return output, result


def test_prune_says_what_it_did(pruned):
    output, result = pruned
    assert "50.00% of 21 layers are zero" in result.stdout
    assert "as large and as fast as the dense model" in result.stdout
    assert "calibration: builtin (calibration part): 2 windows of 64 tokens" in result.stderr
    assert "layers.2.mlp.down_proj: sparsity 0.500 error 0." in result.stderr
    assert (output / "model.safetensors").exists()


def test_json_is_one_object_and_nothing_else(pruned, tmp_path):
    output = tmp_path / "ria"
    result = run("prune", LLAMA, "--method", "ria", "--output", output, "--json", *FAST)
    said = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert said["output"] == str(output)
    assert said["sparsity"] == 0.5
    assert 0.7 < said["coverage"] < 0.9
    assert said["seconds"] > 0
    said = json.loads(run("verify", pruned[0], "--source", LLAMA, "--json").stdout)
    assert said["ok"] is True
    assert said["problems"] == []
    assert said["pattern"] == "2:4"
    said = json.loads(run("eval", pruned[0], "--length", "64", "--windows", "3", "--json").stdout)
    assert said["windows"] == 3
    assert 10 < said["perplexity"] < 500
    assert said["tokens_per_second"] > 0
    assert set(said) == {field.name for field in fields(Evaluation)}  # and no empty keys beside
    assert said["reading"].endswith("rows joined by blank lines")
    table = json.loads(run("methods", "--json").stdout)
    assert {"dass", "magnitude", "ri", "ria", "wanda", "sparsegpt", "mrp-mm"} <= set(table)
    assert set(table["ria"]) == {"paper", "url", "parts", "allocation", "needs", "differs"}


def test_eval_equals_the_library(pruned):
    result = run("eval", pruned[0], "--length", "64", "--windows", "3")
    expected = prunus.evaluate(pruned[0], "builtin", length=64, windows=3).perplexity
    assert f"perplexity {expected:.4f}" in result.stdout


def test_a_failed_check_exits_1(pruned, tmp_path):
    folder = Path(shutil.copytree(pruned[0], tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = run("verify", folder)
    assert result.exit_code == 1
    assert "PROBLEM: model.layers.0.mlp.up_proj.weight is not 2:4" in result.stdout


def test_options_beside_a_recipe_replace_its_fields(pruned, tmp_path):
    recipe = pruned[0] / "recipe.yaml"
    output = tmp_path / "again"
    result = run(
        "prune", LLAMA, "--recipe", recipe, "--pattern", "row", "--sparsity", "0.25",
        "--set", "score=x", "--output", output,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "--set score: Wanda(power=1.0) is a part, not a number or a word" in result.stderr
    result = run(
        "prune", LLAMA, "--recipe", recipe, "--pattern", "row", "--sparsity", "0.25",
        "--output", output, "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["sparsity"] == 0.25


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"method": "goa", "parameters": 9}, {"sparsity": 0.3}, {"method": "goa", "sparsity": 0.3}),
        ({"method": "l1", "sparsity": 0.3}, {"parameters": 9}, {"method": "l1", "parameters": 9}),
        (
            {"method": "wanda", "allocation": "besa", "settings": {"allocation.steps": 9}},
            {"allocation": "uniform"},
            {"method": "wanda", "allocation": "uniform"},
        ),
        (
            {
                "method": "goa",
                "recovery": "after",
                "blocks": "1:2",
                "settings": {"heads.goes": "first"},
            },
            {"method": "wanda", "pattern": "2:4"},
            {"method": "wanda", "pattern": "2:4"},
        ),
        (
            {"method": "ria", "settings": {"score.power": 1}},
            {"settings": {"score.terms": "in"}},
            {"method": "ria", "settings": {"score.power": 1, "score.terms": "in"}},
        ),
        (
            {"method": "wanda", "sparsity": 0.3},
            {"method": "ria"},
            {"method": "ria", "sparsity": 0.3},
        ),
    ],
)
def test_what_a_new_field_leaves_without_a_meaning_goes(old, new, expected):
    assert Recipe.of(**old).replaced(**new) == Recipe.of(**expected)


def test_refined_and_true_sequential_runs_say_so_and_run_again(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    result = run(
        "prune", LLAMA, "--method", "mrp-sm", "--pattern", "2:4", "--refine", "swaps",
        "--true-sequential", "--skip-blocks", "1:3", "--output", first, *FAST,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    recipe = (first / "recipe.yaml").read_text()
    assert "refine: swaps\n" in recipe
    assert "true_sequential: true\n" in recipe
    report = json.loads((first / "pruning_report.json").read_text())
    assert "refinement=Swaps(against='compensated'" in report["pruner"]
    for layer in report["layers"]:
        assert layer["notes"]["swaps"] > 0
        assert layer["notes"]["loss_after_swaps"] < 1
        assert layer["notes"]["gap"] <= 1e-3
        assert layer["updated"]
    result = run("prune", LLAMA, "--recipe", first / "recipe.yaml", "--output", again)
    assert result.exit_code == 0, result.stderr
    name = "model.safetensors"
    assert (first / name).read_bytes() == (again / name).read_bytes()


def test_methods_prints_the_paper_table():
    shown = run("methods").stdout
    for word in ("ria", "arxiv.org/abs/2306.11695", "RIA(power=0.5", "data-free", "--mlp-only"):
        assert word in shown


def test_help_has_examples():
    for command in ("prune", "eval", "verify"):
        assert "Examples" in run(command, "--help").stdout


def damaged(tmp_path, change):
    folder = Path(shutil.copytree(MODELS / "llama", tmp_path / "source"))
    change(folder)
    return folder


def spoil_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def odd_width(folder):
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=11007, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def no_blocks(folder):
    config = LlamaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=0)
    LlamaForCausalLM(config).save_pretrained(folder)


def nothing(folder):
    pass


WANDA = ["--method", "wanda"]
BAD = {
    "unknown method": (nothing, ["--method", "wnada"], "Did you mean 'wanda'? Available: besa,"),
    "no method": (nothing, [], "No method was given"),
    "2:4 on 11007 inputs": (
        odd_width,
        [*WANDA, "--pattern", "2:4"],
        "model.layers.0.mlp.down_proj (16 × 11007): 2:4 needs a number of inputs divisible by 4",
    ),
    "sparsity 1.5": (nothing, [*WANDA, "--sparsity", "1.5"], "0 to 1; got 1.5. For 50 % write 0.5"),
    "empty text": (nothing, [*WANDA, "--calibration", "{tmp}/empty.txt"], "holds no text"),
    "short text": (
        nothing,
        [*WANDA, "--calibration", "{tmp}/short.txt"],
        "tokens in all, fewer than one window of 64. Give more text, or --length",
    ),
    "missing text": (nothing, [*WANDA, "--calibration", "no.txt"], "no.txt does not exist"),
    "unknown text": (nothing, [*WANDA, "--calibration", "wikitxt2"], "Did you mean 'wikitext2'?"),
    "corrupt shard": (
        lambda f: (f / "model.safetensors").write_bytes(b"x" * 1000),
        WANDA,
        "model.safetensors is damaged",
    ),
    "missing tokenizer": (lambda f: (f / "tokenizer.json").unlink(), WANDA, "has no tokenizer"),
    "NaN weights": (spoil_weight, WANDA, "up_proj.weight holds NaN or inf"),
    "no blocks": (no_blocks, WANDA, "has no blocks"),
    "bad config": (
        lambda f: (f / "config.json").write_text('{"model_type": "x"}'),
        WANDA,
        "cannot be loaded as a causal language model",
    ),
    "bad dtype": (nothing, [*WANDA, "--dtype", "int3"], "dtype"),
    "bad device": (nothing, [*WANDA, "--device", "gpu"], "Unknown device 'gpu'"),
    "bad set": (nothing, [*WANDA, "--set", "power"], "--set takes FIELD=VALUE"),
    "bad range": (nothing, [*WANDA, "--skip-blocks", "3:9"], "A < B <= 3"),
    "long window": (nothing, [*WANDA, "--length", "4096"], "context of 512 tokens"),
    "bad refinement": (nothing, [*WANDA, "--refine", "swap"], "Did you mean 'swaps'? Available:"),
    "spill into a file": (nothing, [*WANDA, "--spill", "{tmp}/short.txt"], "Not a directory. Give"),
    "samples beyond memory": (
        nothing,
        [*WANDA, "--samples", "1" + 12 * "0"],
        "Use fewer --samples",
    ),
    "tokens of experts": (nothing, ["--method", "goa", "--min-tokens", "0"], "does not apply"),
    "no name to set": (nothing, [*WANDA, "--set", "=3"], "--set takes FIELD=VALUE"),
    "patterns alike": (
        nothing,
        [*WANDA, "--pattern", "1:4,2:4,4:8", "--sparsity", "0.6", "--allocation", "owl"],
        "2:4 and 4:8 have the same sparsity",
    ),
    "no text for wanda": (nothing, [*WANDA, "--calibration", "none"], "needs calibration text"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_exit_code_2(case, tmp_path):
    change, arguments, message = BAD[case]
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("too short")
    source, output = damaged(tmp_path, change), tmp_path / "out"
    arguments = [a.format(tmp=tmp_path) for a in arguments]
    few = [] if "--samples" in arguments else ["--samples", "2"]
    length = [] if "--length" in arguments else ["--length", "64"]
    result = run("prune", source, "--output", output, *few, *length, *arguments)
    assert result.exit_code == 2, result.output
    said = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 1, result.stderr
    assert message in said[0]
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not output.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.txt", "short.txt", "source"]


def test_an_output_that_exists_and_a_model_that_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    result = run("prune", LLAMA, *WANDA, "--output", tmp_path / "taken", *FAST)
    assert result.exit_code == 2
    assert "nothing is overwritten" in result.stderr
    result = run("prune", tmp_path / "none", *WANDA, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
    (tmp_path / "junk.gguf").write_text("junk")
    result = run("prune", tmp_path / "junk.gguf", *WANDA, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "cannot be read as a GGUF" in result.stderr
    result = run("prune", "nothere", *WANDA, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "is not a local folder" in result.stderr
    for command in (["bench"], ["simulate"], ["plot", "--output", tmp_path / "x.png"]):
        result = run(*command, tmp_path / "none")
        assert result.exit_code == 2
        assert "does not exist" in result.stderr
    for command in ("eval", "verify"):
        assert run(command, tmp_path / "none").exit_code == 2
    assert run("verify", LLAMA).exit_code == 0  # anybody's checkpoint
    assert run("prune").exit_code == 2
    assert run("prune", LLAMA, "--nonsense").exit_code == 2


def test_version():
    assert run("--version").stdout.strip() == prunus.__version__


def test_a_reader_that_has_enough_ends_it_without_a_word():
    line = f"{sys.executable} -m prunus methods | head -n 1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert run.stdout == "magnitude\n"
    assert run.stderr == ""
    assert run.returncode in (0, 141)  # or all of it was in the pipe before the reader went


@pytest.mark.parametrize(
    ("method", "option", "text"),
    [
        *(("ri", "--skip-blocks", text) for text in ("abc", "3:3", "4:2", "-1:2")),
        ("l1", "--blocks", "all"),
    ],
)
def test_a_range_that_is_none_is_refused_before_anything_is_loaded(method, option, text, tmp_path):
    asked = ["prune", str(tmp_path / "no-model"), "--method", method, f"{option}={text}"]
    run = CliRunner().invoke(app, [*asked, "--output", str(tmp_path / "out")])
    assert run.exit_code == 2
    assert f"{option} is A:B with 0 <= A < B; got {text!r}" in run.output
