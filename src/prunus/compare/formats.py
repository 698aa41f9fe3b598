"""A comparison as text: Markdown, CSV, LaTeX, JSON; HTML is made in ``page``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

from .page import html
from .table import Cell, Sheet, Table

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "—": "--",
}  # fmt: skip


def markdown(table: Table) -> str:
    """Return tables for a page of Markdown: the best in bold, the second best in italics."""
    return "\n".join(_markdown(sheet) for sheet in table.sheets()) + _failures(table)


def _markdown(sheet: Sheet) -> str:
    marks = {"best": "**", "second": "*", "": ""}
    rows = [
        [f"{marks[cell.mark]}{_escaped(cell.text)}{marks[cell.mark]}" for cell in row]
        for row in sheet.rows
    ]
    rule = ["---", *("---:" for _ in sheet.head[1:])]
    lines = [f"| {' | '.join(row)} |" for row in [sheet.head, rule, *rows]]
    note = f"\n{sheet.note}\n" if sheet.note else ""
    return f"**{sheet.title}**\n\n" + "\n".join(lines) + f"\n{note}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _failures(table: Table) -> str:
    lines = [f"- {row}, {column}: {why}" for (row, column), why in table.failed.items()]
    return "\nNot run:\n\n" + "\n".join(lines) + "\n" if lines else ""


def latex(table: Table) -> str:
    """Return tables for LaTeX with booktabs: the best in bold, the second best underlined."""
    return "\n".join(map(_latex, table.sheets()))


def _latex(sheet: Sheet) -> str:
    rows = [" & ".join(map(_tex_cell, row)) for row in sheet.rows]
    head = " & ".join(map(_tex, sheet.head))
    body = " \\\\\n".join(rows)
    return (
        f"% {sheet.title}\n\\begin{{tabular}}{{l{'r' * (len(sheet.head) - 1)}}}\n\\toprule\n"
        f"{head} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
    )


def _tex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    macro = {"best": r"\textbf", "second": r"\underline", "": ""}[cell.mark]
    return f"{macro}{{{text}}}" if macro else text


def _tex(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)


def comma_separated(table: Table) -> str:
    """Return one line for each run, the dense model first, and a column for each measure."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    facts = ("sparsity", "token_bytes", "seconds", "judged_seconds", "peak_bytes", "calibration")
    writer.writerow(["row", "column", "seed", *table.measures, *facts, "key"])
    for run in [table.dense, *table.runs]:
        numbers = [run.quality.get(name, "") for name in table.measures]
        writer.writerow(
            [run.row, run.column, run.seed, *numbers, *(getattr(run, x) for x in facts), run.key]
        )
    return file.getvalue()


def as_json(table: Table) -> str:
    """Return everything as one object."""
    return json.dumps(table.to_dict(), indent=1) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "md": markdown,
    "csv": comma_separated,
    "tex": latex,
    "json": as_json,
    "html": html,
}
"""What makes the text of a file, by its ending."""
