"""What somebody sees who types: results, bars, types of arguments."""

import logging
import pathlib
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import InputError
from prunus.cli.main import app
from prunus.recipe import Recipe
from prunus.report.report import read_report
from prunus.run import progress
from prunus.run.finish import Result
from prunus.run.observer import Silent

LLAMA = MODELS / "llama"
IDS = torch.arange(40).view(2, 20)


@pytest.fixture(scope="module")
def result():
    model, _ = load_tiny("llama")
    return prunus.prune(model, method="wanda", tokens_ST=IDS)


@pytest.fixture(scope="module")
def smaller():
    model, _ = load_tiny("llama")
    return prunus.prune(model, method="l1", sparsity=0.3)


def test_a_result_is_a_few_lines(result, smaller):
    assert 5 <= len(repr(result).splitlines()) <= 9
    assert "method  wanda" in repr(result)
    assert "50.00% of 21 layers are zero" in repr(result)
    assert "of the whole model" in repr(smaller)
    assert "model.layers.1" not in repr(result.report)
    assert len(repr(result.report)) < 300


def test_a_result_is_a_table_in_a_notebook(result, smaller):
    html = result._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") == 8  # seven kinds of layers, and the head
    assert "<td>q_proj</td><td>64 × 64</td><td>row</td><td>50.00%</td>" in html
    assert "<th>neurons</th>" in smaller._repr_html_()


def test_names_from_outside_are_no_html(result):
    from dataclasses import replace

    report = replace(result.report, model="<script>alert(1)</script>", method="a<b>&c")
    html = Result(report, result.orders)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "a&lt;b&gt;&amp;c" in html


def test_a_result_as_rows(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="to_pandas needs pandas: pip install pandas"):
        result.to_pandas()
    monkeypatch.undo()
    pandas = pytest.importorskip("pandas")
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == [layer.name for layer in result.report.layers]
    assert list(frame["inputs"]) == [layer.shape[1] for layer in result.report.layers]
    assert (frame["sparsity"] == 0.5).all()


def test_a_plan_is_one_line():
    for method in ("magnitude", "l1"):
        plan = prunus.plan(LLAMA, method=method)
        assert "\n" not in repr(plan)
        assert "GiB" in repr(plan)
        assert len(repr(plan)) < 160


def on_terminal(monkeypatch, **how):
    """The console as it is in front of somebody."""
    import io

    console = Console(file=io.StringIO(), width=120, highlight=False, **how)
    monkeypatch.setattr(progress, "console", console)
    return console


def test_a_bar_on_a_terminal_unless_somebody_else_watches(monkeypatch):
    console = on_terminal(monkeypatch, force_terminal=True)
    model, tokenizer = load_tiny("llama")
    prunus.prune(model, method="magnitude")
    assert "pruning 21 layers in 3 blocks" in console.file.getvalue()
    assert "3/3" in console.file.getvalue()
    console = on_terminal(monkeypatch, force_terminal=True)
    prunus.prune(model, method="magnitude", observer=prunus.Silent())
    assert not console.file.getvalue()
    prunus.evaluate(model, tokenizer=tokenizer, length=32, windows=2)
    assert "perplexity" in console.file.getvalue()


def test_a_script_draws_nothing_and_logs_its_sentences(monkeypatch, capfd, caplog):
    console = on_terminal(monkeypatch, force_terminal=False)
    model, tokenizer = load_tiny("llama")
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG, "prunus"):
        prunus.prune(model, method="magnitude")
        prunus.evaluate(model, tokenizer=tokenizer, length=32, windows=2)
    assert not console.file.getvalue()
    assert capfd.readouterr() == ("", "")
    said = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "prunus"]
    assert ("INFO", said[0][1]) == said[0]
    assert said[0][1].startswith("pruning 21 layers")
    assert sum(level == "DEBUG" for level, _ in said) == 21


def test_a_bar_in_a_notebook_is_one_output_that_changes(monkeypatch):
    ipython = pytest.importorskip("IPython.display")
    console = on_terminal(monkeypatch, force_jupyter=True)
    shown = []

    class Handle:
        def update(self, drawing):
            shown.append("update")

    def display(drawing, display_id=False):
        assert "text/html" in drawing._repr_mimebundle_([], [])
        shown.append("new" if display_id else "line")
        return Handle()

    monkeypatch.setattr(ipython, "display", display)
    model, _ = load_tiny("llama")
    prunus.prune(model, method="magnitude")
    assert shown.count("new") == 1
    assert "update" in shown
    assert not console.is_terminal


def test_what_cannot_watch_is_refused():
    model, _ = load_tiny("llama")
    for observer, message in (
        (5, "int lacks say, block, sample, layer, done"),
        (Silent, "observer is the class Silent; give an object of it"),
    ):
        with pytest.raises(InputError, match=message):
            prunus.prune(model, method="magnitude", observer=observer)


