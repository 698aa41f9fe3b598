"""Memory and disk are looked at before the first block, not found wanting in the middle."""

import hashlib
import json
import os
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from helpers.runs import Ends, tensors
from prunus.base.errors import RoomError
from prunus.base.memory import available_memory, free_disk, is_in_memory
from prunus.cli.main import app
from prunus.maths.gram import Gram
from prunus.maths.moments import ChannelMoments, Moments
from prunus.maths.stats import ColumnNorm
from prunus.run import room
from prunus.run.need import block_bytes, need
from prunus.run.room import Need, fit, statistics_bytes
from prunus.text.sampling import DIGESTED, digest

FAST = {"samples": 3, "length": 48}
PLENTY = 2**40
RUNS = [{"method": "wanda"}, {"method": "goa", "recovery": "both", "sparsity": 0.4}]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of one's own: how much memory and disk it has, and where its temporary files go."""

    def of(memory=PLENTY, disk=PLENTY):
        monkeypatch.setattr(room, "available_on", lambda device: memory)
        monkeypatch.setattr("prunus.run.whole.available_memory", lambda: memory)
        monkeypatch.setattr("prunus.run.forecast.available_memory", lambda: memory)
        monkeypatch.setattr(room, "free_disk", lambda folder: disk)

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(room, "is_in_memory", lambda folder: False)
    return of


def put(root, folder, **files):
    """The files of a cgroup."""
    (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / "sys/fs/cgroup" / folder / f"memory.{name}").write_text(f"{text}\n")


def own(root, lines):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)


def test_the_tightest_of_nested_cgroups_counts(tmp_path):
    own(tmp_path, "0::/slice/job\n")
    put(tmp_path, "slice/job", max="max", current=500)
    put(tmp_path, "slice", max=5000, current=4000, stat="anon 1\nactive_file 20\ninactive_file 3")
    put(tmp_path, ".", max=7000, current=4000)
    assert available_memory(tmp_path) == 1023
    put(tmp_path, "slice/job", max=600)
    assert available_memory(tmp_path) == 100
    put(tmp_path, "slice/job", max=400)
    assert available_memory(tmp_path) == 0


