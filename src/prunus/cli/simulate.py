"""``prunus simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .console import command, print_json
from .options import Json

EXAMPLES = """
**Examples**

`prunus simulate pruned` — cycles of every kind of layer on ViTCoD, one token

`prunus simulate pruned --as-published --json` — counted as in BESA's Table 4
"""


@command
def run(
    folder: Annotated[Path, typer.Argument(help="What `prunus prune --output` wrote.")],
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Count as the authors do, errors included.")
    ] = False,
    json: Json = False,
) -> None:
    """Cycles of a pruned model on the ViTCoD accelerator, by a model of its multiplications."""
    from ..judge.cycles import simulate

    rows = simulate(folder, as_published=as_published)
    if json:
        print_json({"accelerator": "ViTCoD", "as_published": as_published, "layers": rows})
        return
    table = Table("layer", "dense", "cycles", "sparsity", "speed-up", "layers", box=None)
    for row in rows:
        table.add_row(
            row["layer"],
            str(row["dense"]),
            f"{row['cycles']:.2f}",
            f"{row['sparsity']:.2%}",
            f"{row['speedup']:.2f}×",
            str(row["count"]),
        )
    Console().print(table)
    Console().print("Simulated: multiplications for one token on 64 × 64 elements, no memory.")
