"""The top of the page: what was done, in words and in a few numbers, and by what protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from markupsafe import Markup

from ...base.words import number_of
from ...text import Protocol
from ..card import ORDERS
from ..from_source import source_section
from ..naming import title
from ..report import PruningReport
from ..shown import mean_error
from ..units import UnitsReport
from . import words
from .checkpoint import Checkpoint
from .rendering import inline, link
from .skeleton import Number, Section
from .tables import facts

UPDATES = {
    "LeastSquares(": "the weights that stay have the values with the least error on the "
    "calibration text",
    "SparseGPT": "the weights that stay were changed by SparseGPT's sweep",
}
MOST = 5  # numbers at the top


def lead(report: PruningReport) -> Markup:
    """Return the sentences below the title."""
    by = Markup("<code>{}</code>").format(report.method)
    if report.paper:
        by = Markup("{} ({})").format(by, link(report.paper, report.url))
    units = report.structured
    if units is not None:
        text = Markup("Whole heads and neurons were removed, chosen by {}. What remains is a ")
        text += Markup("smaller dense model. Nothing was retrained.")
    elif report.only_quantised:
        text = Markup("The weights were put on an integer grid by {}. Nothing was retrained.")
    else:
        layers = number_of(len(report.layers), "linear layer")
        text = Markup("{} of the weights in {} are exactly zero, chosen by ").format(
            words.percent(report.sparsity), layers
        ) + Markup("{}. Nothing was retrained.")
    return text.format(by)


def numbers(checkpoint: Checkpoint) -> list[Number]:
    """Return the four or five numbers that matter most."""
    report = checkpoint.report
    units = report.structured
    found = list(_of_weights(report) if units is None else _of_units(units))
    error = mean_error(report.layers)
    if error is not None:
        before = mean_before(report)
        note = f"{before:.3f} before the update" if before else "of its size, on calibration text"
        found.append(Number(f"{error:.3f}", "mean error of a layer's output", note))
    found[1:1] = [
        Number(f"{x.value:,.2f}", f"{x.quantity} of {x.name}", x.text)
        for x in checkpoint.measured.texts[:2]
    ]
    found.append(Number(words.duration(report.seconds), "to prune", "without loading and saving"))
    return found[:MOST]


def _of_weights(report: PruningReport) -> Iterator[Number]:
    covered = report.coverage
    if report.grid:
        grid = f"groups of {report.grid.group}" if report.grid.group else "one grid for each row"
        yield Number(f"{report.grid.bits} bits", "for each weight that is kept", grid)
    if not report.only_quantised:
        asked = f"{words.percent(report.requested)} asked for"
        yield Number(
            words.percent(report.sparsity), "of the weights in these layers are zero", asked
        )
    share = f"{words.millions(covered.pruned_weights)} of {words.millions(covered.parameters)}"
    yield Number(words.percent(covered.share), "of all parameters are in these layers", share)


def _of_units(units: UnitsReport) -> Iterator[Number]:
    before, after = units.parameters
    became = f"{words.millions(before)} became {words.millions(after)}"
    yield Number(words.percent(units.share_of_model), "of all parameters were removed", became)
    for name, pairs in (
        ("heads", [b.heads for b in units.blocks]),
        ("neurons", [b.neurons for b in units.blocks]),
    ):
        were, gone = (sum(_of_pair(pair)[i] for pair in pairs) for i in (0, 1))
        if were:
            yield Number(f"{gone:,}", f"{name} were removed", f"of {were:,}")
    speed = units.predicted_speedup
    yield Number(f"{speed:.2f} ×", "predicted speed", "by the multiply-adds of a token")


def _of_pair(pair: tuple[int, int] | None) -> tuple[int, int]:
    return (0, 0) if pair is None else (pair[0], pair[0] - pair[1])


def mean_before(report: PruningReport) -> float | None:
    """Return the mean error before the update, over layers that have both; None: no update."""
    changed = [
        x.error_before_update
        for x in report.layers
        if x.error_before_update is not None and x.updated
    ]
    return sum(changed) / len(changed) if changed else None


def what_was_done(checkpoint: Checkpoint) -> Section:
    """Return the section that says it in words."""
    report = checkpoint.report
    pairs = [("Model", _model(checkpoint)), *_choices(checkpoint)]
    pairs.append(("Covers", f"{report.coverage}"))
    pairs += [("From the source", text) for text in source_section(report.source)]
    for name, values in report.different.items():
        said = " then ".join(f"`{value}`" for value in values)
        pairs.append(("Changed on the way", f"`{name}` was {said}, as the run was resumed"))
    pairs.append(("Its parts", f"`{report.pruner}`"))
    return Section("What was done", [facts(pairs)])


def _model(checkpoint: Checkpoint) -> str:
    config, report = checkpoint.config, checkpoint.report
    named = config.get("architectures")
    kind = named[0] if isinstance(named, list) and named else config.get("model_type")
    blocks = len({layer.block for layer in report.layers})
    parts = [title(report.model), *([f"`{kind}`"] if kind else [])]
    parts.append(f"{words.millions(report.coverage.parameters)} parameters")
    return ", ".join([*parts, f"{number_of(blocks, 'block')} pruned"])


def _choices(checkpoint: Checkpoint) -> Iterator[tuple[str, str | Markup]]:
    report, recipe = checkpoint.report, checkpoint.choices
    method = Markup("<code>{}</code>").format(report.method)
    if report.paper:
        method = Markup("{}: {}").format(method, link(report.paper, report.url))
    yield "Method", method
    kinds = Counter(layer.pattern for layer in report.layers)
    for name, layers in kinds.items():
        where = "" if len(kinds) == 1 else f", in {number_of(layers, 'layer')}"
        yield "Pattern", inline(f"`{name}`{where}: {words.pattern(name)}")
    yield ("Share of each layer" if report.structured is None else "Removed"), _removed(report)
    if recipe.get("refine") not in (None, "none"):
        yield "Refinement", f"`{recipe['refine']}`: masks were improved after they were chosen"
    if report.structured is None:
        yield "Values", _values(report)
        if report.reconstruction is not None:
            yield "Reconstruction", f"`{report.reconstruction}`"
    elif any({"repair", "recovery"} & layer.notes.keys() for layer in report.layers):
        yield "Recovery", "the layers behind what went were solved anew, on text"
    orders = {layer.notes.get("order") for layer in report.layers}
    yield from (("Order of channels", text) for kind, text in ORDERS.items() if kind in orders)
    if report.grid:
        stored = "packed integers" if report.packed else "the numbers that the integers stand for"
        yield "Integer grid", f"{report.grid}; stored as {stored}"
    if report.structured is not None and report.structured.bound is not None:
        yield "Heads", report.structured.bound
    if recipe.get("mlp_only"):
        yield "Left dense", "attention, as asked for"
    if recipe.get("skip_blocks"):
        yield "Left dense", f"blocks {recipe['skip_blocks']}, as asked for"


def _removed(report: PruningReport) -> str:
    if report.structured is not None:
        return report.structured.shares
    if report.allocation == "Uniform()":
        return "the same for every layer"
    return f"`{report.allocation}`"


def _values(report: PruningReport) -> str:
    if not any(layer.updated for layer in report.layers):
        return "the weights that stay have their dense values"
    said = [text for name, text in UPDATES.items() if name in report.pruner]
    return said[0] if said else "the weights that stay have new values"


def protocol(checkpoint: Checkpoint) -> Section:
    """Return the section on the text, the seed, the dtype and the versions."""
    report, recipe = checkpoint.report, checkpoint.choices
    pairs: list[tuple[str, str]] = []
    if report.protocol is None:
        pairs.append(("Calibration text", "none: the method looks at the weights alone"))
    else:
        pairs += _text(report.protocol)
    if report.recovery_protocol is not None:
        pairs.append(("Recovery text", words.without_folders(str(report.recovery_protocol))))
    dtype = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    dtype = str(dtype or recipe.get("dtype") or "")
    if dtype:
        pairs.append(("Number format", f"`{dtype}`"))
    if recipe.get("device") not in (None, "auto"):
        pairs.append(("Device", f"`{recipe['device']}`"))
    if report.processes > 1:
        pairs.append(("Processes", str(report.processes)))
    pairs.append(("Versions", ", ".join(f"{k} {v}" for k, v in report.versions.items())))
    return Section("Protocol", [facts(pairs)])


def _text(text: Protocol) -> Iterator[tuple[str, str]]:
    if text.parts or text.answers is not None:
        yield from _of_answers(text)
        return
    own = ": the model wrote the text itself" if text.source == "self" else ""
    yield "Calibration text", words.without_folders(text.source) + own
    windows = number_of(text.samples, "window")
    yield "Length", f"{windows} of {text.length:,} tokens, {text.samples * text.length:,} in all"
    if text.documents:
        joined = ", run together since none is longer than a window" if text.concatenated else ""
        yield "Documents", f"{text.documents_used:,} of {text.documents:,}{joined}"
    if text.distinct < 1:
        yield "Distinct tokens", f"{text.distinct:.0%}; windows overlap"
    if text.split or text.field:
        names = {"split": text.split, "field": text.field}
        yield "Part", ", ".join(f"{name} `{value}`" for name, value in names.items() if value)
    yield "Seed", str(text.seed)
    first = {"auto": "as the tokenizer puts it", "yes": "in every window", "no": "in no window"}
    yield "Beginning-of-text token", first.get(text.bos, text.bos)
    yield "SHA-256 of the token ids", f"`{text.sha256}`"


def _of_answers(text: Protocol) -> Iterator[tuple[str, str]]:
    """Return the rows of several sources, or of prompts that the model answered."""
    for part in text.parts or (text,):
        count = number_of(part.samples, "sample")
        how = f": {part.answers}" if part.answers is not None else f" of {part.length:,} tokens"
        split = f", split `{part.split}`" if part.split else ""
        name = words.without_folders(part.source)
        yield "Calibration text", f"{name}: {count}{how}{split}; SHA-256 `{part.sha256}`"
    if text.share:
        yield "Weight of answers", f"{text.share:g} of that of all tokens"
    yield "Seed", str(text.seed)
    if text.parts:
        yield "SHA-256 of all samples", f"`{text.sha256}`"
