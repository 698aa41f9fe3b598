"""Pictures: that they say what the masks do, and that matplotlib is asked for only by them."""

import sys

import pytest
import torch

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
    from prunus.report.structured_report import BlockWidths, StructuredReport

    far = [[0, 0.1, 0.5, 0.5], [0.1, 0, 0.5, 0.5], [0.5, 0.5, 0, 0.3], [0.5, 0.5, 0.3, 0]]
    block = BlockWidths(1, (4, 2), (2, 1), (96, 48), (1000, 500), [1], far)
    dense = BlockWidths(0, None, None, None, (1000, 1000))
    return StructuredReport((3000, 2500), 1000, 500, (900, 600), True, [dense, block])


def test_heads_that_attend_alike_are_joined_and_those_that_went_are_hollow(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from prunus.errors import InputError
    from prunus.report.structured_plots import heads_graph, removed_share

    edges, faces, curves = [], [], []
    plot, scatter, step = Axes.plot, Axes.scatter, Axes.step

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
    monkeypatch.setattr(Axes, "step", noted(curves, step, lambda args, kwargs: args[1]))
    removed_share({"goa": smaller()}, tmp_path / "removed.png")
    assert curves == [[0.0, 0.5]]


def test_sparsity_is_drawn_by_role_over_depth(tmp_path, monkeypatch, tiny_llama):
    from matplotlib.axes import Axes

    import prunus
    from prunus.report.plots import sparsity_found

    seen = {}
    plot = Axes.plot

    def note(self, x, y, **kwargs):
        seen[kwargs["label"]] = (x, y)
        return plot(self, x, y, **kwargs)

    monkeypatch.setattr(Axes, "plot", note)
    model, _ = tiny_llama
    layers = prunus.prune(model, method="ri").report.layers
    sparsity_found(layers, tmp_path / "x.png")
    assert list(seen) == ["q", "k", "v", "o", "gate", "up", "down"]
    down = [layer.sparsity for layer in layers if layer.role == "down"]
    assert seen["down"] == ([0, 1, 2], down)
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_line_does_not_need_it():
    import subprocess

    code = "import sys, prunus.cli.main, prunus.api; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
