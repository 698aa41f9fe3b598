"""``prunus reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import command, console, escape, print_json, print_line, print_table
from .options import DtypeName, Json

if TYPE_CHECKING:
    from ..reproduce import Entry, Measured

EXAMPLES = """
**Examples**

`prunus reproduce --list --paper ria` (the tables and figures of a paper)

`prunus reproduce ria/table-2 --show` (its recipes, published numbers, and what differs)

`prunus reproduce ria/table-2 org/model --text wikitext2` (the paper's protocol on another model)

`prunus reproduce ria/figure-5 org/model --samples 8 --length 512 --output figure` (smaller)
"""
TEXT = "What perplexity is measured on; may be repeated.  [default: the paper's]"


@command
def run(
    entry: Annotated[str | None, typer.Argument(help="Such as ria/table-2.")] = None,
    model: Annotated[str | None, typer.Argument(help="A folder, a hub id, or a GGUF.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the tables and figures.")] = False,
    paper: Annotated[str | None, typer.Option(help="Of one paper: ria, mrp, besa …")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the entry; measure nothing.")] = False,
    calibration: Annotated[
        str | None, typer.Option(help="Text to calibrate on.  [default: the paper's]")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help=TEXT)] = None,
    tasks: Annotated[bool, typer.Option(help="Run the entry's zero-shot tasks.")] = True,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Calibration windows.  [default: the paper's]")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens per window, calibrated and scored.  [default: as above]"),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Score the first N of each text.  [default: all]")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each cell.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task.  [default: all]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for pictures, checkpoints, unfinished tables.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with c4, wikitext2 … as files.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the entry: sizes=[1024,2048]")
    ] = None,
    dtype: DtypeName = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    json: Json = False,
) -> None:
    """Tables and figures of the five papers, published beside measured."""
    from ..base.device import checked_dtype
    from ..reproduce import Asked, find, measure
    from ..reproduce.shown import to_dict

    if list_ or entry is None:
        _list(paper, json)
        return
    found = find(entry)
    if show:
        _show(found, json)
        return
    asked = Asked(
        calibration, tuple(text or ()), tasks, samples, length, windows, seeds, limit, output,
        None if data_dir is None else str(data_dir), _options(settings or []),
        checked_dtype(dtype), device,
    )  # fmt: skip
    measured = measure(
        found, model or "", asked, lambda said: console.print(escape(said), soft_wrap=True)
    )
    if json:
        print_json(to_dict(found, measured))
    else:
        _print(found, measured)


def _options(settings: list[str]) -> dict[str, Any]:
    """Return the options of ``--set NAME=VALUE``, with values as YAML has them."""
    import yaml

    from ..base.errors import InputError
    from ..base.yaml import Loader

    found = {}
    for item in settings:
        name, equals, value = item.partition("=")
        try:
            found[name] = yaml.load(value, Loader)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise InputError(f"--set {item}: expected NAME=VALUE, such as sizes=[1024,2048].")
    return found


def _list(name: str | None, json: bool) -> None:
    from ..reproduce.catalogue import paper, papers

    chosen = papers().values() if name is None else [paper(name)]
    if json:
        entries = [
            {"id": x.id, "kind": x.kind, "title": x.title, "shows": x.shows}
            for one in chosen
            for x in one.entries
        ]
        print_json({"entries": entries})
        return
    for one in chosen:
        print_line(f"{one.name}\n{one.url}")
        print_table(["entry", "what it shows"], [[x.id, escape(x.shows)] for x in one.entries])
        print_line()


def _show(entry: Entry, json: bool) -> None:
    from ..reproduce.shown import protocol, recipes

    if json:
        print_json(entry.model_dump(mode="json"))
        return
    print_line(f"{entry.id}: {entry.title}\n{entry.shows}\n")
    for line in protocol(entry):
        print_line(f"  {line}")
    print_line()
    for name, options in recipes(entry):
        print_line(f"  {name}: {options}")
    print_line()
    _print(entry)


def _print(entry: Entry, measured: Measured | None = None) -> None:
    """Print the published numbers, the measured ones beside them, and what differs."""
    from ..reproduce.shown import agreement, sheets

    for sheet in sheets(entry, measured):
        print_table(sheet.header, [[escape(cell) for cell in row] for row in sheet.rows])
        print_line()
    parts: dict[str, list[str]] = {}
    if measured is not None:
        parts["Order of the rows"] = agreement(entry, measured)
        parts["This run and the paper's"] = measured.unlike
        parts["Written"] = measured.files
        parts["Not measured"] = measured.failed
    parts["The paper says"] = entry.said
    parts["Missing"] = [entry.missing] if entry.missing else []
    parts["What differs"] = entry.differs
    parts["What cannot run everywhere"] = entry.cannot
    for head, lines in parts.items():
        if lines:
            print_line(head)
            for line in lines:
                print_line(f"  {line}")
            print_line()
