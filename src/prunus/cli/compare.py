"""``prunus compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import command, console, escape, print_json, print_line, print_table
from .options import TEXT, AnswerLength, Answers, Json, Length, Samples, TrustRemoteCode

if TYPE_CHECKING:
    from ..compare import Grid, Table

JUDGE = "Judging"

RECIPE = (
    "calibration",
    "answers",
    "answer_length",
    "samples",
    "length",
    "dtype",
    "device",
    "data_dir",
    "statistics",
)
JUDGED = ("text", "windows", "shots", "limit", "against", "data_dir")

EXAMPLES = """
**Examples**

`prunus compare org/model --methods magnitude,wanda,ria --patterns 0.5,2:4`

`prunus compare org/model --methods wanda,mrp-sm --patterns 0.5,0.6,4:8 --seeds 0,1,2 --keep best`

`prunus compare ./model --grid grid.yaml --output comparison` (again: it goes on after a kill)

A grid: `rows: {Wanda: {method: wanda}}`, `columns: [0.5, 2:4]`, `seeds: [0, 1]`,
`recipe: {calibration: c4, samples: 16}`, `judge: {text: [wikitext2], windows: 8}`
"""


@command
def run(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or a GGUF.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Methods and presets, with commas."),
    ] = None,
    patterns: Annotated[
        list[str] | None,
        typer.Option(help="Sparsities and patterns: 0.5,0.6,2:4,'0.5 row'.  [default: 0.5]"),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Several: 0,1,2.  [default: 0]")] = None,
    grid: Annotated[
        Path | None, typer.Option(help="A YAML file of recipes; options replace its fields.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for runs, tables and checkpoints.")] = Path(
        "prunus-compare"
    ),
    keep: Annotated[
        str, typer.Option(help="Checkpoints that stay: none, best (of each pattern), all.")
    ] = "none",
    together: Annotated[
        int,
        typer.Option(
            help="How many runs share a walk with --statistics dense; each needs the disk of a "
            "checkpoint."
        ),
    ] = 8,
    statistics: Annotated[
        str | None,
        typer.Option(
            help="pruned or dense: with dense, calibration text goes through the model once for "
            "many runs.  [default: pruned]",
            rich_help_panel=TEXT,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="As for `prunus prune`.  [default: builtin]", rich_help_panel=TEXT),
    ] = None,
    answers: Answers = None,
    answer_length: AnswerLength = None,
    samples: Samples = None,
    length: Length = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text whose perplexity is measured, as for `prunus eval`; may be repeated.  "
            "[default: builtin]",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    text_length: Annotated[
        int | None,
        typer.Option(help="Tokens per window.  [default: up to 2048]", rich_help_panel=JUDGE),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="Score the first N.  [default: all]", rich_help_panel=JUDGE)
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="Tasks of lm-eval, with commas.", rich_help_panel=JUDGE),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Examples before each question.", rich_help_panel=JUDGE),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Questions of each task.  [default: all]", rich_help_panel=JUDGE),
    ] = None,
    against: Annotated[
        bool | None,
        typer.Option(
            "--against/--no-against",
            help="Compare predictions with the dense model's.  [default: yes]",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with c4, wikitext2 and tasks as files.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16, float16.  [default: auto]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.  [default: auto]")] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Prune MODEL in many ways by one protocol, and print the table.

    Runs that are done are kept in OUTPUT and not made again; the tables are written there as
    Markdown, CSV, LaTeX, JSON and HTML.
    """
    asked = asked_grid(dict(locals()))
    from ..compare.run import compare
    from ..compare.write import write

    table = compare(
        model,
        asked,
        output,
        keep=keep,  # type: ignore[arg-type]
        together=together,
        trust_remote_code=trust_remote_code,
        say=lambda message: console.print(escape(message), soft_wrap=True),
    )
    files = write(table, output)
    if json:
        print_json(table.to_dict())
    else:
        _print(table, files)
    if table.failed:
        raise typer.Exit(2)


def asked_grid(given: dict[str, Any]) -> Grid:
    """Return the grid of the file, or of the options, which replace the file's fields."""
    from ..base.errors import InputError
    from ..compare.grid import Grid, listed, read_grid

    if given["grid"] is None and not given["methods"]:
        raise InputError("Nothing to compare: give --methods, or --grid FILE.")
    fields: dict[str, Any] = {} if given["grid"] is None else read_grid(given["grid"])
    if given["methods"]:
        fields["rows"] = listed(given["methods"])
    if given["patterns"]:
        fields["columns"] = listed(given["patterns"])
    if given["seeds"] is not None:
        try:
            fields["seeds"] = [int(seed) for seed in given["seeds"].split(",")]
        except ValueError:
            raise InputError(f"--seeds are whole numbers: 0,1,2; got {given['seeds']!r}.") from None
    fields["recipe"] = _over(fields.get("recipe"), given, {name: name for name in RECIPE})
    names = {name: name for name in JUDGED}
    judge = _over(fields.get("judge"), given, {**names, "text_length": "length"})
    if given["tasks"]:
        judge["tasks"] = listed(given["tasks"])
    fields["judge"] = judge
    return Grid.of(**fields)


def _over(fields: Any, given: dict[str, Any], names: dict[str, str]) -> Any:
    """Put the options that were given in place of a file's fields."""
    if fields is not None and not isinstance(fields, dict):
        return fields  # which the grid refuses
    new = {
        field: str(value) if isinstance(value, Path) else value
        for name, field in names.items()
        if (value := given[name]) is not None
    }
    return {**(fields or {}), **new}


def _print(table: Table, files: list[Path]) -> None:
    """Print a table for each measure, one of costs, and what failed."""
    styles = {"best": "bold", "second": "italic", "": ""}
    for sheet in table.sheets():
        print_line(sheet.title)
        rows = [
            [f"[{styles[c.mark]}]{escape(c.text)}[/]" if c.mark else escape(c.text) for c in row]
            for row in sheet.rows
        ]
        print_table(sheet.head, rows)
        print_line(f"{sheet.note}\n" if sheet.note else "")
    for (row, column), why in table.failed.items():
        print_line(f"not run: {row}, {column}: {why}")
    print_line(f"written: {', '.join(map(str, files))}")
