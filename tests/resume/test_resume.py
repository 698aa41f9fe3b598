"""Weights that stay on disk, and runs that end too early."""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import prunus
from helpers.forks import command
from helpers.models import MODELS, load_tiny
from helpers.runs import FAST, Ends, end, same, tensors
from prunus.base.errors import CheckpointError, InputError, NotVerifiedError, NumericalError
from prunus.base.team import ALONE
from prunus.cli.main import app
from prunus.judge.fresh_process import asked
from prunus.judge.verify import Verification
from prunus.model.inspect import inspect
from prunus.model.weights import InMemory
from prunus.report.report import read_report
from prunus.run.cures import explained
from prunus.run.fingerprint import defaults
from prunus.run.observer import Silent
from prunus.storage import assembly
from prunus.storage.checkpoint import load_weights
from prunus.storage.journal import LINES, unfinished
from prunus.storage.resuming import check_same, followed, threads_of
from prunus.storage.scratch import Spilled
from prunus.storage.streamed import Streamed

LEARNING = {"allocation.granularity": "two-blocks", "allocation.steps": 8}


IDS = torch.randint(0, 500, (2, 40), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_streamed_is_in_memory_bit_for_bit(family, method, tmp_path):
    """Weights, names on disk, configs: what ``save_pretrained`` writes of a pruned model."""
    prunus.prune(MODELS / family, method=method, output=tmp_path / "streamed", **FAST)
    held, tokenizer = load_tiny(family)
    prunus.prune(held, method=method, tokenizer=tokenizer, output=tmp_path / "held", **FAST)
    first, second = tensors(tmp_path / "streamed"), tensors(tmp_path / "held")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for file in (tmp_path / "held").iterdir():
        other = tmp_path / "streamed" / file.name
        if file.name in ("config.json", "generation_config.json"):
            assert json.loads(other.read_text()) == json.loads(file.read_text())
        assert other.exists()
    assert len(list((tmp_path / "streamed").iterdir())) == len(list((tmp_path / "held").iterdir()))
    assert os.listdir(tmp_path).count(".streamed.unfinished") == 0


def test_one_block_is_at_hand(tmp_path):
    weights = load_weights(MODELS / "llama", stream=True)
    assert isinstance(weights, Streamed)
    blocks, traced = inspect(weights.model, IDS[:1], weights)
    held = load_tiny("llama")[0]
    assert torch.equal(traced.logits, held(input_ids=IDS[:1]).logits)

    def away():
        return [all(p.is_meta for p in block.module.parameters()) for block in blocks]

    assert away() == [True] * 3
    with blocks[1].at_hand():
        assert away() == [True, False, True]
        expected = held.get_submodule(blocks[1].name).state_dict()
        for name, tensor in blocks[1].module.state_dict().items():
            assert torch.equal(tensor, expected[name])
        blocks[1].layers[0].weight_OI.zero_()
    assert away() == [True] * 3
    with blocks[1].at_hand():
        assert blocks[1].layers[0].weight_OI.any()
    assert isinstance(load_weights(MODELS / "llama"), InMemory)


@pytest.mark.parametrize("run", [{"method": "wanda"}, {"method": "goa", "sparsity": 0.3}])
def test_the_time_is_that_of_all_runs(run, tmp_path):
    """A run that was ended twice, of which each had spent an hour or so."""
    for index, hours in ((1, 1), (2, 2)):
        end(tmp_path / "out", index, "record", resume=hours > 1, **run, **FAST)
        path = unfinished(tmp_path / "out") / LINES
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert 3600 * (hours - 1) < lines[-1]["spent"] < 3600 * hours
        lines[-1]["spent"] = 3600.0 * hours
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run, **FAST)
    assert 7200 < result.report.seconds < 10800


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_streamed_in_another_dtype(dtype, tmp_path):
    prunus.prune(MODELS / "opt", method="wanda", dtype=dtype, output=tmp_path / "out", **FAST)
    assert {str(t.dtype) for t in tensors(tmp_path / "out").values()} == {f"torch.{dtype}"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(
    ("index", "step"), [(0, "advance"), (1, "record"), (1, "prune"), (2, "record"), (2, "prune")]
)
def test_a_resumed_run_is_the_undisturbed_one(index, step, tmp_path):
    """Law 1. What the ended run had done is not done again."""
    run = {"method": "mrp-sm", **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **run)
    observer = end(tmp_path / "out", index, step, **run)
    done = index + (step == "advance")
    assert observer.said[-1] == f"{done} of 3 blocks are done and kept; --resume goes on from there"
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match=r"An unfinished run is in .*Continue with --resume"):
        prunus.prune(MODELS / "llama", output=tmp_path / "out", **run)
    watcher = Ends(-1, "")
    result = prunus.prune(
        MODELS / "llama", output=tmp_path / "out", resume=True, observer=watcher, **run
    )
    assert f"resuming after {done} block{'s' * (done != 1)}" in watcher.said
    assert [i for i, step in watcher.steps if step == "prune"] == list(range(done, 3))
    same(tmp_path / "whole", tmp_path / "out")
    assert result.verification.ok
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


