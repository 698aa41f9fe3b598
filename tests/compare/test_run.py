import shutil

import pytest
import torch

import prunus
from helpers.models import MODELS
from prunus.base.errors import InputError
from prunus.compare import Grid, compare
from prunus.compare import checkpoints as module
from prunus.compare import run as loop
from prunus.compare.cost import token_bytes
from prunus.compare.facts import of_cell
from prunus.compare.log import FILE, Log
from prunus.maths.grids import Grid as Integers
from prunus.run.observer import Silent

MODEL = MODELS / "llama"
RECIPE = {"samples": 4, "length": 32}
JUDGE = {"length": 64, "windows": 4, "against": False}
TEXT = "perplexity builtin"


def grid(rows=("magnitude", "wanda"), columns=(0.5, "2:4"), **others):
    return Grid.of(rows=list(rows), columns=list(columns), recipe=RECIPE, judge=JUDGE, **others)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return folder, compare(MODEL, grid(), folder)


def facts(table):
    return {(r.row, r.column, r.seed): (r.key, r.quality, r.sparsity) for r in table.runs}


def test_every_cell_is_what_prune_and_evaluate_give(compared, tmp_path):
    _, table = compared
    made = prunus.prune(MODEL, method="wanda", pattern="2:4", output=tmp_path / "own", **RECIPE)
    expected = prunus.evaluate(tmp_path / "own", length=64, windows=4).perplexity
    [run] = [run for run in table.runs if (run.row, run.column) == ("wanda", "2:4")]
    assert run.quality == {TEXT: pytest.approx(expected, rel=1e-6)}
    assert run.calibration == made.report.protocol.sha256
    dense = prunus.evaluate(MODEL, length=64, windows=4).perplexity
    assert table.dense.quality == {TEXT: pytest.approx(dense, rel=1e-6)}


def test_nothing_is_made_twice(compared, monkeypatch):
    folder, table = compared
    lines = (folder / FILE).read_text()
    monkeypatch.setattr(module, "prune", lambda *args, **kwargs: pytest.fail("made again"))
    again = compare(MODEL, grid(), folder)
    assert facts(again) == facts(table)
    assert (folder / FILE).read_text() == lines
    fewer = compare(MODEL, grid(rows=["wanda"]), folder)
    assert set(facts(fewer)) == {("wanda", "50 %", 0), ("wanda", "2:4", 0)}


@pytest.mark.parametrize("changed", [{"samples": 5}, {"judge": {**JUDGE, "windows": 3}}])
def test_another_protocol_is_another_run(compared, monkeypatch, changed):
    folder, _ = compared
    judge = changed.pop("judge", JUDGE)
    other = Grid.of(rows=["wanda"], recipe={**RECIPE, **changed}, judge=judge)
    made = []
    monkeypatch.setattr(loop.Comparison, "_made", lambda self, cell, *rest: made.append(cell))
    with pytest.raises(TypeError):  # nothing was made
        compare(MODEL, other, folder)
    assert len(made) == 1


def kept(folder):
    return {path.name for path in (folder / module.FOLDER).glob("*")}


class Kill(Silent):
    """End the process at a block, as Ctrl-C does."""

    def __init__(self, index):
        self.index = index

    def block(self, index, total, name, step):
        if index == self.index and step == "prune":
            raise KeyboardInterrupt


def test_killed_twice_and_resumed_is_the_same_table(compared, tmp_path):
    _, table = compared
    for title, index in (("magnitude, 2:4", 0), ("wanda, 50 %", 1)):
        with pytest.raises(KeyboardInterrupt):
            compare(
                MODEL, grid(), tmp_path,
                observer=lambda cell, at=index, title=title: (
                    Kill(at) if cell.startswith(title) else Silent()
                ),
            )  # fmt: skip
    said = []
    resumed = compare(MODEL, grid(), tmp_path, say=said.append)
    assert facts(resumed) == facts(table)
    assert [line for line in said if line.endswith("going on")] == [
        "[3/4] wanda, 50 %, seed 0: going on"
    ]
    assert not kept(tmp_path)


def test_which_checkpoints_stay(tmp_path):
    table = compare(MODEL, grid(), tmp_path, keep="best")
    best = {min((r for r in table.runs if r.column == c), key=lambda r: r.quality[TEXT]).key
            for c in ("50 %", "2:4")}  # fmt: skip
    assert kept(tmp_path) == best
    shutil.rmtree(tmp_path / module.FOLDER)
    compare(MODEL, grid(), tmp_path, keep="best")  # the runs are known, their checkpoints are gone
    assert kept(tmp_path) == best
    compare(MODEL, grid(), tmp_path, keep="all")
    assert kept(tmp_path) == {run.key for run in table.runs}
    assert len(Log(tmp_path)._runs) == 5


def test_a_run_that_fails_leaves_the_others(tmp_path):
    rows = {"wanda": {"method": "wanda"}, "far": {"method": "wanda", "skip_blocks": "0:99"}}
    table = compare(MODEL, Grid.of(rows=rows, recipe=RECIPE, judge=JUDGE), tmp_path)
    assert [run.row for run in table.runs] == ["wanda"]
    assert "99" in table.failed["far", "50 %"]


def test_keep_is_one_of_three(tmp_path):
    with pytest.raises(InputError, match="keep is none, best or all; got 'some'"):
        compare(MODEL, grid(), tmp_path, keep="some")


def test_bytes_of_a_token_by_hand():
    model = prunus.load(MODEL)
    config = model.config
    dense = token_bytes(model, None)
    linears = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(m.weight.numel() for m in linears)
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    beside = 4 * (norms + config.hidden_size + config.vocab_size * config.hidden_size)
    assert dense == pytest.approx(4 * weights + beside, rel=0.02)
    rest = dense - 4 * weights
    with torch.no_grad():
        for module in linears:
            module.weight.view(-1)[::2] = 0
    assert token_bytes(model, None) == weights // 8 + 4 * weights // 2 + rest
    inputs = sum(m.weight.numel() // 8 for m in linears)  # a group of 8 has 16 bits
    assert (
        token_bytes(model, Integers(4, 8)) == (weights + 4 * weights // 2) // 8 + 2 * inputs + rest
    )


def test_runs_on_one_walk_are_the_runs_alone(tmp_path):
    asked = {**RECIPE, "statistics": "dense"}
    rows = ["wanda", "ria", "sparsegpt"]
    tables = [
        compare(
            MODEL, Grid.of(rows=rows, recipe=asked, judge=JUDGE), tmp_path / str(together),
            together=together, say=(said := []).append,
        )
        for together in (1, 2)
    ]  # fmt: skip
    assert facts(tables[0]) == facts(tables[1])
    assert [line for line in said if line.startswith("one walk")] == [
        "one walk for 2 runs: wanda, 50 %, seed 0; ria, 50 %, seed 0"
    ]
    assert not kept(tmp_path / "2")


def test_a_field_that_is_new_or_has_its_default_changes_no_earlier_run():
    rows = {
        "as it is": {"method": "wanda"},
        "spelled out": {"method": "wanda", "answers": False, "true_sequential": False, "seed": 0},
        "another seed": {"method": "wanda", "seed": 1},
    }
    cells, _ = Grid.of(rows=rows, columns=[0.5], recipe=RECIPE).cells()
    usual, spelled, other = (of_cell({}, cell) for cell in cells)
    assert usual == spelled
    assert set(other) - set(usual) == {"recipe seed"}
    assert not {"recipe answers", "recipe reconstruct", "recipe dtype"} & set(usual)
