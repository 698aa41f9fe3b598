"""``prunus bench``: what it reports, and that ratios come from pairs. No time is asserted."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError, InputError
from prunus.cli.main import app
from prunus.judge.bench import Against, _check, bench

LLAMA = MODELS / "llama"


def test_a_ratio_is_the_median_of_the_pairs():
    """The machine slows down by 10 half-way: medians of each side alone would say 10 or 0.2."""
    against = Against.of([(200.0, 100.0), (210.0, 100.0), (20.0, 10.0), (21.0, 10.5), (20.0, 10.1)])
    assert against.ratio == 2.0
    assert (against.pruned, against.dense) == (21.0, 10.5)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "pruned"
    prunus.prune(LLAMA, method="magnitude", output=output)
    return output


@pytest.fixture(scope="module")
def measured(pruned):
    said = []
    return bench(pruned, prompt=16, new=4, repeats=3, threads=1, say=said.append), said


def test_a_pruned_checkpoint_against_what_its_report_names(measured):
    found, said = measured
    assert found.dense_model == str(LLAMA)
    assert (found.prompt, found.new, found.dtype) == (16, 4, "float32")
    assert (found.device, found.threads) == ("cpu", 1)
    assert found.parameters == Against(162240, 162240, 1.0, [(162240, 162240)])
    assert found.weight_bytes.pruned >= 4 * 162240
    for row in (found.prefill, found.decode, found.memory_bytes):
        assert len(row.runs) == 3
        assert all(value > 0 for pair in row.runs for value in pair)
        assert row.ratio == sorted(p / d for p, d in row.runs)[1]
        assert row.pruned == sorted(p for p, _ in row.runs)[1]
    assert found.memory_bytes.pruned > 20 * found.weight_bytes.pruned  # the interpreter's too
    assert [line.split()[0] for line in said] == ["loading", "loading", "pair", "pair", "pair"]


def test_the_command_line_prints_one_json_object(pruned):
    arguments = ("--threads", "1", "--new", "2", "--repeats", "1", "--json")
    other = str(MODELS / "gpt_neox")
    result = CliRunner().invoke(app, ["bench", str(pruned), "--dense", other, *arguments])
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    for key in ("prefill", "decode", "memory_bytes", "weight_bytes", "parameters"):
        assert set(said[key]) == {"pruned", "dense", "ratio", "runs"}
        assert said[key]["ratio"] == pytest.approx(said[key]["pruned"] / said[key]["dense"])
    assert said["prompt"] == 510  # what the context leaves of 512
    assert said["parameters"]["dense"] == 190848
    assert "pair 1 of 1" in result.stderr


def test_the_command_line_prints_a_table(measured, monkeypatch):
    monkeypatch.setattr("prunus.judge.bench.bench", lambda *_, **__: measured[0])
    result = CliRunner().invoke(app, ["bench", "pruned"])
    assert re.search(r"decode \(tokens/s\) +[\d,.]+ +[\d,.]+ +\d+\.\d{3}", result.stdout)
    assert re.search(r"parameters \(million\) +0.2 +0.2 +1.000", result.stdout)
    assert "medians of 3 pairs: prompt 16, 4 new tokens, batch 1, float32, cpu" in result.stdout


def test_bad_input(pruned, tmp_path):
    for arguments, message in [
        ({"repeats": 0}, "at least once; got prompt None, new 64, repeats 0"),
        ({"new": 1}, "writes at least 2"),
        ({"prompt": 0}, "at least 1 token"),
        ({"threads": 0}, "threads is at least 1"),
        ({"device": "gpu", "dense": LLAMA}, "Unknown device 'gpu'"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            bench(pruned, **arguments)
    with pytest.raises(InputError, match="to name its dense model; give --dense"):
        bench(LLAMA)
    with pytest.raises(CheckpointError, match="does not exist"):
        bench(pruned, tmp_path / "none")
    half = shutil.copytree(LLAMA, tmp_path / "half")
    (half / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="is damaged"):
        bench(half, LLAMA)
    wrong = tmp_path / "gpt"  # found only when it is loaded, in the other process
    shutil.copytree(MODELS / "gpt2", wrong)
    shutil.copy(LLAMA / "model.safetensors", wrong / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"gpt cannot be measured: .* lacks .* tensors"):
        bench(wrong, LLAMA)


def test_two_models_that_do_not_compare():
    one = {"dtype": "float32", "context": 512}
    assert _check([one, {**one, "context": None}], None, 64) == 448
    assert _check([{**one, "context": None}] * 2, None, 64) == 512
    assert _check([one, {**one, "context": 100}], 36, 64) == 36
    with pytest.raises(InputError, match="37 and 64 new tokens do not fit a context of 100"):
        _check([one, {**one, "context": 100}], 37, 64)
    with pytest.raises(InputError, match=r"is float32, the dense model bfloat16; .* Give --dtype"):
        _check([one, {**one, "dtype": "bfloat16"}], None, 64)