@pytest.mark.parametrize(
    "run",
    [
        {"method": "wanda", "pattern": "2:4", "permutation": "fold"},
        {"method": "ria", "pattern": "2:4", "permutation": "gather", "update": "least-squares"},
        {"method": "magnitude", "pattern": "2:4", "permutation": "fold"},
        {"method": "sparsegpt", "true_sequential": True, "skip_blocks": "2:3"},
        {"method": "dass", "mlp_only": True},
    ],
    ids=lambda run: "-".join(map(str, run.values())),
)
def test_every_kind_of_run_resumes(run, tmp_path):
    run = {**run, **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **run)
    end(tmp_path / "out", 1, "prune", **run)
    prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)
    same(tmp_path / "whole", tmp_path / "out")
    orders = [x / "channel_orders.json" for x in (tmp_path / "whole", tmp_path / "out")]
    assert orders[0].exists() == ("permutation" in run)
    if "permutation" in run:
        first, second = (json.loads(x.read_text()) for x in orders)
        assert first == second


def test_a_run_that_ends_while_the_checkpoint_is_put_together(tmp_path, monkeypatch):
    run = {"method": "wanda", **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **run)
    with monkeypatch.context() as patched:

        def full(*args):
            raise OSError(28, "No space left on device")

        patched.setattr("prunus.storage.assembly.write_texts", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*--resume continues"):
            prunus.prune(MODELS / "llama", output=tmp_path / "out", **run)
    prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)
    same(tmp_path / "whole", tmp_path / "out")


