"""Pictures of a run; they need matplotlib (``pip install prunus[report]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.errors import InputError
from .layer import LayerReport

FEW = 8  # curves that a legend names one by one


def retained_degree(
    masks: Mapping[str, Mapping[str, Tensor]], path: str | Path, title: str = ""
) -> None:
    """Draw how many of the weights that read an input channel are kept, for each channel.

    N:M removes the same share of every group of channels, whatever they are worth. A good order
    brings its curve towards that of an unstructured mask. (Zhang et al. 2024, "Plug-and-Play",
    figure 5.)

    Args:
        masks: for each layer, in one panel, the masks (O, I) by name, in stored order or another.
        path: file of the picture, such as ``degree.png``.
        title: title above all panels.
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


def over_depth(layers: Sequence[LayerReport], what: str, path: str | Path, title: str = "") -> None:
    """Draw a quantity of every layer over depth, a line for each role; dotted: the weighted mean.

    Args:
        layers: layers of a report.
        what: ``"sparsity"``, or ``"relative_output_error"`` where the run measured it.
        path: file of the picture, such as ``sparsity.png``.
        title: title of the picture.

    Raises:
        InputError: no layer has that number.
    """
    from matplotlib.figure import Figure

    known = [layer for layer in layers if getattr(layer, what) is not None]
    if not known:
        raise InputError(
            "This run read no activations, so it knows no output error. Show its sparsity."
        )
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    panel = figure.subplots()
    for role in dict.fromkeys(layer.role for layer in known):
        chosen = [layer for layer in known if layer.role == role]
        depth, found = [x.block for x in chosen], [getattr(x, what) for x in chosen]
        panel.plot(depth, found, marker="o", markersize=3, linewidth=1.2, label=role)
    weights = [layer.shape[0] * layer.shape[1] for layer in known]
    total = sum(getattr(x, what) * n for x, n in zip(known, weights, strict=True))
    panel.axhline(total / sum(weights), color="grey", linewidth=0.8, linestyle=":")
    panel.set(xlabel="block", ylabel=what.replace("_", " "), title=title)
    panel.locator_params(axis="x", integer=True)
    panel.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(str(path), dpi=150)


def learned_points(curve: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return where each mean of the loss ends, in steps, and that mean."""
    losses, steps = curve["loss"], curve["steps"]
    return [(min((i + 1) * steps / len(losses), steps), x) for i, x in enumerate(losses)]


def learning(curves: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw how the loss of every unit fell while its shares were learned; 1: the uniform mask's.

    Args:
        curves: ``learning`` of a report.
        path: file of the picture, such as ``learning.png``.
        title: title of the picture.

    Raises:
        InputError: nothing was learned.
    """
    if not curves:
        raise InputError(
            "Nothing was learned in this run; --method besa or --allocation besa learns."
        )
    named = [(f"block {curve['blocks'][0]}", learned_points(curve)) for curve in curves]
    _over_steps(named, "loss, of the uniform mask's", path, title)


def held_out_points(part: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the held-out loss of a reconstruction before the first step and after each pass."""
    held, steps = part["held"], part["steps"]
    return [(i * steps / max(len(held) - 1, 1), x) for i, x in enumerate(held)]


def reconstruction(parts: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw how the held-out loss of every block fell; 1: that of the block as it was pruned.

    Args:
        parts: ``reconstructed`` of a report.
        path: file of the picture, such as ``reconstruction.png``.
        title: title of the picture.

    Raises:
        InputError: nothing was reconstructed.
    """
    if not parts:
        raise InputError("Nothing was reconstructed in this run; --reconstruct block does that.")
    named = [(part_name(part), held_out_points(part)) for part in parts]
    _over_steps(named, "held-out loss, of the pruned block's", path, title)


def part_name(part: Mapping[str, Any]) -> str:
    """Name a block that was reconstructed, a part of it, or several that learned together."""
    half = "" if part["part"] == "block" else f", {part['part']}"
    first, last = part.get("blocks", [part["block"]])[0], part["block"]
    return f"block {last}{half}" if first == last else f"blocks {first} to {last}"


def _over_steps(
    named: Sequence[tuple[str, list[tuple[float, float]]]], y: str, path: str | Path, title: str
) -> None:
    """Draw a curve for each name; of many, the legend has the first and the last."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    panel = figure.subplots()
    for number, (name, points) in enumerate(named):
        depth = number / max(len(named) - 1, 1)
        panel.plot(
            [x for x, _ in points],
            [y for _, y in points],
            marker="o",
            markersize=2.5,
            color=colormaps["viridis"](0.9 * depth),
            label=name if len(named) <= FEW or number in (0, len(named) - 1) else None,
        )
    panel.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    panel.set(xlabel="step", ylabel=y, ylim=(0, None), title=title)
    panel.legend(frameon=False, fontsize=9)
    figure.savefig(str(path), dpi=150)


def searched(search: Mapping[str, Any] | None, path: str | Path, title: str = "") -> None:
    """Draw how candidates were judged in a search for shares; dotted: equal shares.

    Args:
        search: ``search`` of a report.
        path: file of the picture, such as ``search.png``.
        title: title of the picture.

    Raises:
        InputError: nothing was searched.
    """
    from matplotlib.figure import Figure

    if search is None:
        raise InputError(
            "There was no search in this run; --allocation slope or --allocation evolve searches."
        )
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    panel = figure.subplots()
    panel.plot(search["steps"], search["loss"], marker="o", markersize=3, linewidth=1.4)
    equal = search["uniform"]
    panel.axhline(equal, color="grey", linewidth=0.8, linestyle=":", label="equal shares")
    panel.set(xlabel=search["over"], ylabel="KL from the dense model, nats", title=title)
    panel.legend(frameon=False, fontsize=9)
    figure.savefig(str(path), dpi=150)
