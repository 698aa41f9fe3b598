"""Orders of channels: the score that they keep, and how many weights each channel keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from markupsafe import Markup
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..layer import LayerReport
from ..report import PruningReport
from .charts import Line, line_chart
from .layers import Kinds
from .rendering import prose, render
from .skeleton import Section
from .words import percent

BINS = 25
LARGEST = 2**27  # weights of a layer that is looked at


def orders(report: PruningReport, folder: Path) -> Section:
    """Return the section on orders of channels; without any it is empty."""
    closed = [x for x in map(_closed, ([layer] for layer in report.layers)) if x is not None]
    if not closed:
        return Section("Order of channels", [])
    said = prose(
        "N:M removes the same number of weights from every group of consecutive channels, whatever "
        "they are worth. A good order puts important channels apart. The measure is the share of "
        "the way from the score that is kept in the stored order to the most that any mask with as "
        f"many weights in each row could keep: {percent(sum(closed) / len(closed))} in the mean."
    )
    drawn = Kinds.of(report.layers).heat_map(
        _closed,
        caption="Per cent of that way that the order goes, for every layer: the stronger the "
        "colour, the more it gains.",
        said=lambda x: f"{100 * x:.0f}".replace("-", "−"),
        hue="leaf",
        scale="per cent of the way",
    )
    return Section("Order of channels", [said, drawn, _degrees(report.layers, folder)])


def _closed(layers: Sequence[LayerReport]) -> float | None:
    found = [x.notes["score_gap_closed"] for x in layers if "score_gap_closed" in x.notes]
    return sum(found) / len(found) if found else None


def _degrees(layers: Sequence[LayerReport], folder: Path) -> Markup:
    """Draw the retained degrees in the block in the middle, read from the files."""
    blocks = sorted({layer.block for layer in layers})
    middle = blocks[len(blocks) // 2]
    chosen = [
        layer
        for layer in layers
        if layer.block == middle
        and layer.expert is None
        and re.fullmatch(r"\d+:\d+", layer.pattern)
        and layer.shape[0] * layer.shape[1] <= LARGEST
    ]
    charts = [
        line_chart(
            [Line(_stairs(degree_I))],
            caption=f"`{layer.kind}`",
            x="retained degree",
            y="channels",
            small=True,
        )
        for layer, degree_I in _read(chosen, folder)
    ]
    if not charts:
        return Markup()
    return render("degrees.html", charts=charts, block=middle)


def _read(layers: Sequence[LayerReport], folder: Path) -> Iterator[tuple[LayerReport, Tensor]]:
    """Yield the share of non-zero weights of every input channel (I,), of layers in the files."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                for layer in (x for x in layers if x.parameter in names):
                    weight = file.get_tensor(layer.parameter)
                    weight_OI = weight.T if layer.transposed else weight
                    if tuple(weight_OI.shape) == tuple(layer.shape):
                        yield layer, (weight_OI != 0).float().mean(0)
        except (OSError, SafetensorError):  # the page shows less; verify is for damaged files
            continue


def _stairs(degree_I: Tensor) -> list[tuple[float, float]]:
    """Return the outline of a histogram over 0 to 1."""
    counts = torch.histc(degree_I, bins=BINS, min=0, max=1).tolist()
    points = [(0.0, 0.0)]
    for i, count in enumerate(counts):
        points += [(i / BINS, count), ((i + 1) / BINS, count)]
    return [*points, (1.0, 0.0)]
