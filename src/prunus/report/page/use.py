"""How to load the checkpoint, and what it does not do."""

from __future__ import annotations

from collections.abc import Iterator

from ..card import stored
from .checkpoint import Checkpoint
from .rendering import bullets, code, prose
from .skeleton import Section
from .words import without_folders

PACKED = "packed.json"


def how_to_load(checkpoint: Checkpoint) -> Section:
    """Return the section with code to copy."""
    name = checkpoint.folder.name
    units = checkpoint.report.structured
    stock = not checkpoint.has(PACKED) and (units is None or units.stock)
    auto = units.auto if units is not None else checkpoint.auto
    python = f'import prunus\n\nmodel = prunus.load("{name}")'
    if stock:
        python = f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("{name}")'
    commands = f"prunus verify {name}\nprunus eval {name} --text wikitext2\nprunus bench {name}"
    return Section(
        "How to load it",
        [
            prose("Plain `transformers` loads it." if stock else "`prunus.load` puts it together."),
            code(python),
            prose("To check, judge and time it:"),
            code(commands),
        ],
    )


def limits(checkpoint: Checkpoint) -> Section:
    """Return the section on what nobody should expect."""
    return Section("What it does not do", [bullets(*_limits(checkpoint))])


def _limits(checkpoint: Checkpoint) -> Iterator[str]:
    report = checkpoint.report
    units = report.structured
    yield from stored(report)
    if units is None and not report.packed:
        yield (
            "Zeros alone give neither a smaller file nor a faster model. `docs/speed.md` of prunus "
            "says when they pay: packed weights that decode on a CPU, or 2:4 on a GPU with kernels "
            "for it."
        )
    if units is not None:
        yield (
            f"The predicted speed of {units.predicted_speedup:.2f} × counts multiply-adds. "
            "`prunus bench` measures the real one."
        )
        if not units.stock:
            yield "Plain `transformers` cannot load it: no config of its family says these widths."
    yield (
        "It was not retrained. A pruned model answers worse than its dense one, and most in what "
        "the calibration text does not cover."
    )
    if not checkpoint.measured:
        yield (
            "Nobody has put its quality on this page. The errors of layers are no measure of it: "
            f"run `prunus eval {checkpoint.folder.name} --text wikitext2 --json`."
        )
    covered = report.coverage
    if covered.pruned_weights < covered.parameters:
        left = covered.parameters - covered.pruned_weights
        yield (
            f"{left:,} parameters are dense: embeddings, norms, biases, and what else no method "
            "was given."
        )


def recipe(checkpoint: Checkpoint) -> Section:
    """Return the section with the recipe that repeats the run."""
    if not checkpoint.recipe:
        return Section("Recipe", [])
    said = "Repeats the run: `prunus prune MODEL --recipe recipe.yaml --output again`."
    return Section("Recipe", [prose(said), code(without_folders(checkpoint.recipe))])