@pytest.mark.parametrize("where", ["memory/docker/abc", "memory"])
def test_version_1_also_where_a_container_sees_only_its_own_folder(where, tmp_path):
    own(tmp_path, "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    put(tmp_path, where, limit_in_bytes=9000, usage_in_bytes=8000)
    put(tmp_path, where, stat="active_file 1\ntotal_active_file 7\ntotal_inactive_file 2")
    assert available_memory(tmp_path) == 1009


@pytest.mark.parametrize("lines", ["", "0::/../elsewhere\n", "nonsense\n4:memory:/gone\n"])
def test_without_limits_it_is_what_the_machine_has(lines, tmp_path):
    own(tmp_path, lines)
    free = psutil.virtual_memory().available
    assert available_memory(tmp_path) == pytest.approx(free, rel=0.2)
    assert available_memory(tmp_path / "nothing") == pytest.approx(free, rel=0.2)


def test_folders_that_are_not_there_yet(tmp_path):
    assert free_disk(tmp_path / "new" / "er") == pytest.approx(free_disk(tmp_path), rel=0.01)
    if Path("/dev/shm").is_dir():
        assert is_in_memory(Path("/dev/shm/new"))


@pytest.mark.parametrize("kind", [Gram, ColumnNorm, ChannelMoments, Moments])
def test_statistics_are_reckoned_without_making_them(kind):
    made = kind(24, torch.device("cpu"))
    taken = sum(x.numel() * x.itemsize for x in vars(made).values() if isinstance(x, torch.Tensor))
    assert statistics_bytes([kind], 24) == taken > 0


TEXT = Need(samples=100, length=10, activations=1000, held=50)


def test_what_fits_stays_in_memory(machine):
    machine(memory=2000, disk=0)
    assert fit(TEXT, None, None) is None
    machine(memory=1051, disk=0)  # little is left, and there is no disk: it is tried
    assert fit(TEXT, None, None) is None


@pytest.mark.parametrize("memory", [1100, 500, 60])
def test_what_would_leave_little_goes_to_disk_and_that_is_said(memory, machine, tmp_path):
    said = []
    machine(memory=memory, disk=2000)
    assert fit(TEXT, None, None, said.append) == tmp_path / "temporary"
    assert "they go to disk, into" in said[0]


@pytest.mark.parametrize("disk", [1000, 0])
def test_what_fits_nowhere_is_refused_with_the_levers(disk, machine):
    machine(memory=550, disk=disk)
    with pytest.raises(RoomError) as refused:
        fit(TEXT, None, None)
    said = str(refused.value)
    for lever in ("(47 would fit)", "--length", "--spill DIR", "100 samples of 10 tokens"):
        assert lever in said
    assert "bfloat16" not in said
    fit(Need(samples=47, length=10, activations=470, held=50), None, None)


def test_temporary_files_in_memory_are_no_way_out(machine, monkeypatch):
    machine(memory=550)
    monkeypatch.setattr(room, "is_in_memory", lambda folder: True)
    with pytest.raises(RoomError, match="is in memory itself"):
        fit(TEXT, None, None)


def test_a_block_that_does_not_fit_is_helped_by_no_disk(machine):
    machine(memory=40)
    with pytest.raises(RoomError, match=r"a block with its statistics.*--dtype bfloat16"):
        fit(Need(samples=1, length=10, activations=1, held=50, wide=True), None, None)
    with pytest.raises(RoomError, match="Free memory"):
        fit(Need(held=50), None, None)
    with pytest.raises(RoomError, match=r"token ids of 100 samples.*\(30 would fit\)"):
        fit(Need(samples=100, length=10, ids=120, held=1), None, None)


def test_processes_of_one_machine_have_a_share_each(machine, tmp_path):
    two = Need(samples=200, length=10, activations=1000, held=50, beside=2)
    machine(memory=1900, disk=1900)
    with pytest.raises(RoomError, match="each of the 2 processes"):
        fit(two, None, None)
    machine(memory=1900, disk=2300)
    assert fit(two, None, None) == tmp_path / "temporary"
    machine(memory=4000)
    assert fit(two, None, None) is None


def test_disks_are_judged_too(machine, tmp_path):
    machine(disk=999)
    with pytest.raises(RoomError, match=r"--spill .* free.*fewer --samples \(94 would fit\)"):
        fit(TEXT, tmp_path, None)
    written = Need(journal=600, written=1000)
    with pytest.raises(RoomError, match=r"takes .* of disk while it is made"):
        fit(written, None, tmp_path / "out")
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished" / "block").write_bytes(b"x")  # is there already
    assert fit(written, None, tmp_path / "out") is None
    with pytest.raises(RoomError, match="with the activations in"):
        fit(Need(samples=1, length=1, activations=500, journal=600), tmp_path, tmp_path / "out")


def prepared(monkeypatch, **run):
    """What a run needs, by its shapes."""
    found = []
    with monkeypatch.context() as patched:
        patched.setattr("prunus.api.make_room", lambda run, _: found.append((run, need(run))))
        patched.setattr("prunus.api.carry_out", lambda *args: None)
        prunus.prune(MODELS / "llama", **run)
    return found[0]


def test_needs_are_those_of_the_shapes(monkeypatch, tmp_path):
    where = {"output": tmp_path / "out", "samples": 4, "length": 32}
    run, gram = prepared(monkeypatch, method="sparsegpt", **where)
    block = run.job.blocks[0]
    sites = [layer.shape[1] for layer in block.sites.values()]
    assert gram.activations == 4 * 32 * 64 * 4
    assert gram.held == block_bytes(block) + 4 * sum(i * i for i in sites)
    assert (gram.samples, gram.length, gram.wide) == (4, 32, True)
    many = need(run, 4000)
    assert many.activations == 1000 * gram.activations
    assert (gram.ids, many.ids) == (0, 3996 * 32 * 8)
    total = sum(p.numel() * 4 for p in run.job.model.parameters())
    assert (gram.journal, gram.written) == (total, 2 * total)
    learned = prepared(monkeypatch, method="besa", **where)[1]
    assert learned.activations == 2 * gram.activations
    half = prepared(monkeypatch, method="sparsegpt", reconstruct="half", **where)[1]
    weights = sum(layer.shape[0] * layer.shape[1] for layer in block.layers)
    assert half.activations == 3 * gram.activations  # the targets of both halves
    assert half.held == gram.held + 4 * 7 * weights
    twos = {"reconstruct": "block", "settings": {"reconstruct.blocks": 2}}
    pairs = prepared(monkeypatch, method="sparsegpt", **twos, **where)[1]
    assert pairs.activations == 3 * gram.activations  # and the pair's beginning
    assert pairs.held == gram.held + block_bytes(block) + 2 * 4 * 7 * weights
    before = prepared(monkeypatch, method="goa", recovery="before", **where)[1]
    assert before.activations == 2 * gram.activations
    assert before.held > prepared(monkeypatch, method="goa", **where)[1].held
    assert before.written < total * 2
    nothing = prepared(monkeypatch, method="magnitude", output=tmp_path / "out")[1]
    assert nothing.activations == nothing.samples == 0


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["method"])
def test_a_run_that_does_not_fit_is_refused_before_the_first_block(
    run, machine, tmp_path, monkeypatch
):
    found = prepared(monkeypatch, output=tmp_path / "out", **run, **FAST)[1]
    watcher = Ends(-1, "")
    machine(memory=found.total - 1, disk=0)
    whole = {"output": tmp_path / "out", "observer": watcher, **run, **FAST}
    with pytest.raises(RoomError, match=r"--samples.*--length.*--spill DIR.*--dtype bfloat16"):
        prunus.prune(MODELS / "llama", **whole)
    assert watcher.steps == []
    assert sorted(os.listdir(tmp_path)) == ["temporary"]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["method"])
