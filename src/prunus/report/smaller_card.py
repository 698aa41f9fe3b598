"""The README.md beside a checkpoint with fewer heads and neurons."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from .from_source import source_section
from .naming import base_model, title
from .report import PruningReport
from .units import StructuredReport

LOADS = """```python
from transformers import {auto}
model = {auto}.from_pretrained("this folder")
```"""
LOADS_BY_WIDTHS = """Its blocks have widths (or a bias) that no config of its family can say, such
as different ones: **plain transformers cannot load it** and stops at the first shape that differs.
`widths.json` has the widths, and prunus puts the model together:

```python
import prunus
model = prunus.load("this folder")
```"""


def pipeline_tag(auto: str) -> str:
    """The hub's name for what a model of that Auto class does."""
    return {
        "AutoModelForImageTextToText": "image-text-to-text",
        "AutoModelForMultimodalLM": "any-to-any",
    }.get(auto, "text-generation")


def _removed(structured: StructuredReport) -> str:
    said = f"{structured.removed:,} of the {structured.removable:,} parameters in heads and neurons"
    return f"{said} of the blocks asked for, {structured.share:.2%}"


def smaller_card(report: PruningReport, structured: StructuredReport, recipe_yaml: str) -> str:
    """The README.md of a model with fewer heads and neurons."""
    data = ModelCardData(
        base_model=base_model(report.model),
        library_name="transformers" if structured.stock else "prunus",
        pipeline_tag=pipeline_tag(structured.auto),
        tags=["prunus", "pruned", "smaller", report.method],
    )
    before, after = structured.parameters
    return f"""---
{data.to_yaml()}
---

# {title(report.model)}, smaller

{before:,} parameters became {after:,}: whole heads and neurons were removed, without retraining, by
prunus {report.versions["prunus"]} with `{report.method}` ({report.paper}, <{report.url}>). It is a
dense model: smaller in memory and faster on any machine.

| | |
|---|---|
| method | `{report.pruner}` |
| removed | {_removed(structured)} |
| predicted speed | {structured.predicted_speedup:.2f} of the dense model's, by multiply-adds |
| calibration | {report.protocol or "none"} |{source_section(report.source)}

{LOADS.format(auto=structured.auto) if structured.stock else LOADS_BY_WIDTHS}

## Blocks

{structured.table()}

## Recipe

```yaml
{recipe_yaml}```
"""
