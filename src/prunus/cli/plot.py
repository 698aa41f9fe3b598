"""``prunus plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, print_json, print_line
from .options import Json

EXAMPLES = """
**Examples**

`prunus plot pruned --output sparsity.png` (what went of every kind of layer, over depth)

`prunus plot pruned --show error --output error.png`

`prunus plot learned --show learning --output learning.png` (of BESA)

`prunus plot sloped --show search --output search.png` (of slope and evolve)

`prunus plot better --show reconstruction --output reconstruction.png` (of --reconstruct)

`prunus plot goa flap --output removed.png` (of smaller models: what went of each block)

`prunus plot goa --show heads --output heads.png` (heads that attend alike, and those that went)
"""


@command
def run(
    folders: Annotated[list[Path], typer.Argument(help="What `prunus prune --output` wrote.")],
    output: Annotated[Path, typer.Option(help="The picture to write; it must not exist.")],
    show: Annotated[
        str | None,
        typer.Option(
            help="sparsity, error, learning, search or reconstruction; for smaller models removed, "
            "error or heads.  [default: sparsity, or removed]"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="For heads: join those with a lower divergence.  [default: the closest fifth]"
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title above the picture.")] = None,
    json: Json = False,
) -> None:
    """Draw what the report of a checkpoint says."""
    from ..report.picture import plot

    plot(folders, output, show=show, threshold=threshold, title=title)
    if json:
        print_json({"output": str(output)})
    else:
        print_line(str(output))