def test_dtypes_and_devices_of_torch_are_names_in_the_recipe(tmp_path):
    given = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    result = prunus.prune(LLAMA, method="magnitude", output=tmp_path / "out", **given)
    again = Recipe.read(tmp_path / "out" / "recipe.yaml")
    assert (again.dtype, again.device) == ("bfloat16", "cpu")
    assert result.model.dtype == torch.bfloat16
    assert prunus.load(LLAMA, dtype=torch.float16, device=torch.device("cpu")).dtype == torch.half
    where = {"length": 32, "windows": 1, **given}
    assert prunus.evaluate(LLAMA, **where).windows == 1
    assert prunus.plan(LLAMA, method="magnitude", **given).coverage > 0.5
    with pytest.raises(InputError, match="got 'float64'"):
        prunus.prune(LLAMA, method="magnitude", dtype=torch.float64)
    with pytest.raises(InputError, match="Unknown device 'meta'"):
        prunus.load(LLAMA, device=torch.device("meta"))


def test_numbers_of_numpy_and_torch_and_paths_of_other_kinds(tmp_path):
    class Elsewhere:
        def __fspath__(self):
            return str(LLAMA)

    recipe = Recipe.of(
        method="ria", samples=np.int64(3), sparsity=torch.tensor(0.5), length=np.int32(24)
    )
    assert (recipe.samples, recipe.sparsity, recipe.length) == (3, 0.5, 24)
    assert type(recipe.samples) is int
    assert Recipe.of(method="ria", pattern=prunus.maths.patterns.NM(1, 4)).pattern == "1:4"
    prunus.prune(Elsewhere(), method="magnitude", output=str(tmp_path / "out"))
    assert read_report(tmp_path / "out").sparsity == 0.5


WRONG = {
    "model": lambda m: prunus.prune(123, method="ria"),
    "recipe": lambda m: prunus.prune(m, 5),
    "sparsity": lambda m: prunus.prune(m, method="ria", sparsity="half"),
    "sparsity as a bool": lambda m: prunus.prune(m, method="ria", sparsity=True),
    "pattern": lambda m: prunus.prune(m, method="ria", pattern=2),
    "samples": lambda m: prunus.prune(m, method="ria", samples="8"),
    "output": lambda m: prunus.prune(m, method="ria", output=5),
    "spill": lambda m: prunus.prune(m, method="ria", spill=True),
    "resume": lambda m: prunus.prune(m, method="ria", resume="no"),
    "team": lambda m: prunus.prune(m, method="ria", team=5),
    "tokenizer": lambda m: prunus.prune(m, method="ria", tokenizer="gpt2"),
    "trust": lambda m: prunus.prune(m, method="ria", trust_remote_code="no"),
    "settings": lambda m: prunus.prune(m, method="ria", settings=[1]),
    "device": lambda m: prunus.prune(m, method="ria", device=0),
    "plan": lambda m: prunus.plan(m, method="ria", output=5),
    "bits": lambda m: prunus.quantize(m, bits="4"),
    "group": lambda m: prunus.quantize(m, group="a"),
    "quantize's method": lambda m: prunus.quantize(m, method="ria"),
    "evaluate": lambda m: prunus.evaluate(5),
    "length": lambda m: prunus.evaluate(m, length=16.5),
    "windows": lambda m: prunus.evaluate(m, windows="a"),
    "scored": lambda m: prunus.evaluate(m, scored=5),
    "dtype": lambda m: prunus.evaluate(LLAMA, dtype=5),
    "load": lambda m: prunus.load(5),
    "load's device": lambda m: prunus.load(LLAMA, device=None),
    "sparse": lambda m: prunus.load(LLAMA, sparse=True),
    "verify": lambda m: prunus.verify(None),
    "verify's pattern": lambda m: prunus.verify(LLAMA, pattern=2),
    "bench": lambda m: prunus.bench(5),
    "plot": lambda m: prunus.plot(5, "a.png"),
    "simulate": lambda m: prunus.simulate(5),
    "write_gguf": lambda m: prunus.write_gguf(5, "a.gguf"),
}


@pytest.mark.parametrize("call", WRONG)
def test_an_argument_of_a_wrong_type_is_one_sentence(call):
    model, _ = load_tiny("llama")
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError) as raised:
        WRONG[call](model)
    assert "\n" not in str(raised.value)
    assert "got" in str(raised.value) or call == "quantize's method"
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_calls_keep_their_signatures():
    import inspect

    assert list(inspect.signature(prunus.prune).parameters)[:2] == ["model", "recipe"]
    assert prunus.evaluate.__doc__.startswith("Perplexity")
    assert isinstance(pathlib.Path(inspect.getsourcefile(prunus.load)), pathlib.Path)
    assert CliRunner().invoke(app, ["eval", "--help"]).exit_code == 0
