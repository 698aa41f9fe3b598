"""``prunus bench``: what it reports, and that ratios come from pairs. No time is asserted."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError, InputError
from prunus.cli.main import app
from prunus.judge.bench import _check_dtypes, _lengths, bench
from prunus.judge.measured import Against
from prunus.judge.turns import rotated, turns
from prunus.judge.ways import Way

LLAMA = MODELS / "llama"


def test_a_ratio_is_the_median_of_the_pairs():
    """The machine slows down by 10 half-way: medians of each side alone would say 10 or 0.2."""
    against = Against.of([(200.0, 100.0), (210.0, 100.0), (20.0, 10.0), (21.0, 10.5), (20.0, 10.1)])
    assert against.ratio == 2.0
    assert (against.value, against.dense) == (21.0, 10.5)


@pytest.mark.parametrize("ways", [2, 3, 4, 7])
def test_each_way_is_first_as_often_and_none_follows_the_same_other_always(ways):
    orders = [rotated(turn, ways) for turn in range(2 * ways)]
    assert all(sorted(order) == list(range(ways)) for order in orders)
    for way in range(ways):
        assert [order[0] for order in orders].count(way) == 2
        before = {order[order.index(way) - 1] for order in orders if order[0] != way}
        assert len(before) == min(2, ways - 1)


class Counts:
    """Stands in for a process: its answer says who was asked as how-manieth of all."""

    asked = 0

    def ask(self, order):
        Counts.asked += 1
        return {"prefill": Counts.asked}


def test_a_turn_has_the_answer_of_each_way_at_its_place_and_the_first_turn_is_thrown_away():
    Counts.asked = 0
    found = [[run["prefill"] for run in turn] for turn in turns([Counts() for _ in "abc"], {}, 4)]
    assert found == [[6, 4, 5], [8, 9, 7], [10, 12, 11], [14, 13, 15]]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "pruned"
    prunus.prune(LLAMA, method="magnitude", output=output)
    return output


@pytest.fixture(scope="module")
def measured(pruned):
    """In processes of their own, as users have them; the other tests fork theirs."""
    said = []
    return bench(pruned, prompt=16, new=4, repeats=3, threads=1, say=said.append), said


def test_a_pruned_checkpoint_against_what_its_report_names(measured):
    found, said = measured
    assert found.dense_model == str(LLAMA)
    assert (found.new, found.repeats, found.device, found.threads) == (4, 3, "cpu", 1)
    assert [model.way for model in found.models] == ["dense", "pruned"]
    for model in found.models:
        assert (model.parameters, model.dtype, model.against) == (162240, "float32", "dense")
        assert model.weight_bytes >= 4 * 162240
        assert (model.bound, model.share, model.saving) == (1, 0, None)  # zeros are stored as such
    assert [(row.way, row.batch, row.prompt) for row in found.rows] == [
        ("dense", 1, 16),
        ("pruned", 1, 16),
    ]
    row = found.rows[1]
    for quantity in (row.prefill, row.decode, row.memory_bytes):
        assert len(quantity.runs) == 3
        assert all(value > 0 for pair in quantity.runs for value in pair)
        assert quantity.ratio == sorted(p / d for p, d in quantity.runs)[1]
        assert quantity.value == sorted(p for p, _ in quantity.runs)[1]
    assert (found.prefill, found.decode, found.memory_bytes) == (
        row.prefill,
        row.decode,
        row.memory_bytes,
    )
    assert row.of_bound == row.decode.ratio
    assert found.rows[0].of_bound is None
    assert row.memory_bytes.value > 20 * found.model("pruned").weight_bytes  # the interpreter's too
    assert [line.split()[0] for line in said] == ["loading", "loading", "turn", "turn", "turn"]


def test_every_way_at_every_batch_size_and_length(pruned, forked):
    ways = ["pruned", "csr,int8", f"pruned={LLAMA}"]
    found = bench(pruned, ways=ways, batch=[1, 3], prompt="8,12", new=3, repeats=1, threads=1)
    labels = ["dense", "pruned", "csr", "int8", f"pruned={LLAMA}"]
    assert [(row.batch, row.prompt, row.way) for row in found.rows] == [
        (batch, prompt, way) for batch in (1, 3) for prompt in (8, 12) for way in labels
    ]
    dense, pruned_model, csr, int8, other = found.models
    assert {model.parameters for model in found.models} == {162240}
    assert pruned_model.disk_bytes == sum(x.stat().st_size for x in pruned.rglob("*"))
    assert other.disk_bytes == dense.disk_bytes == int8.disk_bytes
    assert int8.bound > 3  # nearly all that a token reads is a quarter
    assert csr.bound == pytest.approx(dense.read_bytes / csr.read_bytes)
    assert csr.bound == pytest.approx(1 / (1 - csr.share + csr.share / csr.saving))
    assert int8.weight_bytes < dense.weight_bytes / 2 < csr.weight_bytes
    for row in found.rows:
        assert (row.of_bound is None) == (row.batch > 1 or row.way == "dense")
        assert found.model(row.way).rest_bytes < 2 * row.memory_bytes.value


def test_a_way_in_another_dtype_is_compared_with_the_dense_model_in_its_own(pruned, forked):
    found = bench(
        pruned, ways="pruned,csr", dtype="bfloat16", prompt=8, new=2, repeats=2, threads=1
    )
    assert [(m.way, m.dtype, m.against) for m in found.models] == [
        ("dense", "bfloat16", "dense"),
        ("pruned", "bfloat16", "dense"),
        ("csr", "float32", "dense-float32"),
        ("dense-float32", "float32", "dense-float32"),
    ]
    rows = {row.way: row for row in found.rows}
    assert [dense for _, dense in rows["csr"].decode.runs] == [
        value for value, _ in rows["dense-float32"].decode.runs
    ]
    assert rows["dense-float32"].decode.ratio == rows["dense"].decode.ratio == 1


def test_packed_ways(pruned, forked):
    ways = "packed-fp32,packed-bf16,packed-int8"
    found = bench(pruned, ways=ways, prompt=8, new=2, repeats=1, threads=1)
    assert [(m.way, m.against) for m in found.models] == [
        ("dense", "dense"),
        ("packed-fp32", "dense"),
        ("packed-bf16", "dense-bfloat16"),
        ("packed-int8", "dense"),
        ("dense-bfloat16", "dense-bfloat16"),
    ]
    assert {model.parameters for model in found.models} == {162240}
    packed = {model.way: model for model in found.models}
    assert 1.7 < packed["packed-fp32"].saving < 32 / 17  # padding and offsets aside
    assert 1.5 < packed["packed-bf16"].saving < 16 / 9
    assert packed["dense"].kernels is None
    for way, model in packed.items():
        assert (model.kernels is None) == way.startswith("dense")
        if way.startswith("packed"):
            dense = packed[model.against]
            assert 0.5 < model.share < 1
            assert model.bound == pytest.approx(dense.read_bytes / model.read_bytes)


def test_the_command_line_prints_one_json_object(pruned, forked):
    arguments = ("--threads", "1", "--new", "2", "--repeats", "1", "--json")
    other = str(MODELS / "gpt_neox")
    result = CliRunner().invoke(app, ["bench", str(pruned), "--dense", other, *arguments])
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    dense, own = said["models"]
    assert (dense["parameters"], own["parameters"]) == (190848, 162240)
    assert own["bound"] == pytest.approx(dense["read_bytes"] / own["read_bytes"])
    for row in said["rows"]:
        assert row["prompt"] == 510  # what the context leaves of 512
        for key in ("prefill", "decode", "memory_bytes"):
            assert set(row[key]) == {"value", "dense", "ratio", "runs"}
            assert row[key]["ratio"] == pytest.approx(row[key]["value"] / row[key]["dense"])
    assert "turn 1 of 1, batch 1, prompt 510: dense" in result.stderr


def test_the_command_line_prints_tables(measured, monkeypatch):
    given = {}
    monkeypatch.setattr("prunus.judge.bench.bench", lambda *_, **more: given.update(more) or found)
    found = measured[0]
    result = CliRunner().invoke(app, ["bench", "x", "--as", "csr,int8", "--as", "pruned=y"])
    assert (given["ways"], given["batch"], given["prompt"]) == (["csr,int8", "pruned=y"], "1", None)
    assert result.stdout.startswith("batch 1, prompt 16\n")
    number, ratio = r" +[\d,.]+", r" +\d+\.\d{3}"
    assert re.search(rf"\n *dense{number}{number}{number} *\n", result.stdout)
    pattern = rf"\n *pruned{number}{ratio}{number}{ratio} +\d+\.\d\d{number}{ratio} *\n"
    assert re.search(pattern, result.stdout)
    assert re.search(rf"\n *pruned +float32 +0.2{number * 3} +1.00 *\n", result.stdout)
    assert "Medians of 3 turns" in result.stdout
    assert "4 new tokens, cpu" in result.stdout


def test_bad_input(pruned, forked, tmp_path):
    for arguments, message in [
        ({"repeats": 0}, "at least once; got new 64, repeats 0"),
        ({"new": 1}, "writes at least 2"),
        ({"prompt": 0}, "prompt is a whole number of at least 1"),
        ({"batch": "1,x"}, "such as 1,4,16; got '1,x'"),
        ({"threads": 0}, "threads is at least 1"),
        ({"device": "gpu", "dense": LLAMA}, "Unknown device 'gpu'"),
        ({"ways": "packd-bf16"}, "Unknown way to run 'packd-bf16'. Did you mean 'packed-bf16'?"),
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
    with pytest.raises(CheckpointError, match=r"gpt cannot be measured as pruned: .* lacks .* ten"):
        bench(wrong, LLAMA)


def child(dtype, kind="pruned", own=False):
    way = Way(kind, kind, "a", "auto", own)
    return SimpleNamespace(facts={"dtype": dtype}, way=way)


def test_two_models_that_do_not_compare():
    assert _lengths([{"context": 512}, {"context": None}], None, 64) == [448]
    assert _lengths([{"context": None}] * 2, None, 64) == [512]
    assert _lengths([{"context": 512}, {"context": 100}], [8, 36], 64) == [8, 36]
    with pytest.raises(InputError, match="37 and 64 new tokens do not fit a context of 100"):
        _lengths([{"context": 512}, {"context": 100}], [37, 8], 64)
    dense = child("bfloat16", "dense")
    _check_dtypes(
        [dense, child("bfloat16"), child("float32", "csr", True), child("Q", "llama.cpp")]
    )
    with pytest.raises(InputError, match=r"is float32, the dense model bfloat16; .* Give --dtype"):
        _check_dtypes([dense, child("float32")])