def test_a_full_disk_in_the_middle(tmp_path, monkeypatch):
    run = {"method": "wanda", **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **run)
    with monkeypatch.context() as patched:

        def full(tensors, path, metadata):
            if "00001" in str(path):
                path.write_bytes(b"half a shard")
                raise OSError(28, "No space left on device")
            save_file(tensors, path, metadata)

        patched.setattr("prunus.storage.journal.save_file", full)
        with pytest.raises(CheckpointError, match=r"block-00001.*No space left"):
            prunus.prune(MODELS / "llama", output=tmp_path / "out", **run)
    left = sorted(os.listdir(unfinished(tmp_path / "out")))
    assert left == ["block-00000.safetensors", LINES]
    prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)
    same(tmp_path / "whole", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sparsity": 0.6}, "recipe sparsity was 0.5, now it is 0.6"),
        ({"method": "ria"}, "recipe method was 'wanda'"),
        ({"seed": 1}, "recipe seed was 0"),
        ({"dtype": "bfloat16"}, "recipe dtype was 'auto'"),
        ({"calibration": "text.txt"}, "calibration sha256 was"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(change, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The plum is a fruit of some species of Prunus. " * 99)
    run = {"method": "wanda", **FAST}
    end(tmp_path / "out", 1, "prune", **run)
    with pytest.raises(InputError, match=f"differs from this one: its {named}"):
        prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **{**run, **change})
    prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)


def threads_in(output, resume, threads=1, **run):
    """The numbers of threads that a run computes with, where torch has ``threads``."""
    seen = set()

    class Counts(Ends):
        def block(self, *args):
            super().block(*args)
            seen.add(torch.get_num_threads())

    watcher = Counts(-1, "")
    torch.set_num_threads(threads)
    try:
        prunus.prune(MODELS / "llama", output=output, resume=resume, observer=watcher, **run)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    return seen, watcher.said


def test_the_number_of_threads_is_taken_over(tmp_path):
    run = {"method": "magnitude"}
    torch.set_num_threads(2)
    end(tmp_path / "out", 1, "prune", **run)
    seen, said = threads_in(tmp_path / "out", True, **run)
    assert seen == {2}
    assert "computing with 2 threads instead of 1, as the unfinished run did" in said
    assert threads_in(tmp_path / "new", True, **run)[0] == {1}


def test_more_threads_than_cores_are_taken_over_too(tmp_path):
    unfinished(tmp_path / "out").mkdir()
    (unfinished(tmp_path / "out") / LINES).write_text('{"fingerprint": {"threads": 61}}\n')
    for output, threads in ((tmp_path / "out", 61), (tmp_path / "new", 1), (None, 1)):
        with threads_of(output, ALONE, print):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 1


def elsewhere(output, **facts):
    """Make the unfinished run one that was begun with these facts."""
    path = unfinished(output) / LINES
    first, *rest = path.read_text().splitlines(keepends=True)
    begun = json.loads(first)
    begun["fingerprint"].update(facts)
    path.write_text("".join([json.dumps(begun) + "\n", *rest]))


@pytest.mark.parametrize("run", [{"method": "wanda"}, {"method": "goa"}], ids=["wanda", "goa"])
def test_a_run_begun_elsewhere_goes_on_where_that_is_asked_for(run, tmp_path):
    run = {**run, **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **run)
    end(tmp_path / "out", 1, "prune", **run)
    elsewhere(tmp_path / "out", torch="2.6.0", device="cuda:0")
    again = {"output": tmp_path / "out", "resume": True, **run}
    with pytest.raises(InputError) as refused:
        prunus.prune(MODELS / "llama", **again)
    for part in ("its device was 'cuda:0', now it is 'cpu'", "its torch was '2.6.0'",
                 "--allow-different", "last bits"):  # fmt: skip
        assert part in str(refused.value)
    with pytest.raises(InputError, match="its recipe seed was 0"):
        prunus.prune(MODELS / "llama", allow_different=True, **{**again, "seed": 3})
    watcher = Ends(2, "prune")
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(MODELS / "llama", allow_different=True, observer=watcher, **again)
    assert any(said.startswith("continuing although its device") for said in watcher.said)
    result = prunus.prune(MODELS / "llama", allow_different=True, **again)
    different = {"device": ["cuda:0", "cpu"], "torch": ["2.6.0", torch.__version__]}
    assert result.report.different == different
    assert read_report(tmp_path / "out").different == different
    first, second = tensors(tmp_path / "whole"), tensors(tmp_path / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_an_older_version_did_not_know_stands_at_its_default(tmp_path):
    begun = {"recipe sparsity": 0.5, "prunus": "0.0"}
    now = {**begun, "recipe seed": 0, "recipe settings": {}, "prunus": "0.1"}
    assert check_same(begun, now, tmp_path, True, defaults()) == {"prunus": ["0.0", "0.1"]}
    with pytest.raises(InputError, match="its recipe seed was 0, now it is 1"):
        check_same(begun, {**now, "recipe seed": 1}, tmp_path, True, defaults())
    with pytest.raises(InputError, match=r"its file model\.safetensors was None"):
        check_same(begun, {**now, "file model.safetensors": "0"}, tmp_path, True, defaults())
    assert followed([{"a": [1, 2], "b": [1, 3]}, {"a": [1, 5]}, {"a": [1, 5]}]) == {
        "a": [1, 2, 5],
        "b": [1, 3],
    }


FINISHED = [
    {"method": "wanda"},
    {"method": "magnitude"},
    {"method": "wanda", "allocation": "owl"},
    {"method": "wanda", "pattern": "2:4", "permutation": "fold"},
    {"method": "besa", "settings": LEARNING},
    {"method": "wanda", "bits": 4, "group": 16, "pack": True},
    {"method": "goa", "recovery": "both", "sparsity": 0.4},
    {"method": "flap", "sparsity": 0.4},
    {"method": "wanda-sp", "allocation": "adaptive", "sparsity": 0.4},
    {"method": "llm-pruner", "sparsity": 0.4},
]


def fails(problem):
    """A reload that ends so."""
    return lambda subject, found: found.problems.append(problem)


@pytest.mark.parametrize("run", FINISHED, ids=lambda run: "-".join(map(str, run.values()))[:40])
def test_a_finished_run_is_not_thrown_away(run, tmp_path, monkeypatch):
    """Its verification fails; after the cure nothing is pruned, nor is any sample run, again."""
    run = {**run, **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **run)
    with monkeypatch.context() as patched:
        patched.setattr("prunus.judge.reload.check", fails("MemoryError: 9 bytes"))
        with pytest.raises(NotVerifiedError) as failed:
            prunus.prune(MODELS / "llama", output=tmp_path / "out", **run)
    work = unfinished(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (work / "checkpoint").exists()
    for part in ("MemoryError: 9 bytes", str(work), "Free memory", "--resume"):
        assert part in str(failed.value)
    watcher = Ends(-1, "")
    prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, observer=watcher, **run)
    assert watcher.steps == []
    same(tmp_path / "whole", tmp_path / "out")
    others = {x.name for x in (tmp_path / "whole").iterdir()}
    assert {x.name for x in (tmp_path / "out").iterdir()} == others
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_quantize_is_not_thrown_away_either(tmp_path, monkeypatch):
    run = {"group": 16, **FAST}
    prunus.quantize(MODELS / "llama", output=tmp_path / "whole", **run)
    with monkeypatch.context() as patched:
        patched.setattr("prunus.judge.reload.check", fails("pass `trust_remote_code=True`"))
        with pytest.raises(NotVerifiedError, match="Give --trust-remote-code"):
            prunus.quantize(MODELS / "llama", output=tmp_path / "out", **run)
    watcher = Ends(-1, "")
    again = {"resume": True, "observer": watcher, "trust_remote_code": True, **run}
    prunus.quantize(MODELS / "llama", output=tmp_path / "out", **again)
    assert watcher.steps == []
    same(tmp_path / "whole", tmp_path / "out")


def test_a_finished_run_asks_for_no_memory_for_activations(tmp_path, monkeypatch):
    run = {"method": "wanda", **FAST}
    with monkeypatch.context() as patched:
        patched.setattr("prunus.judge.reload.check", fails("no reason"))
        with pytest.raises(NotVerifiedError, match="Mend what that names"):
            prunus.prune(MODELS / "llama", output=tmp_path / "out", **run)
    judged = []
    monkeypatch.setattr("prunus.run.need.fit", lambda need, *rest: judged.append(need.activations))
    prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)
    assert judged == [0]


def test_files_that_are_wrong_in_themselves(tmp_path, monkeypatch):
    """The same would come out again, so the message says how to start anew."""
    run = {"method": "wanda", **FAST}
    with monkeypatch.context() as patched:

        def wrong(*args):
            args[-1].problems.append("x is wrong")
            args[-1].in_files = True

        patched.setattr("prunus.judge.layers.check", wrong)
        with pytest.raises(NotVerifiedError) as failed:
            prunus.prune(MODELS / "llama", output=tmp_path / "out", **run)
        work = unfinished(tmp_path / "out")
        for part in ("x is wrong", "the same would come out again", f"{work}; to start anew"):
            assert part in str(failed.value)
        model, tokenizer = load_tiny("llama")
        with pytest.raises(NotVerifiedError, match="The model in memory is pruned all the same"):
            prunus.prune(model, tokenizer=tokenizer, output=tmp_path / "held", **run)
    assert os.listdir(tmp_path) == [work.name]
    prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)