def test_activations_go_to_disk_by_themselves_with_the_same_bytes(
    run, machine, tmp_path, monkeypatch
):
    prunus.prune(MODELS / "llama", output=tmp_path / "held", **run, **FAST)
    seen = []

    class Looks(Ends):
        def block(self, *args):
            seen.append(len(list((tmp_path / "temporary").glob("prunus.*/*.safetensors"))))

    watcher = Looks(-1, "")
    found = prepared(monkeypatch, output=tmp_path / "out", **run, **FAST)[1]
    machine(memory=found.total - 1)
    prunus.prune(MODELS / "llama", output=tmp_path / "out", observer=watcher, **run, **FAST)
    assert any("they go to disk" in said for said in watcher.said)
    assert max(seen) >= 3
    first, second = tensors(tmp_path / "held"), tensors(tmp_path / "out")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list((tmp_path / "temporary").glob("*/*.safetensors"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["method"])
def test_a_million_samples_are_refused_before_they_are_drawn(run, machine, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.text.tokens.sample_windows", None)
    machine(memory=2**33, disk=2**34)
    with pytest.raises(RoomError, match="1,000,000 samples"):
        prunus.prune(MODELS / "llama", output=tmp_path / "out", samples=10**6, **run)
    machine(memory=2**33, disk=PLENTY)
    with pytest.raises(TypeError, match="NoneType"):  # it is drawn: ids fit, the rest spills
        prunus.prune(MODELS / "llama", output=tmp_path / "out", samples=10**6, **run)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["method"])
def test_a_plan_says_what_is_there_and_what_would_fit(run, machine):
    machine(memory=2**33, disk=2**34)
    plan = prunus.plan(MODELS / "llama", samples=10**6, **run)
    assert not plan.fits
    assert plan.available_bytes > 2**33
    assert plan.peak_bytes > plan.available_bytes
    assert "would fit" in plan.advice
    few = prunus.plan(MODELS / "llama", **run, **FAST)
    assert few.fits
    assert few.advice is None
    machine(memory=2**33, disk=PLENTY)
    said = Ends(-1, "")
    spilled = prunus.plan(MODELS / "llama", samples=10**6, observer=said, **run)
    assert spilled.fits  # as the run would do it
    assert spilled.disk_bytes > 2**34
    assert any("they go to disk" in line for line in said.said)


def test_plan_on_the_command_line(machine):
    machine(memory=2**33, disk=0)
    asked = ["plan", str(MODELS / "llama"), "--method", "wanda", "--samples", "1000000"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert "available: this does not fit" in shown.stdout
    assert "fewer --samples" in shown.stdout
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert found["fits"] is False
    assert found["available_bytes"] > 2**33


def test_a_model_that_is_read_as_a_whole_is_judged_by_its_files(machine, tmp_path):
    model = load_tiny("llama")[0]
    size = sum(p.numel() * 4 for p in model.parameters())
    machine(memory=size - 1)
    with pytest.raises(RoomError, match=r"read as a whole.*--dtype bfloat16.*block by block"):
        prunus.prune(MODELS / "llama", method="magnitude")
    with pytest.raises(RoomError, match="read as a whole"):
        prunus.prune(MODELS / "llama", method="llm-pruner", output=tmp_path / "out", **FAST)
    prunus.prune(MODELS / "llama", method="magnitude", dtype="bfloat16")
    prunus.prune(MODELS / "llama", method="magnitude", output=tmp_path / "out")


def test_a_hash_of_many_windows_is_that_of_all_at_once():
    ids_ST = torch.arange((2 * DIGESTED + 5) * 3).reshape(-1, 3)
    assert digest(ids_ST) == hashlib.sha256(ids_ST.numpy().astype("<i8").tobytes()).hexdigest()
