"""README.md beside a checkpoint: the facts of the run, how to load the model, the exact recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from huggingface_hub import ModelCardData

from ..base.words import number_of
from .experts import COLUMNS as EXPERTS
from .experts import ExpertTokens
from .from_source import source_section
from .layer import LayerReport
from .naming import base_model, title
from .report import PruningReport
from .shown import COLUMNS as LAYERS
from .shown import by_kind
from .units import COLUMNS as BLOCKS
from .units import UnitsReport

LOADS = """```python
from transformers import {auto}
model = {auto}.from_pretrained("this folder")
```"""
LOADS_BY_WIDTHS = """Its blocks have widths (or a bias) that no config of its family can express,
such as different ones: **plain transformers cannot load it** and stops at the first shape that
differs. `widths.json` has the widths, and prunus puts the model together:

```python
import prunus
model = prunus.load("this folder")
```"""
ORDERS = {
    "free": "The pattern holds in an order of the inputs that each layer has for itself. The "
    "weights as stored do not have it: no hardware for N:M sparsity runs this checkpoint. "
    "`channel_orders.json` lists the orders, by which `prunus verify` checks the pattern.",
    "gather": "Where layers read the residual stream, the pattern holds in an order of the inputs "
    "that `channel_orders.json` lists. `prunus.load` puts those weights into that order and an "
    "index in front of them; the weights as stored are right without it, and not N:M.",
    "fold": "Channels are in another order than in the base model, one in which the pattern keeps "
    "more. That order is folded into all weights that share it, so the model computes what it "
    "would compute in the old order; `channel_orders.json` lists it.",
}

ALONG_OUTPUTS = (
    "N:M along their outputs. The hardware for N:M sparsity skips zeros along the inputs, over "
    "which a product sums: it multiplies these layers as dense ones."
)


def model_card(
    report: PruningReport,
    recipe_yaml: str,
    stock: bool = True,
    auto: str = "AutoModelForCausalLM",
) -> str:
    """Return the text of the card.

    Args:
        report: the facts of the run.
        recipe_yaml: the recipe that repeats it.
        stock: whether a config of the family expresses its widths, so that plain transformers loads
            it; a report of heads and neurons says so itself.
        auto: the Auto class that then loads it.
    """
    units = report.structured
    if units is not None:
        stock, auto = units.stock, units.auto
    data = ModelCardData(
        base_model=base_model(report.model),
        library_name="transformers" if stock else "prunus",
        pipeline_tag=_pipeline_tag(auto),
        tags=["prunus", *_tags(report)],
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title(report.model)}, {_verb(report)}",
        _lead(report) if units is None else _lead_of_units(report, units),
        _table(("", ""), list(_facts(report) if units is None else _facts_of_units(report, units))),
        *stored(report),
        *source_section(report.source),
        LOADS.format(auto=auto) if stock else LOADS_BY_WIDTHS,
        *(_layers(report) if units is None else ["## Blocks", _table(BLOCKS, units.rows())]),
        f"## Recipe\n\n```yaml\n{recipe_yaml}```\n",
    ]
    return "\n\n".join(sections)


def _pipeline_tag(auto: str) -> str:
    """Return the hub's name for what models of an Auto class do."""
    return {
        "AutoModelForImageTextToText": "image-text-to-text",
        "AutoModelForMultimodalLM": "any-to-any",
    }.get(auto, "text-generation")


def _tags(report: PruningReport) -> list[str]:
    if report.structured is not None:
        return ["pruned", "smaller", report.method]
    quantised = ["quantised"] if report.grid else []
    if report.only_quantised:
        return quantised
    named = [report.method] if report.paper is not None else []
    return ["pruned", "sparse", *quantised, *named]


def _verb(report: PruningReport) -> str:
    if report.structured is not None:
        return "smaller"
    return "quantised" if report.only_quantised else "pruned"


