"""A table of runs: rows of methods, columns of patterns, several seeds in a cell.

Every run is one line of a log (JSON), so that a table that was cut short goes on where it was, and
a finished one is printed again at once. A cell shows the mean over seeds and half their range;
bold are the lowest mean of a column and all cells whose range meets that cell's.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Bench, Outcome, head, protocol, row

Fields = Mapping[str, Any]
IN_DOMAIN = "in domain"  # in place of a source that --in-domain names
DATA_FREE = ("magnitude", "ri", "random", "l1", "l2")  # the seed changes nothing but ``random``


@dataclass(frozen=True)
class Table:
    """What is compared.

    Attributes:
        columns: recipe fields by the name of a column.
        rows: recipe fields by the name of a row; they replace those of the column.
        only: the columns of a row that does not have them all.
        seeds: how many seeds the cells of the printed table have.
    """

    columns: Mapping[str, Fields]
    rows: Mapping[str, Fields]
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: int = 3

    def part(self, names: Sequence[str] | None) -> Table:
        """Return the table with these rows alone."""
        return self if names is None else replace(self, rows={n: self.rows[n] for n in names})

    def cells(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Row, column and fields of every run, but for its seed."""
        return [
            (name, column, joined(self.columns[column], fields))
            for name, fields in self.rows.items()
            for column in self.only.get(name, list(self.columns))
        ]


def joined(column: Fields, fields: Fields) -> dict[str, Any]:
    """Put a row's fields over a column's, settings together."""
    settings = {**column.get("settings", {}), **fields.get("settings", {})}
    found = {**column, **fields, **({"settings": settings} if settings else {})}
    if found["method"] in DATA_FREE:
        found["calibration"] = "none"
    return found


class Log:
    """The runs that are done, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {self._key(run["fields"]): run for run in map(json.loads, lines)}

    def get(self, fields: Fields) -> dict[str, Any] | None:
        """Return the run with these fields, if it is done."""
        return self.done.get(self._key(fields))

    def add(self, fields: Fields, **numbers: Any) -> dict[str, Any]:
        """Write a run down."""
        run = {"fields": dict(fields), **numbers}
        with self.path.open("a") as file:
            file.write(json.dumps(run) + "\n")
        self.done[self._key(fields)] = run
        return run

    @staticmethod
    def _key(fields: Fields) -> str:
        return json.dumps(fields, sort_keys=True)


def fill(table: Table, bench: Bench, log: Log, seeds: int) -> None:
    """Make every run that the log does not have."""
    for name, column, fields in table.cells():
        for seed in range(seeds if seeded(fields) else 1):
            asked = {**fields, "seed": seed}
            if log.get(asked) is None:
                run = log.add(asked, **numbers(bench.prune(**bench.meant(asked))))
                print(name, column, seed, run["perplexities"], run["seconds"], file=sys.stderr)


def numbers(found: Outcome) -> dict[str, Any]:
    """Return what the log has of a run: perplexities, seconds, what was removed, and where."""
    known: dict[str, Any] = {
        "perplexities": [round(x, 3) for x in found.perplexities],
        "seconds": round(found.seconds, 1),
        "sparsity": round(found.report.sparsity, 4),
    }
    units = found.report.structured
    if units is not None:
        shares = units.share, units.share_of_blocks, units.share_of_model
        gone = {b.block: b.kv_heads[0] - b.kv_heads[1] for b in units.blocks if b.kv_heads}
        known["shares"] = [round(share, 4) for share in shares]
        known["heads"] = sum(b.heads[0] - b.heads[1] for b in units.blocks if b.heads)
        known["groups"] = {str(block): count for block, count in gone.items() if count}
    return known


def seeded(fields: Fields) -> bool:
    """Whether another seed gives another result."""
    return fields["method"] == "random" or fields["method"] not in DATA_FREE


def show(table: Table, log: Log, seeds: int, windows: Sequence[str]) -> None:
    """Print the table of what the log has; one column for each kind of window."""
    found = {
        (name, column, kind): cell
        for name, column, fields in table.cells()
        for kind in range(len(windows))
        if (cell := Cell.of(log, fields, seeds if seeded(fields) else 1, kind)) is not None
    }
    columns = [(column, kind) for column in table.columns for kind in range(len(windows))]
    best: dict[tuple[str, int], Cell] = {}
    for (_, column, kind), cell in sorted(found.items(), key=lambda item: item[1]):
        best.setdefault((column, kind), cell)
    head("", *(" ".join((column, windows[kind])).strip() for column, kind in columns))
    for name in table.rows:
        cells = [((name, *at), best.get(at)) for at in columns]
        row(name, *(found[key].shown(lowest) if key in found else "" for key, lowest in cells))


@dataclass(frozen=True, order=True)
class Cell:
    """Perplexity over the seeds of a cell: its mean, lowest and highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, log: Log, fields: Fields, seeds: int, kind: int) -> Cell | None:
        """Return the cell of what the log has; None if it has nothing."""
        runs = [log.get({**fields, "seed": seed}) for seed in range(seeds)]
        values = [run["perplexities"][kind] for run in runs if run is not None]
        return cls(statistics.mean(values), min(values), max(values)) if values else None

    def shown(self, best: Cell) -> str:
        """``mean ± half the range``, bold where the range meets that of the best cell."""
        spread = f" ± {(self.high - self.low) / 2:.1f}" if self.high > self.low else ""
        text = f"{self.mean:.1f}{spread}"
        return f"**{text}**" if self.low <= best.high else text


def main(doc: str | None, tables: Mapping[str, Table], windows: Mapping[int, int]) -> None:
    """Make the table that the command line names; ``windows``: how many of which length."""
    parser = protocol(doc)
    parser.add_argument("table", choices=tables)
    parser.add_argument("--windows", help="LENGTH:NUMBER,… of what is scored", default=",".join(
        f"{length}:{count}" for length, count in windows.items()
    ))  # fmt: skip
    parser.add_argument("--log", type=Path, default=Path("runs.jsonl"), help="of every run")
    parser.add_argument("--seeds", type=int, help="how many; as docs/results.md has it if left out")
    parser.add_argument("--only", nargs="*", help="rows of the table")
    parser.add_argument("--in-domain", help="SOURCE of the rows that recover on other text")
    parser.add_argument("--print", action="store_true", help="only what the log has")
    given = parser.parse_args()
    table, log = tables[given.table].part(given.only), Log(given.log)
    seeds = given.seeds or table.seeds
    pairs = [pair.split(":") for pair in given.windows.split(",")]
    scored = [(int(length), int(count)) for length, count in pairs]
    if not given.print:
        bench = Bench(given, scored)
        bench.sources = {IN_DOMAIN: given.in_domain} if given.in_domain else {}
        fill(table, bench, log, seeds)
    show(table, log, seeds, [str(n) if len(scored) > 1 else "" for n, _ in scored])
