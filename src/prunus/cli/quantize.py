"""``prunus quantize``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..base.words import number_of
from . import prune
from .console import command, print_json, print_line

EXAMPLES = """
**Examples**

`prunus quantize pruned --bits 4 --group 128 --output pruned-4-bits` (zeros stay zeros)

`prunus quantize ./model --bits 3 --group 64 --calibration text.jsonl --output model-3-bits`

`prunus quantize pruned --bits 4 --group 64 --pack --output small` (integers; transformers loads it)
"""

SHARED = (
    "model output group pack calibration field bos data_dir samples length seed dtype device "
    "resume allow_different spill trust_remote_code json"
).split()


def _run(
    bits: Annotated[
        int | None, typer.Option(help="Bits of the integer grids, 2 to 8.  [default: 4]")
    ] = None,
    scales: Annotated[
        bool | None,
        typer.Option(
            "--scales/--no-scales",
            help="Search input scales (AWQ).  [default: yes, but not with --pack]",
        ),
    ] = None,
    clip: Annotated[
        bool | None,
        typer.Option("--clip/--no-clip", help="Search clipping strengths.  [default: yes]"),
    ] = None,
    **given: Any,
) -> None:
    """Put the weights of MODEL, pruned or not, on integer grids; zeros stay exactly 0."""
    from ..api import quantize

    def asked() -> dict[str, Any]:
        arguments = prune.request({**given, "bits": bits, "scales": scales, "clip": clip})
        if arguments.get("group") == 0:
            arguments["group"] = None
        return arguments

    output: Path = given["output"]
    result = prune.together(quantize, asked, "quantising")
    if result is None:
        return
    report = result.report
    if given["json"]:
        print_json({"output": str(output), **report.summary()})
        return
    print_line(f"{output}: {number_of(len(report.layers), 'layer')} on grids of {report.grid}")
    print_line(f"  {report.sparsity:.2%} of their weights are zero")
    print_line(f"  {report.seconds:.0f} s; verified: zeros, reload in a fresh process")
    prune.print_stored(report, output)


def _options() -> tuple[inspect.Signature, dict[str, Any]]:
    """Return the options of ``prunus prune`` that apply, and those of quantisation."""
    hints = get_type_hints(prune.run, include_extras=True)
    shared = inspect.signature(prune.run).parameters
    own_hints = get_type_hints(_run, include_extras=True)
    own = inspect.signature(_run).parameters
    parameters = [shared[name].replace(annotation=hints[name]) for name in SHARED]
    parameters += [own[x].replace(annotation=own_hints[x]) for x in ("bits", "scales", "clip")]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    return inspect.Signature(parameters), {p.name: p.annotation for p in parameters}


_run.__signature__, _run.__annotations__ = _options()  # type: ignore[attr-defined]
run = command(_run)
