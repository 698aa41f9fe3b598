"""Pictures: that they say what the masks do, and that matplotlib is asked for only by them."""

import sys

import pytest
import torch
from typer.testing import CliRunner

import prunus
from helpers.models import load_tiny
from prunus.base.errors import InputError
from prunus.cli.main import app

pytest.importorskip("matplotlib")


def test_the_histogram_counts_channels_by_the_share_that_stays(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from prunus.report.plots import retained_degree

    seen = []
    monkeypatch.setattr(Axes, "hist", lambda self, x, **kwargs: seen.append((x, kwargs["label"])))
    monkeypatch.setattr(Axes, "legend", lambda self, **kwargs: None)
    mask_OI = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    retained_degree({"layer": {"kept": mask_OI, "none": ~mask_OI & mask_OI}}, tmp_path / "x.png")
    assert seen == [([1.0, 0.5, 0.0], "kept"), ([0.0, 0.0, 0.0], "none")]
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def smaller():
    from prunus.report.units import BlockChange, UnitsReport

    far = [[0, 0.1, 0.5, 0.5], [0.1, 0, 0.5, 0.5], [0.5, 0.5, 0, 0.3], [0.5, 0.5, 0.3, 0]]
    block = BlockChange(1, (4, 2), (2, 1), (96, 48), (1000, 500), [1], far)
    dense = BlockChange(0, None, None, None, (1000, 1000))
    return UnitsReport((3000, 2500), 1000, 500, (900, 600), True, [dense, block])


def test_heads_that_attend_alike_are_joined_and_those_that_went_are_hollow(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from prunus.report.unit_plots import heads_graph, removed_share

    edges, faces, curves = [], [], []
    plot, scatter, stairs = Axes.plot, Axes.scatter, Axes.stairs

    def noted(seen, own, what):
        def method(self, *args, **kwargs):
            seen.append(what(args, kwargs))
            return own(self, *args, **kwargs)

        return method

    monkeypatch.setattr(Axes, "plot", noted(edges, plot, lambda args, kwargs: args))
    monkeypatch.setattr(Axes, "scatter", noted(faces, scatter, lambda args, k: k["color"]))
    heads_graph(smaller(), tmp_path / "heads.png", threshold=0.2)
    assert len(edges) == 1
    assert faces == ["white", "white", "tab:blue", "tab:blue"]
    assert (tmp_path / "heads.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="no graph"):
        heads_graph(smaller(), tmp_path / "none.png", threshold=0.2, blocks=[0])
    monkeypatch.setattr(Axes, "stairs", noted(curves, stairs, lambda args, kwargs: args))
    removed_share({"goa": smaller()}, tmp_path / "removed.png")
    assert curves == [([0.0, 0.5], [-0.5, 0.5, 1.5])]


def test_sparsity_is_drawn_by_role_over_depth(tmp_path, monkeypatch, tiny_llama):
    from matplotlib.axes import Axes

    from prunus.report.plots import over_depth

    seen = {}
    plot = Axes.plot

    def note(self, x, y, **kwargs):
        seen[kwargs["label"]] = (x, y)
        return plot(self, x, y, **kwargs)

    monkeypatch.setattr(Axes, "plot", note)
    model, _ = tiny_llama
    layers = prunus.prune(model, method="ri").report.layers
    over_depth(layers, "sparsity", tmp_path / "x.png")
    assert list(seen) == ["q", "k", "v", "o", "gate", "up", "down"]
    down = [layer.sparsity for layer in layers if layer.role == "down"]
    assert seen["down"] == ([0, 1, 2], down)
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_a_search_is_drawn_by_step(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from prunus.report.plots import searched

    drawn, own = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *a, **k: drawn.append(a[1:]) or own(*a, **k))
    search = {"over": "generation", "steps": [0.0, 1.0], "loss": [0.5, 0.4], "uniform": 0.6}
    searched(search, tmp_path / "x.png")
    assert drawn == [([0.0, 1.0], [0.5, 0.4])]
    with pytest.raises(InputError, match="no search in this run; --allocation slope"):
        searched(None, tmp_path / "y.png")


def test_learning_is_drawn_by_step(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from prunus.report.plots import learning

    seen = []
    plot = Axes.plot

    def note(self, x, y, **kwargs):
        seen.append((x, y))
        return plot(self, x, y, **kwargs)

    monkeypatch.setattr(Axes, "plot", note)
    learning([{"blocks": [0], "steps": 40, "loss": [1.0, 0.8, 0.7]}], tmp_path / "x.png")
    assert seen == [([40 / 3, 80 / 3, 40], [1.0, 0.8, 0.7])]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The reports of four runs, as checkpoints have them."""
    folder = tmp_path_factory.mktemp("reports")
    few = {"samples": 4, "length": 32}
    learned = {"allocation": "besa", "settings": {"allocation.steps": 4}}
    runs = {
        "single": {"method": "wanda", **few},
        "data-free": {"method": "ri"},
        "learned": {"method": "wanda", **learned, **few},
        "goa": {"method": "goa", **few},
        "l1": {"method": "l1"},
    }
    for name, fields in runs.items():
        model, tokenizer = load_tiny("llama")
        report = prunus.prune(model, tokenizer=tokenizer, **fields).report
        (folder / name).mkdir()
        (folder / name / "pruning_report.json").write_text(report.to_json())
    return folder


@pytest.mark.parametrize(
    ("names", "show"),
    [
        (["single"], None),
        (["single"], "error"),
        (["learned"], "learning"),
        (["goa", "l1"], None),
        (["goa"], "error"),
        (["goa"], "heads"),
    ],
)
def test_plot_draws_what_a_report_says(names, show, written, tmp_path):
    options = [] if show is None else ["--show", show]
    folders = [str(written / name) for name in names]
    for ending, first in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        out = tmp_path / f"x{ending}"
        run = CliRunner().invoke(app, ["plot", *folders, "--output", str(out), *options])
        assert run.exit_code == 0, run.output
        assert out.read_bytes()[:4] == first


@pytest.mark.parametrize(
    ("names", "output", "options", "message"),
    [
        (["single"], "x.png", ["--show", "heads"], "lost single weights"),
        (["goa"], "x.png", ["--show", "learning"], "lost whole heads and neurons"),
        (["single"], "x.png", ["--show", "learning"], "error: Nothing was learned"),
        (["data-free"], "x.png", ["--show", "error"], "knows no output error"),
        (["l1"], "x.png", ["--show", "heads"], "no graph"),
        (["single"], "x.png", ["--show", "sparseness"], "Unknown picture 'sparseness'"),
        (["single", "learned"], "x.png", [], "one checkpoint"),
        (["goa", "goa"], "x.png", [], "same name"),
        (["goa", "single"], "x.png", [], "lost single weights"),
        (["single"], "x.docx", [], "cannot be drawn"),
        (["nothing"], "x.png", [], "does not exist"),
        ([""], "x.png", [], "has no pruning_report.json"),
        (["single"], "there.png", [], "exists"),
        (["single"], "noending", [], "no ending"),
        (["goa"], "x.png", ["--threshold", "0.2"], "is for --show heads"),
        (["goa"], "x.png", ["--show", "heads", "--threshold", "nan"], "threshold is nan"),
    ],
)
def test_plot_says_what_cannot_be_drawn(names, output, options, message, written, tmp_path):
    (tmp_path / "there.png").touch()
    folders = [str(written / name) for name in names]
    run = CliRunner().invoke(app, ["plot", *folders, "--output", str(tmp_path / output), *options])
    assert run.exit_code == 2
    assert message in run.output
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]


def test_without_matplotlib_it_says_what_to_install(written, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install"):
        prunus.plot(written / "single", tmp_path / "x.png")
