"""Two processes on gloo against one, and what happens when one of them dies.

They are forked and get what ``torchrun`` would tell them; one test runs ``torchrun`` itself.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import prunus
from helpers.forks import Fork, command, together
from helpers.models import MODELS
from helpers.processes import ENV
from helpers.runs import same, tensors
from helpers.two_processes import (
    FAST,
    PRUNERS,
    RESUMED,
    ROWS,
    RUNS,
    UNITS,
    layer,
    main,
    numbers,
    run_statistics,
)  # fmt: skip
from prunus.base.errors import InputError
from prunus.base.team import ALONE, Team
from prunus.cli.main import app
from prunus.maths.gram import Gram
from prunus.maths.orders.orders import Orders
from prunus.maths.stats import ColumnNorm, TokenSample, gather
from prunus.report.report import read_report
from prunus.storage.journal import unfinished

LLAMA = MODELS / "llama"
COMMAND = ("-m", "helpers.command")


def torchrun(processes, *arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return [*launcher, *map(str, arguments)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    ran = together(2, lambda env: Fork(main, folder, env=env))
    for code, _, errors in [process.ended() for process in ran]:
        assert code == 0, errors
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same runs in this process: statistics by run."""
    folder = tmp_path_factory.mktemp("one")
    found, names = {}, {}
    torch.set_num_threads(1)  # as the two have, whatever the test before left
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("prunus.run.loop.recorded", prunus.run.loop.recorded)  # and back at the end
        stats = run_statistics()
        for name, run in RUNS.items():
            stats.clear()
            prunus.prune(LLAMA, output=folder / name, **run, **FAST)
            names = {f"{i} {k}": x for i, site in enumerate(stats) for k, x in site.items()}
            found[name] = names
        for name, run in UNITS.items():
            prunus.prune(LLAMA, output=folder / name, **run, **FAST)
    return folder, found


