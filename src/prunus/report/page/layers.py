"""Layer by layer: what was removed, what that did to outputs, and the time it took."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ...base.words import a_few, number_of
from ..layer import LayerReport
from ..report import PruningReport
from ..shown import mean_error
from .charts import Line, line_chart
from .checkpoint import Checkpoint
from .rendering import beside, prose
from .skeleton import Section
from .tables import Cell, Hue, facts, heat_map, table
from .words import duration, percent, size

NARROWEST = 0.05  # range of a scale of sparsity, so that 50.0 and 50.1 look alike


@dataclass(frozen=True)
class Kinds:
    """Layers by block and kind.

    Attributes:
        blocks: indices of the blocks with pruned layers.
        names: kinds of layers, in the order of the report.
        layers: of each block and kind; several where there are experts.
    """

    blocks: list[int]
    names: list[str]
    layers: dict[tuple[int, str], list[LayerReport]]

    @classmethod
    def of(cls, layers: Sequence[LayerReport]) -> Kinds:
        """Sort them; two kinds whose last words are the same get the word before it too."""
        paths = {layer.name: _within_block(layer) for layer in layers}
        short: dict[str, set[str]] = {}
        for path in paths.values():
            short.setdefault(path.rpartition(".")[2], set()).add(path)
        found: dict[tuple[int, str], list[LayerReport]] = {}
        for layer in layers:
            path = paths[layer.name]
            last = path.rpartition(".")[2]
            name = last if len(short[last]) == 1 else ".".join(path.split(".")[-2:])
            found.setdefault((layer.block, name), []).append(layer)
        return cls(sorted({b for b, _ in found}), list(dict.fromkeys(n for _, n in found)), found)

    def heat_map(
        self,
        value: Callable[[Sequence[LayerReport]], float | None],
        *,
        caption: str,
        said: Callable[[float], str],
        hue: Hue = "plum",
        scale: str = "",
        narrowest: float = 0.0,
    ) -> Markup:
        """Return a heat map of a value of the layers, without kinds that have it nowhere."""
        grid = {key: value(layers) for key, layers in self.layers.items()}
        names = [n for n in self.names if any(grid.get((b, n)) is not None for b in self.blocks)]
        known = [x for x in grid.values() if x is not None]
        if not known:
            return Markup()
        low, high = min(known), max(known)
        return heat_map(
            [str(block) for block in self.blocks],
            names,
            [[grid.get((block, name)) for name in names] for block in self.blocks],
            caption=caption,
            said=said,
            hue=hue,
            scale=scale,
            ends=(min(low, high - narrowest), high),
            corner="block",
        )

    def of_kind(self, name: str) -> list[LayerReport]:
        """Return the layers of a kind, of all blocks."""
        return [x for block in self.blocks for x in self.layers.get((block, name), [])]


def _within_block(layer: LayerReport) -> str:
    """Return the layer's path below its block, without numbers of experts."""
    path = re.sub(r"^.*?\.\d+\.", "", layer.parameter.removesuffix(".weight"))
    return re.sub(r"\.\d+(?=\.|$)", "", path)


def sparsity_of(layers: Sequence[LayerReport]) -> float:
    """Return zeros over weights."""
    weights = [layer.shape[0] * layer.shape[1] for layer in layers]
    zeros = sum(layer.sparsity * n for layer, n in zip(layers, weights, strict=True))
    return zeros / sum(weights)


def sparsity(report: PruningReport) -> Section:
    """Return the section on zeros, by block and kind."""
    kinds = Kinds.of(report.layers)
    shares = {percent(layer.sparsity) for layer in report.layers}
    if len(shares) == 1:
        said = f"Every one of the {number_of(len(report.layers), 'layer')} is {shares.pop()} zeros."
        return Section("Sparsity", [prose(said), by_kind(kinds)])
    drawn = kinds.heat_map(
        sparsity_of,
        caption="Per cent of zeros in every layer: the stronger the colour, the more was removed.",
        said=lambda x: f"{100 * x:.1f}",
        scale="per cent of zeros",
        narrowest=NARROWEST,
    )
    return Section("Sparsity", [beside(drawn, by_kind(kinds))])


def by_kind(kinds: Kinds) -> Markup:
    """Return a table with a row for each kind of layer."""
    rows: list[list[str | Cell]] = []
    for name in kinds.names:
        layers = kinds.of_kind(name)
        patterns = list(dict.fromkeys(layer.pattern for layer in layers))
        shape = "{:,}\u00a0×\u00a0{:,}".format(*layers[0].shape)
        said = a_few(patterns)
        rows.append([f"`{name}`", f"{len(layers):,}", shape, said, percent(sparsity_of(layers))])
    columns = ("kind", "layers", "outputs × inputs", "pattern", "zeros")
    return table(columns, rows, caption="By kind of layer, over all blocks.")


