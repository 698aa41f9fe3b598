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