def test_a_fresh_process_that_is_killed_says_so(tmp_path):
    seen, last = asked("import os; os.kill(os.getpid(), 9)", tmp_path)
    assert seen is None
    assert "SIGKILL" in last
    assert "Free memory" in explained(Verification([last]), tmp_path)


def test_another_model_is_refused(tmp_path):
    run = {"method": "wanda", **FAST}
    end(tmp_path / "out", 1, "prune", **run)
    model, _ = load_tiny("llama")
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    for file in (MODELS / "llama").glob("*.json"):  # one weight in the middle alone is another
        shutil.copy(file, tmp_path / "other")
    with pytest.raises(InputError, match=r"its file model\.safetensors was"):
        prunus.prune(tmp_path / "other", output=tmp_path / "out", resume=True, **run)


def test_damaged_journals(tmp_path):
    run = {"method": "wanda", **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **run)
    end(tmp_path / "out", 2, "prune", **run)
    work = unfinished(tmp_path / "out")
    lines = (work / LINES).read_text()
    shard = (work / "block-00001.safetensors").read_bytes()

    def again():
        return prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)

    flipped = bytes([shard[-1] ^ 1])
    for damaged in (shard[:-9], shard[:-1] + flipped, bytes(len(shard))):
        (work / "block-00001.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"block-00001\.safetensors is damaged"):
            again()
    (work / "block-00001.safetensors").write_bytes(shard)
    for damaged in ("", "{}\n", "[1]\n", '{"block": 1\n' + lines, "\udcff\n"):
        (work / LINES).write_bytes(damaged.encode(errors="surrogateescape"))
        with pytest.raises(CheckpointError, match=r"journal\.jsonl (is damaged|cannot be read)"):
            again()
    (work / LINES).write_text(lines[:-40])  # killed while it wrote the line: block 1 is not done
    again()
    same(tmp_path / "whole", tmp_path / "out")


def test_two_processes_do_not_write_one_output(tmp_path):
    run = {"method": "wanda", **FAST}
    end(tmp_path / "out", 1, "prune", **run)
    lock = (unfinished(tmp_path / "out") / LINES).open("rb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="Another process is writing"):
        prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)
    lock.close()
    prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)


