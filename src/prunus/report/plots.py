"""Pictures of a run. They need matplotlib: ``pip install prunus[report]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..types import LayerReport


def retained_degree(
    masks: Mapping[str, Mapping[str, Tensor]], path: str | Path, title: str = ""
) -> None:
    """How many of the weights that read an input channel stay, over all channels of a layer.

    N:M takes the same share of every group of channels, whatever they are worth. A good order
    brings its curve towards that of an unstructured mask. (Zhang et al. 2024, "Plug-and-Play",
    figure 5.)

    Args:
        masks: for each layer, in one panel, the masks (O, I) by name, in stored order or another.
        path: the picture, such as ``degree.png``.
        title: above all panels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(masks), 3.4), layout="constrained")
    panels = figure.subplots(1, len(masks), squeeze=False)[0]
    for panel, (layer, by_name) in zip(panels, masks.items(), strict=True):
        for name, mask_OI in by_name.items():
            degree_I = mask_OI.float().mean(0).tolist()
            bins = [i / 50 for i in range(51)]
            panel.hist(degree_I, bins=bins, histtype="step", linewidth=1.6, label=name)
        panel.set(title=layer, xlabel="retained degree of an input channel", xlim=(0, 1))
        panel.title.set_fontsize(10)
    panels[0].set_ylabel("input channels")
    panels[0].legend(frameon=False, fontsize=9)
    figure.suptitle(title)
    figure.savefig(str(path), dpi=150)


def sparsity_found(layers: Sequence[LayerReport], path: str | Path, title: str = "") -> None:
    """What went of every layer: over the depth, one line for each role.

    Args:
        layers: of a report.
        path: the picture, such as ``sparsity.png``.
        title: above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    panel = figure.subplots()
    for role in dict.fromkeys(layer.role for layer in layers):
        chosen = [layer for layer in layers if layer.role == role]
        depth, found = [x.block for x in chosen], [x.sparsity for x in chosen]
        panel.plot(depth, found, marker="o", markersize=3, linewidth=1.2, label=role)
    weights = [layer.shape[0] * layer.shape[1] for layer in layers]
    mean = sum(x.sparsity * n for x, n in zip(layers, weights, strict=True)) / sum(weights)
    panel.axhline(mean, color="grey", linewidth=0.8, linestyle=":")
    panel.set(xlabel="block", ylabel="sparsity", title=title)
    panel.locator_params(axis="x", integer=True)
    panel.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(str(path), dpi=150)
