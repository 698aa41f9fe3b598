"""The README.md beside the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from .experts import COLUMNS, ExpertTokens
from .from_source import source_section
from .layer import LayerReport
from .naming import base_model, title
from .report import PruningReport
from .shown import COLUMNS as LAYERS
from .shown import by_kind
from .smaller_card import LOADS, LOADS_BY_WIDTHS, pipeline_tag, smaller_card


def model_card(
    report: PruningReport,
    recipe_yaml: str,
    stock: bool = True,
    auto: str = "AutoModelForCausalLM",
) -> str:
    """A card with the facts of the run, the exact recipe and how to load the model.

    ``stock``: a config of the family says its widths, so that plain transformers can load it, by
    the Auto class ``auto``.
    """
    if report.structured is not None:
        return smaller_card(report, report.structured, recipe_yaml)
    data = ModelCardData(
        base_model=base_model(report.model),
        library_name="transformers" if stock else "prunus",
        pipeline_tag=pipeline_tag(auto),
        tags=["prunus", *_tags(report)],
    )
    verb = "quantised" if report.only_quantised else "pruned"
    return f"""---
{data.to_yaml()}
---

# {title(report.model)}, {verb}

{report.sparsity:.1%} of the weights in {len(report.layers)} linear layers are exactly zero.
{verb.capitalize()} without retraining by prunus {report.versions["prunus"]} with
`{report.method}` ({_source(report)}).

| | |
|---|---|
| method | `{report.pruner}` |
| pattern | {report.pattern or "the method's own comparison groups"} |
| sparsity | {report.requested:.4g} requested, {report.sparsity:.4%} in the tensors |
| coverage | {report.coverage} |
| calibration | {report.protocol or "none"} |
| integer grid | {report.grid or "none"} |

{_stored(report)}{source_section(report.source)}

{LOADS.format(auto=auto) if stock else LOADS_BY_WIDTHS}

## Layers

Relative output error: ‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖ on sampled calibration tokens; the mean over blocks.

{_layer_table(report.layers)}{_orders(report.layers)}{_experts(report.experts)}

## Recipe

```yaml
{recipe_yaml}```
"""


def _source(report: PruningReport) -> str:
    """Where the method is published, as far as the run knew."""
    if report.paper is None:
        return "an own method, which is not among those of prunus"
    return ", ".join(
        [report.paper or "an own method", *([f"<{report.url}>"] if report.url else [])]
    )


def _tags(report: PruningReport) -> list[str]:
    quantised = ["quantised"] if report.grid else []
    if report.only_quantised:
        return quantised
    named = [report.method] if report.paper is not None else []
    return ["pruned", "sparse", *quantised, *named]


def _stored(report: PruningReport) -> str:
    if report.packed:
        return (
            "The linear layers are stored as packed integers: `pip install compressed-tensors` to "
            "load them. transformers unpacks them as it loads, into a model as large and as fast "
            "as the dense one. Pruned weights come back as exactly zero."
        )
    numbers = "The zeros are stored as ordinary numbers"
    if report.grid:
        numbers = "All weights are stored as ordinary numbers, those that the integers stand for"
    return f"{numbers}: this checkpoint is as large and as fast as the dense one."


ORDERS = {
    "free": "The pattern holds in an order of the inputs that every layer has for itself. The "
    "weights as stored do not have it: no hardware for N:M sparsity runs this checkpoint.",
    "gather": "Where layers read the residual stream, the pattern holds in an order of the inputs "
    "that `channel_orders.json` has. `prunus.load` puts those weights into that order and an index "
    "in front of them; the weights as stored are right without it, and not N:M.",
    "fold": "Channels are in another order than in the base model, one in which the pattern keeps "
    "more. That order is folded into all weights that share it, so the model computes what "
    "it would have computed in the old one; `channel_orders.json` has it.",
}


def _orders(layers: Sequence[LayerReport]) -> str:
    """What was done to the channels."""
    kinds = {layer.notes.get("order") for layer in layers}
    said = [text for kind, text in ORDERS.items() if kind in kinds]
    return "".join(f"\n\n{text}" for text in said)


def _experts(experts: Sequence[ExpertTokens]) -> str:
    """What each block's experts saw."""
    if not experts:
        return ""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(block.cells for block in experts)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""

## Experts

Each was pruned with the statistics of the calibration tokens that were routed to it, and where
those were too few by its weights alone. How many they were, block by block; routers are dense.

{table}"""


def _layer_table(layers: Sequence[LayerReport]) -> str:
    rows = [LAYERS, ("---",) * len(LAYERS), *by_kind(layers)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