def errors(report: PruningReport) -> Section:
    """Return the section on the error of outputs, before and after the update."""
    kinds = Kinds.of(report.layers)
    mean = mean_error(report.layers)
    if mean is None:
        return Section("Error of each layer", [])
    said = prose(
        "How far a layer's output moved on a sample of the calibration tokens, as a share of its "
        "size: ‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖. It belongs to one layer alone, and is not the model's error."
    )
    drawn = kinds.heat_map(
        mean_error,
        caption="Relative error of the output of every layer: the stronger the colour, the further "
        "it moved.",
        said=lambda x: f"{x:.3f}",
        hue="ochre",
        scale="relative error",
    )
    right = Markup("<div>{}{}</div>").format(_update(report), _errors_by_kind(kinds))
    return Section("Error of each layer", [said, beside(drawn, right)])


def _update(report: PruningReport) -> Markup:
    """Return what the update changed, over depth; without an update it is empty."""
    updated = [x for x in report.layers if x.updated and x.error_before_update is not None]
    depth: dict[int, list[LayerReport]] = {}
    for layer in updated:
        depth.setdefault(layer.block, []).append(layer)
    pairs = {block: (_before(same), mean_error(same)) for block, same in sorted(depth.items())}
    return line_chart(
        [
            Line([(b, x[i] or 0.0) for b, x in pairs.items()], label, tone, dots=True)
            for i, label, tone in ((0, "before", "grey"), (1, "after", "ochre"))
        ],
        caption="Before and after the weights that stay got new values: means over a block's "
        "layers. The gap between the curves is what the update gained.",
        x="block",
        y="relative error",
    )


def _errors_by_kind(kinds: Kinds) -> Markup:
    """Return a table with a row for each kind: means, what an update gained, the highest."""
    rows: list[list[str | Cell]] = []
    updated = any(
        x.updated and x.error_before_update for same in kinds.layers.values() for x in same
    )
    for name in kinds.names:
        layers = kinds.of_kind(name)
        known = [x for x in layers if x.relative_output_error is not None]
        if not known:
            continue
        worst = max(known, key=lambda x: x.relative_output_error or 0.0)
        mean, before = mean_error(known) or 0.0, _before(known)
        row: list[str | Cell] = [f"`{name}`"]
        if updated:
            gain = percent(1 - mean / before) if before else "–"
            row += ["–" if before is None else f"{before:.3f}", f"{mean:.3f}", gain]
        else:
            row += [f"{mean:.3f}"]
        rows.append([*row, f"{worst.relative_output_error:.3f}", str(worst.block)])
    columns = ("before", "after", "less") if updated else ("error",)
    return table(
        ("kind", *columns, "highest", "in block"),
        rows,
        caption="Means by kind of layer, and the highest.",
        legend=f"{_score_kept(kinds)} {_certificate(kinds)}".strip(),
    )


def _score_kept(kinds: Kinds) -> str:
    """Say which share of the method's scores the masks keep, where it scores each weight once."""
    found = _noted(kinds, "score_kept")
    if not found:
        return ""
    return f"The masks keep {percent(sum(found) / len(found))} of a layer's scores in the mean."


def _noted(kinds: Kinds, name: str) -> list[float]:
    """Return a number that the notes of some layers hold, of each layer that has it."""
    notes = [layer.notes.get(name) for layers in kinds.layers.values() for layer in layers]
    return [note for note in notes if isinstance(note, float)]


def _before(layers: Sequence[LayerReport]) -> float | None:
    found = [x.error_before_update for x in layers if x.error_before_update is not None]
    return sum(found) / len(found) if found else None


def _certificate(kinds: Kinds) -> str:
    """Say how far the least squares are from their optimum, where that was certified."""
    gaps = _noted(kinds, "gap")
    if not gaps:
        return ""
    return (
        f"Least squares: the loss is certified to be within {max(gaps):.1e} of its optimum, "
        f"relatively, in each of {number_of(len(gaps), 'layer')}."
    )


def time_and_size(checkpoint: Checkpoint) -> Section:
    """Return the section on time, and on the size of what was written."""
    report = checkpoint.report
    spent = sum(layer.seconds for layer in report.layers)
    pairs = [("Whole run", f"{duration(report.seconds)}, without loading and saving")]
    if report.search is not None:
        pairs.append(("Search for shares", duration(report.search["seconds"])))
    if report.learning:
        learned = sum(float(curve.get("seconds", 0)) for curve in report.learning)
        pairs.append(("Learning the shares", duration(learned)))
    if report.reconstructed:
        learned = sum(float(part["seconds"]) for part in report.reconstructed)
        pairs.append(("Reconstructing blocks", duration(learned)))
    pairs.append(("Scores, masks, values", duration(spent)))
    pairs.append(("Memory", "not measured; `prunus plan` states what such a run needs"))
    if checkpoint.bytes:
        pairs.append(("Files of weights", size(checkpoint.bytes)))
    return Section("Time and size", [facts(pairs)])