def test_relative_outputs_hold_after_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = prunus.prune(MODELS / "llama", method="magnitude", output="deep/er/out/")
    monkeypatch.chdir("/")
    assert result.output == tmp_path / "deep" / "er" / "out"
    assert result.model.config.model_type == "llama"


def test_an_error_before_the_first_block_is_done_leaves_nothing(tmp_path):
    end(tmp_path / "out", 0, "prune", method="wanda", **FAST)
    assert os.listdir(tmp_path) == []
    model, tokenizer = load_tiny("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        prunus.prune(tmp_path / "nan", method="wanda", output=tmp_path / "out", **FAST)
    assert os.listdir(tmp_path) == ["nan"]


def test_folders_above_the_output_go_with_a_failed_run_if_it_made_them(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    output = tmp_path / "there" / "new" / "er" / "out"
    with monkeypatch.context() as patched:
        patched.setattr("prunus.run.loop.prune_block", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prunus.prune(MODELS / "llama", method="magnitude", output=output)
    assert os.listdir(tmp_path / "there") == []
    model, tokenizer = load_tiny("llama")
    with monkeypatch.context() as patched:
        patched.setattr("prunus.run.finish.write_model", lambda *args, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prunus.prune(model, method="magnitude", tokenizer=tokenizer, output=output)
    assert os.listdir(tmp_path / "there") == []
    end(output, 1, "prune", method="wanda", **FAST)  # a block is done: there is what to keep
    assert os.listdir(output.parent) == [".out.unfinished"]


@pytest.mark.parametrize("line", [None, "", '{"fingerprint": {"recip'])
def test_a_run_that_was_killed_at_birth_is_none(line, tmp_path):
    unfinished(tmp_path / "out").mkdir()
    if line is not None:
        (unfinished(tmp_path / "out") / LINES).write_text(line)
    prunus.prune(MODELS / "llama", method="magnitude", output=tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_to_resume_and_no_way_to(tmp_path):
    watcher = Ends(-1, "")
    run = {"method": "magnitude", "resume": True, "observer": watcher}
    prunus.prune(MODELS / "llama", output=tmp_path / "out", **run)
    assert any(said.startswith("nothing to resume") for said in watcher.said)
    with pytest.raises(InputError, match="for a model given as a path"):
        prunus.prune(load_tiny("llama")[0], output=tmp_path / "new", **run)
    with pytest.raises(InputError, match="with an output"):
        prunus.prune(MODELS / "llama", **run)


KILLED = ["prune", str(MODELS / "llama"), "--method", "sparsegpt", "--samples", "32",
          "--length", "128", "--json", "--output"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the run that is killed below leaves where nobody kills it."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = CliRunner().invoke(app, [*KILLED, str(output)])
    assert done.exit_code == 0, done.output
    return output


@pytest.mark.parametrize("run", range(3))
def test_killed_at_a_random_moment(run, tmp_path, whole):
    """SIGKILL, which no handler sees; then the same command with --resume."""
    words = [*KILLED, str(tmp_path / "out")]
    killed, work = command(*words), unfinished(tmp_path / "out")
    while killed.alive() and not (work / LINES).exists():
        time.sleep(0.005)
    time.sleep(random.Random(run).uniform(0, 0.5))
    killed.kill()
    killed.ended()
    if not (tmp_path / "out").exists():
        again = CliRunner().invoke(app, [*words, "--resume"])
        assert again.exit_code == 0, again.output
    same(whole, tmp_path / "out")


@pytest.mark.reload
def test_shards_are_one_file_or_several_with_an_index(tmp_path, monkeypatch):
    run = {"method": "magnitude"}
    prunus.prune(MODELS / "gpt2", output=tmp_path / "one", **run)
    assert [x.name for x in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]
    monkeypatch.setattr(assembly, "SMALL", 1)
    prunus.prune(MODELS / "gpt2", output=tmp_path / "four", **run)
    names = sorted(x.name for x in (tmp_path / "four").glob("*.safetensors*"))
    assert names[0] == "model-00001-of-00004.safetensors"
    assert names[-1] == "model.safetensors.index.json"
    assert len(names) == 5
    first, second = tensors(tmp_path / "one"), tensors(tmp_path / "four")
    assert first.keys() == second.keys()
    index = json.loads((tmp_path / "four" / names[-1]).read_text())
    assert index["weight_map"].keys() == first.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in first.values())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "four")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True)
    )
    assert prunus.verify(tmp_path / "four", reload=False).ok


def test_spilled_activations_are_the_same_and_go(tmp_path):
    run = {"method": "wanda", **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "held", **run)
    seen = []

    class Looks(Silent):
        def block(self, index, total, name, step):
            seen.append(len(list((tmp_path / "spill").glob("*/*.safetensors"))))

    prunus.prune(
        MODELS / "llama", output=tmp_path / "out", spill=tmp_path / "spill", observer=Looks(), **run
    )
    same(tmp_path / "held", tmp_path / "out")
    assert set(seen) == {3}
    assert os.listdir(tmp_path / "spill") == []


def test_what_a_killed_process_spilled_goes_with_the_next_run(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from prunus.storage.scratch import Spilled\n"
        "spilled = Spilled(Path(sys.argv[1])); spilled.append(torch.ones(3))\n"
        "print('spilled', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, **pipes) as killed, subprocess.Popen(words, **pipes) as alive:
        for process in (killed, alive):
            assert process.stdout.readline() == b"spilled\n"
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.glob("prunus.*/0.safetensors"))) == 2
        (tmp_path / "prunus.notes").mkdir()  # somebody else's
        held = Spilled(tmp_path)
        held.append(torch.ones(3))
        assert len(list(tmp_path.glob("prunus.*/0.safetensors"))) == 2
        assert float(held[0].sum()) == 3
        alive.stdin.close()
    del held
    assert os.listdir(tmp_path) == ["prunus.notes"]


def without_tokenizer(source, target):
    shutil.copytree(MODELS / source, target, ignore=shutil.ignore_patterns("tokenizer*"))
    return target


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_run_that_reads_no_text_needs_no_tokenizer(family, tmp_path):
    """GPT-2's comes into being without files, empty."""
    model, watcher = without_tokenizer(family, tmp_path / "model"), Ends(-1, "")
    result = prunus.prune(model, method="magnitude", output=tmp_path / "a", observer=watcher)
    assert f"{model} has no tokenizer, so the output gets none" in watcher.said
    assert result.verification.ok
    assert not list((tmp_path / "a").glob("*tok*"))
    given = {"method": "wanda", "tokens_ST": IDS}
    assert prunus.prune(model, output=tmp_path / "b", **given).verification.ok
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        prunus.prune(model, method="wanda", output=tmp_path / "c", **FAST)


def test_a_tokenizer_that_cannot_be_loaded_is_copied(tmp_path):
    model, watcher = without_tokenizer("llama", tmp_path / "model"), Ends(-1, "")
    (model / "tokenizer.json").write_text("{}")
    (model / "tokenizer.model").write_bytes(b"\x00pieces")
    prunus.prune(model, method="magnitude", output=tmp_path / "out", observer=watcher)
    [said] = [x for x in watcher.said if x.startswith("the tokenizer cannot be loaded")]
    assert said.endswith("copied as they are: tokenizer.json, tokenizer.model")
    for name in ("tokenizer.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()


def test_a_list_on_disk(tmp_path):
    spilled = Spilled(tmp_path / "deep" / "er")
    for i in range(3):
        spilled.append(torch.full((1, 4, 8), float(i), dtype=torch.bfloat16))
    spilled[1] = spilled[1] + 5
    assert [float(x.max()) for x in spilled] == [0, 6, 2]
    assert len(spilled) == 3
    assert spilled[0].dtype == torch.bfloat16
    with pytest.raises(IndexError):
        spilled[3]
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"--spill .* cannot be used"):
        Spilled(tmp_path / "file")


@pytest.mark.parametrize("reference", ["pruned", "dense"])
def test_a_run_goes_on_with_the_next_unit(reference, tmp_path):
    settings = {**LEARNING, "allocation.reference": reference}
    fields = {"method": "besa", "settings": settings, **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **fields)
    for index in (1, 2):  # within a unit, and between two
        output = tmp_path / f"from-{index}"
        with pytest.raises(KeyboardInterrupt):
            prunus.prune(MODELS / "llama", output=output, observer=Ends(index, "record"), **fields)
        prunus.prune(MODELS / "llama", output=output, resume=True, **fields)
        same(output, tmp_path / "whole")


def test_owl_resumes_without_a_second_look(tmp_path):
    fields = {"method": "wanda", "allocation": "owl", **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **fields)
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(
            MODELS / "llama", output=tmp_path / "out", observer=Ends(1, "record"), **fields
        )
    observer = Ends(None, None)
    prunus.prune(
        MODELS / "llama", output=tmp_path / "out", resume=True, observer=observer, **fields
    )
    same(tmp_path / "out", tmp_path / "whole")
    assert not any(step == "order" for _, step in observer.steps)
