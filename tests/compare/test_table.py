import csv
import io
import json

import pytest

from prunus.base.errors import CheckpointError
from prunus.compare.formats import FORMATS, latex, markdown
from prunus.compare.grid import Grid
from prunus.compare.log import Log, Run, key
from prunus.compare.table import Table, Value, better

P, A = "perplexity t", "accuracy q"


def run(row, column="50 %", seed=0, perplexity=20.0, accuracy=0.4, **others):
    facts = {"sparsity": 0.5, "token_bytes": 2**20, "seconds": 3.0, "judged_seconds": 2.0}
    quality = {P: perplexity, A: accuracy}
    return Run(
        key=f"{row}{column}{seed}", row=row, column=column, seed=seed, recipe={}, quality=quality,
        peak_bytes=2**30, **{**facts, **others},
    )  # fmt: skip


def table(*runs, rows="abcd", columns=("0.5",), failed=None):
    grid = Grid.of(rows={x: {"method": "wanda"} for x in rows}, columns=list(columns))
    dense = run("dense", "", None, 10.0, 0.6, token_bytes=2**21)
    return Table(grid, dense, list(runs), failed or {})


def test_less_perplexity_and_more_accuracy_are_better():
    assert better(P, 1, 2)
    assert better("KL t", 1, 2)
    assert better(A, 2, 1)
    assert not better(P, float("nan"), 2)
    assert not better(A, float("nan"), 2)


def test_best_second_and_ties_over_seeds():
    found = table(
        *(run("a", seed=s, perplexity=p) for s, p in enumerate((20.0, 24.0))),  # mean 22
        *(run("b", seed=s, perplexity=p) for s, p in enumerate((23.0, 25.0))),  # meets a's range
        run("c", perplexity=24.5),  # meets b's, not a's
        run("d", perplexity=24.4),
    )
    marks = found.marks(P)
    assert marks == {
        ("a", "50 %"): "best",
        ("b", "50 %"): "best",
        ("d", "50 %"): "second",
    }
    assert found.value("a", "50 %", P) == Value(22.0, 20.0, 24.0, 2)
    assert found.value("a", "50 %", P).shown(P) == "22.00 ± 2.00"


def test_accuracy_is_marked_the_other_way():
    found = table(run("a", accuracy=0.3), run("b", accuracy=0.5), run("c", accuracy=0.4))
    assert found.marks(A) == {("b", "50 %"): "best", ("c", "50 %"): "second"}


def test_costs():
    found = table(run("a", token_bytes=2**20, seconds=1.0), run("a", seed=1, seconds=5.0))
    cost = found.sheets()[-1]
    assert [cell.text for cell in cost.rows[1]] == [
        "a", "50 %", "50.0%", "1.0", "0.50", "3", "2", "1.0",
    ]  # fmt: skip


def test_markdown_and_latex_mark_and_escape():
    found = table(run("a_%|", perplexity=12.0), run("b", perplexity=13.0), rows=["a_%|", "b", "c"])
    text = markdown(found)
    assert "| dense | 10.00 |" in text
    assert r"| a_%\| | **12.00** |" in text
    assert "| b | *13.00* |" in text
    assert "| c | — |" in text
    tex = latex(found)
    assert r"a\_\%| & \textbf{12.00} \\" in tex
    assert r"b & \underline{13.00}" in tex
    assert "c & -- " in tex


def test_csv_and_json_have_every_run():
    failed = {("c", "50 %"): "because"}
    found = table(run("a, b", perplexity=12.5), rows=["a, b", "c"], failed=failed)
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](found))))
    assert [line["row"] for line in lines] == ["dense", "a, b"]
    assert float(lines[1][P]) == 12.5
    assert lines[1]["seed"] == "0"
    content = json.loads(FORMATS["json"](found))
    assert content["failed"] == [{"row": "c", "column": "50 %", "why": "because"}]
    assert content["values"][0] == {
        "row": "a, b", "column": "50 %", "measure": P, "mean": 12.5, "low": 12.5, "high": 12.5,
        "seeds": 1,
    }  # fmt: skip


def test_why_a_cell_is_empty():
    assert "- c, 50 %: because" in markdown(table(run("a"), failed={("c", "50 %"): "because"}))


def test_a_log_is_read_again_and_a_half_written_line_goes(tmp_path):
    log = Log(tmp_path / "new")
    log.add(run("a"))
    log.add(run("b"))
    with log.path.open("a") as file:
        file.write('{"key": "hal')
    again = Log(tmp_path / "new")
    assert again.get("a50 %0") == run("a")
    assert again.get("hal") is None
    again.add(run("c"))
    assert Log(tmp_path / "new").get("c50 %0") == run("c")


def test_a_damaged_line_is_named(tmp_path):
    log = Log(tmp_path)
    log.add(run("a"))
    log.path.write_text("{}\n" + log.path.read_text())
    with pytest.raises(CheckpointError, match=r"Line 1 of .*runs.jsonl is damaged"):
        Log(tmp_path)


def test_a_key_depends_on_every_fact():
    assert key({"a": 1}) == key({"a": 1}) != key({"a": 2}) != key({"b": 2})