def said(folder):
    return [json.loads((folder / f"rank-{rank}" / "said.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(("count", "unit"), [(0, 1), (1, 1), (6, 1), (50, 1), (12, 4), (14, 4)])
def test_shares_are_all_of_it_in_order_in_whole_units(size, count, unit):
    shares = [Team(rank, size).share(count, unit) for rank in range(size)]
    taken = [i for share in shares for i in range(count)[share]]
    assert taken == list(range(count))
    assert all(share.start % unit == 0 for share in shares)
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) < 2 * unit


def test_fewer_rows_than_processes_are_not_split():
    team = Team(1, 3)
    assert team.splitting(3) is team
    assert team.splitting(2) is ALONE
    assert team.splitting(12, 4) is team
    assert team.splitting(11, 4) is ALONE


def test_one_alone_talks_to_nobody(monkeypatch):
    monkeypatch.setattr("torch.distributed.broadcast", None)
    rows = torch.ones(3, 2)
    ALONE.sum_(rows)
    ALONE.broadcast_(rows)
    assert ALONE.gather(rows) is rows
    assert ALONE.total(1.5, 2) == (1.5, 2)
    assert ALONE.told(rows) is rows
    assert ALONE.share(5) == slice(0, 5)
    with pytest.raises(InputError), ALONE.agreed():
        raise InputError("as it is")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with Team.join() as team:
        assert team is ALONE


def test_what_processes_tell_one_another(two):
    first, second = said(two)
    for heard in (first, second):
        assert heard["gathered"] == [[0, 1], [10, 11], [12, 13]]
        assert heard["none"] == [[10, 11], [12, 13]]
        assert heard["bools"] == [[False, False], [True, True], [True, True]]
        assert heard["summed"] == [3, 6]
        assert heard["half"] == [[1, 1, 1], [1, 1, 1]]
        assert heard["total"] == [1, 1]
        assert heard["told"] == {"rank": 0, "words": ["a\u00e4", None]}
        assert heard["nobody"] is None
    assert [heard["device"] for heard in (first, second)] == [
        ["cpu", "cuda:0", "cuda:5"],
        ["cpu", "cuda:1", "cuda:5"],
    ]


def test_where_one_fails_that_one_says_why(two):
    first, second = said(two)
    assert second["second"] == ["InputError", "process 1 cannot", None]
    assert first["second"] == ["TeamError", "Process 1 of 2: process 1 cannot", True]
    assert first["both"][0] == "InputError"
    assert second["both"] == ["TeamError", "Process 0 of 2: process 0 cannot", True]
    assert "2 processes need a calibration sample each, at least; --samples is 1" in first["few"][1]
    assert second["few"][0] == "TeamError"
    assert second["seed"][1].startswith("recipe seed is 1 here and 0 in process 0")
    assert first["exists"][0] == "CheckpointError"
    assert not (two / "deep").exists()
    nan = "model.layers.0 puts out NaN or inf on calibration sample 4."
    assert second["nan"][0] == "NumericalError"
    assert second["nan"][1].startswith(nan)
    assert first["nan"][1].startswith(f"Process 1 of 2: {nan}")


def test_statistics_of_two_are_those_of_one(two):
    """Of uneven shares: 200 and 110 tokens."""
    found = [load_file(two / f"rank-{rank}" / "layers.safetensors") for rank in (0, 1)]
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name
    for rows in ROWS:
        inputs_TI = layer(rows)[1]
        expected = numbers(gather(inputs_TI, (ColumnNorm, Gram, TokenSample)))
        for name in ("rms", "gram"):
            torch.testing.assert_close(
                found[0][f"{rows} {name}"], expected[name], rtol=1e-5, atol=1e-5
            )
        assert torch.equal(found[0][f"{rows} sample"], expected["sample"])


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("rows", ROWS)
def test_layers_of_two_are_those_of_one(name, rows, two):
    """One row, fewer and more rows than processes; every pattern that compares rows or does not."""
    found_OI = load_file(two / "rank-1" / "layers.safetensors")[f"{rows} {name}"]
    weight_OI, inputs_TI = layer(rows)
    stats = gather(inputs_TI, (ColumnNorm, Gram))
    expected_OI = PRUNERS[name](weight_OI, stats, 0.5).weight_OI
    assert torch.equal(found_OI == 0, expected_OI == 0)
    torch.testing.assert_close(found_OI, expected_OI, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_two_are_one(name, two, one):
    """Sparsity equal; masks equal but for ties; statistics to 1e-5 relative; the file verifies."""
    folder, statistics = one
    reports = [read_report(x / name) for x in (folder, two)]
    assert [report.processes for report in reports] == [1, 2]
    for first, second in zip(*(report.layers for report in reports), strict=True):
        assert first.sparsity == second.sparsity
        assert (first.name, first.pattern, first.updated) == (
            second.name, second.pattern, second.updated,
        )  # fmt: skip
        error, other = first.relative_output_error, second.relative_output_error
        assert error == (other and pytest.approx(other, rel=0.05 if name == "folded" else 0.01))
        assert first.notes.keys() == second.notes.keys()
    first, second = tensors(folder / name), tensors(two / name)
    if name == "folded":
        residual = [Orders.read(x / name).residual for x in (folder, two)]
        assert torch.equal(*residual)
    if name in ("folded", "swapped"):  # a local search may end elsewhere, once statistics differ
        first = {key: tensor for key, tensor in first.items() if ".layers.0." in key}
    weights = sum(x.numel() for x in first.values())
    differ = sum(int(((first[k] == 0) != (second[k] == 0)).sum()) for k in first)
    assert differ <= 1e-4 * weights
    for key, tensor in first.items():
        assert (tensor - second[key]).norm() <= 0.05 * tensor.norm(), key
    found = [load_file(two / f"rank-{rank}" / f"{name}.safetensors") for rank in (0, 1)]
    updates = name not in ("wanda", "gathered", "magnitude")
    for key, expected in statistics[name].items():
        assert torch.equal(found[0][key], found[1][key])
        if not updates or key.startswith("0 "):  # later ones follow the updated weights
            gap = (found[0][key] - expected).norm() / expected.norm()
            assert gap <= 1e-5, (key, gap)
    assert len(statistics[name]) >= 3 * 4 or name == "magnitude"


def test_the_model_in_memory_is_the_same_in_both(two):
    first, second = (load_file(two / f"rank-{rank}" / "held.safetensors") for rank in (0, 1))
    written = load_file(two / "mrp" / "model.safetensors")
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert torch.equal(tensor, written[f"model.layers.{name}"])


@pytest.mark.parametrize("name", UNITS)
def test_two_make_the_model_as_small_as_one(name, two, one):
    """The same units stay; weights that were solved again differ by less than a millionth."""
    reports = [read_report(x / name) for x in (one[0], two)]
    assert [report.processes for report in reports] == [1, 2]
    first, second = (report.structured for report in reports)
    assert first.parameters == second.parameters
    assert first.multiply_adds == second.multiply_adds
    for before, after in zip(first.blocks, second.blocks, strict=True):
        assert (before.heads, before.kv_heads, before.neurons, before.kept_heads) == (
            after.heads, after.kv_heads, after.neurons, after.kept_heads,
        )  # fmt: skip
        assert (before.divergence is None) == (after.divergence is None)
        if before.divergence is not None:
            assert torch.tensor(before.divergence) == pytest.approx(torch.tensor(after.divergence))
    first, second = tensors(one[0] / name), tensors(two / name)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert tensor.shape == second[key].shape, key
        assert (tensor - second[key]).norm() <= 1e-6 * tensor.norm(), key


@pytest.mark.parametrize("name", RESUMED)
def test_two_resume(name, two):
    same(two / name, two / f"{name}-again")
    assert not unfinished(two / f"{name}-again").exists()


def test_one_process_under_torchrun_is_no_torchrun(tmp_path):
    [only] = together(1, partial(command, *asked("sparsegpt", tmp_path / "one")))
    code, _, errors = only.ended()
    assert code == 0, errors
    prunus.prune(LLAMA, output=tmp_path / "none", **RUNS["sparsegpt"], **FAST)
    same(tmp_path / "one", tmp_path / "none")


def asked(name, output):
    """One of the runs on the command line."""
    fields = {**RUNS, **UNITS}[name] | FAST
    words = [f"--set={path}={value}" for path, value in fields.pop("settings", {}).items()]
    words += ["--true-sequential"] if fields.pop("true_sequential", False) else []
    words += [f"--{option}={value}" for option, value in fields.items()]
    return ["prune", str(LLAMA), *words, "--output", str(output)]


def first_block(output):
    return unfinished(output) / "block-00000.safetensors"


@pytest.mark.parametrize(("victim", "name"), [(0, "besa"), (1, "goa")])
def test_a_killed_process_ends_the_run_with_a_sentence_and_resume_goes_on(
    victim, name, tmp_path, two
):
    output = tmp_path / "out"
    words = [*asked(name, output), "--json", "--spill", tmp_path / "spill"]
    dies = {"DIES": f"{victim}:{first_block(output)}"}
    ran = [run.ended() for run in together(2, lambda env: command(*words, env=env | dies))]
    assert ran[victim] == (-signal.SIGKILL, "", ran[victim][2])
    code, shown, errors = ran[1 - victim]
    assert code == 2
    if victim == 0:  # the one that writes
        assert shown == ""
    else:
        assert "--resume" in json.loads(shown)["error"]["message"]
    [sentence] = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "another process of" in sentence.lower()
    assert sentence.endswith("start all processes again with --resume.")
    streams = {"besa": 1, "goa": 2}[name]  # of the killed process: pruned, and dense beside it
    assert len(os.listdir(tmp_path / "spill")) == streams
    refused = CliRunner().invoke(app, [*asked(name, output), "--resume"])
    assert refused.exit_code == 2
    assert "its number of processes was 2, now it is 1" in refused.stderr
    shutil.copytree(unfinished(output), unfinished(tmp_path / "alone"))
    alone = [*asked(name, tmp_path / "alone"), "--resume"]
    allowed = CliRunner().invoke(app, [*alone, "--allow-different"])
    assert allowed.exit_code == 0, allowed.stderr
    assert read_report(tmp_path / "alone").different == {"number of processes": [2, 1]}
    again = [run.ended() for run in together(2, partial(command, *words, "--resume"))]
    assert [code for code, _, _ in again] == [0, 0], again
    assert json.loads(again[0][1])["sparsity"] == read_report(output).sparsity
    assert "resuming after" in again[0][2]
    assert os.listdir(tmp_path / "spill") == []
    same(two / name, output)


def test_torchrun_may_start_a_killed_run_again_by_itself(tmp_path, two):
    output = tmp_path / "out"
    words = [*COMMAND, *asked("sparsegpt", output), "--resume"]
    launcher, *more = torchrun(2, *words)
    again = ["--max-restarts=1", "--monitor-interval=5"]  # the survivor has time for its sentence
    done = subprocess.run(
        [launcher, *more[:2], *again, *more[2:]],
        env={**ENV, "DIES": f"1:{first_block(output)}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "start all processes again with --resume" in done.stderr
    assert "resuming after" in done.stderr
    same(two / "sparsegpt", output)


def test_a_bad_argument_is_said_once(tmp_path):
    shutil.copytree(LLAMA, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    words = ["prune", tmp_path / "model", "--method", "wanda", "--output", tmp_path / "out"]
    ran = [run.ended() for run in together(2, partial(command, *words))]
    assert [code for code, _, _ in ran] == [2, 2]
    lines = [line for _, _, errors in ran for line in errors.splitlines()]
    [sentence] = [line for line in lines if line.startswith("error: ")]
    assert "has no tokenizer" in sentence
    assert os.listdir(tmp_path) == ["model"]
