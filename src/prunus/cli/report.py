"""``prunus report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, print_json, print_line
from .options import Json

EXAMPLES = """
**Examples**

`prunus report pruned` (writes pruned.html)

`prunus report pruned --output page.html --open` (and shows it in a browser)

`prunus report pruned --evaluation dense.json --evaluation pruned.json` (of eval --json)
"""


@command
def run(
    folder: Annotated[Path, typer.Argument(help="What `prunus prune --output` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The page to write; it must not exist.  [default: FOLDER.html]"),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="What `prunus eval --json` wrote, of this or another model; its name is that of "
            "the file. Repeatable."
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
    json: Json = False,
) -> None:
    """Make one page of HTML about a pruned checkpoint, to read and to pass on.

    Everything is in the one file; it loads nothing.
    """
    from ..report.page import write_page

    place = output or Path(f"{folder.absolute().name.removesuffix('.json')}.html")
    page = write_page(folder, place, evaluations=evaluation or [])
    if json:
        print_json({"output": str(page)})
    else:
        print_line(str(page))
    if open_:
        typer.launch(page.absolute().as_uri())