def _lead(report: PruningReport) -> str:
    layers = number_of(len(report.layers), "linear layer")
    return f"""\
{report.sparsity:.1%} of the weights in {layers} are exactly zero.
{_verb(report).capitalize()} without retraining by prunus {report.versions["prunus"]} with
`{report.method}` ({_published(report)})."""


def _lead_of_units(report: PruningReport, units: UnitsReport) -> str:
    before, after = units.parameters
    return f"""\
{before:,} parameters became {after:,}: whole heads and neurons were removed, without retraining, by
prunus {report.versions["prunus"]} with `{report.method}` ({_published(report)}). It is a
dense model: smaller in memory and faster on any machine."""


def _published(report: PruningReport) -> str:
    """Return where the method is published, as far as the run knew."""
    if report.paper is None:
        return "an own method, which is not among those of prunus"
    return ", ".join(
        [report.paper or "an own method", *([f"<{report.url}>"] if report.url else [])]
    )


def _facts(report: PruningReport) -> Iterator[tuple[str, str]]:
    yield "method", f"`{report.pruner}`"
    yield "pattern", report.pattern or "the method's own comparison groups"
    yield "sparsity", f"{report.requested:.4g} requested, {report.sparsity:.4%} in the tensors"
    yield "coverage", str(report.coverage)
    yield "calibration", str(report.protocol or "none")
    yield "integer grid", str(report.grid or "none")
    if report.reconstruction is not None:
        lower = f"held-out error {1 - report.held_out_loss:.1%} lower in the mean"
        yield "reconstruction", f"`{report.reconstruction}`: {lower}"


def _facts_of_units(report: PruningReport, units: UnitsReport) -> Iterator[tuple[str, str]]:
    yield "method", f"`{report.pruner}`"
    yield (
        "removed",
        f"{units.removed:,} of {units.removable:,} parameters, which is {units.shares}",
    )
    if units.bound is not None:
        yield "heads", units.bound
    speed = units.predicted_speedup
    yield "predicted speed", f"{speed:.2f} of the dense model's, by multiply-adds"
    yield "calibration", str(report.protocol or "none")
    if report.recovery_protocol is not None:
        yield "recovery", str(report.recovery_protocol)


def stored(report: PruningReport) -> Iterator[str]:
    """Yield how the weights are stored, where that is not as anybody would expect."""
    if report.structured is not None:
        return
    if report.packed:
        yield (
            "The linear layers are stored as packed integers: `pip install compressed-tensors` to "
            "load them. transformers unpacks them as it loads, into a model as large and as fast "
            "as the dense one. Pruned weights come back as exactly zero."
        )
        return
    numbers = "The zeros are stored as ordinary numbers"
    if report.grid:
        numbers = "All weights are stored as ordinary numbers, those that the integers stand for"
    yield f"{numbers}: this checkpoint is as large and as fast as the dense one."


def _layers(report: PruningReport) -> Iterator[str]:
    """Yield the section on layers, what was done to the channels, and the section on experts."""
    yield "## Layers"
    yield (
        "Relative output error: ‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖ on sampled calibration tokens; the mean over "
        "blocks."
    )
    yield _table(LAYERS, by_kind(report.layers))
    yield from _orders(report.layers)
    if report.experts:
        yield from _experts(report.experts)


def _orders(layers: Sequence[LayerReport]) -> Iterator[str]:
    kinds = {layer.notes.get("order") for layer in layers}
    yield from (text for kind, text in ORDERS.items() if kind in kinds)
    turned = sum(layer.pattern.endswith(":output") for layer in layers)
    if turned:
        yield f"{turned} of the {len(layers)} layers have {ALONG_OUTPUTS}"


def _experts(experts: Sequence[ExpertTokens]) -> Iterator[str]:
    yield "## Experts"
    yield (
        "Each was pruned with the statistics of the calibration tokens that were routed to it, or "
        "by its weights alone where those were too few. The table counts the tokens block by "
        "block; routers stay dense."
    )
    yield _table(EXPERTS, [block.cells for block in experts])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
