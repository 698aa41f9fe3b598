"""The loop of a comparison: the dense model first, then every cell that is not done yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..base.errors import InputError, PrunusError
from ..report.report import VERSIONS
from ..run.observer import Observer
from .checkpoints import FOLDER, Checkpoints, Keep
from .cost import token_bytes
from .facts import of_all, of_cell
from .grid import Cell, Grid
from .judge import Judge
from .log import Log, Run, key
from .table import Table, better


@dataclass(frozen=True)
class Comparison:
    """Runs the cells of a grid on one model, and keeps what they gave in a folder.

    A run that a grid shares with an earlier one in the same folder is not made again, whatever
    else the grids have. One that was cut short goes on at the block where it was.

    Args:
        model: a folder, hub id or GGUF.
        grid: what is compared.
        folder: for ``runs.jsonl`` and the checkpoints.
        keep: which checkpoints stay: none, those of the best run of each column, or all.
        together: how many runs with statistics of the dense model share one walk, and with it the
            disk: each has its checkpoint there.
        trust_remote_code: run code that the checkpoint brings.
        say: told what happens, in sentences.
        observer: who is told of every step of a run, by its title; None: as for ``prune``.
    """

    model: str | Path
    grid: Grid
    folder: Path
    keep: Keep = "none"
    together: int = 8
    trust_remote_code: bool = False
    say: Callable[[str], None] = lambda message: None
    observer: Callable[[str], Observer | None] = lambda title: None

    def run(self) -> Table:
        """Make every run that is missing, and return the table of all.

        A run that fails is left out of the table, which says why; the others go on.

        Raises:
            InputError: no cell can be run, or the model cannot be found or judged.
            CheckpointError: the log is damaged.
        """
        cells, failed = self.grid.cells()
        dense = self._dense()
        keyed = [(key(of_cell(self._facts, cell)), cell) for cell in cells]
        missing = [pair for pair in keyed if self._log.get(pair[0]) is None]
        self._checkpoints.plan(missing, self.together)
        done: list[Run] = []
        for number, (own, cell) in enumerate(keyed, 1):
            title = f"[{number}/{len(keyed)}] {cell}"
            try:
                found = self._log.get(own) or self._made(cell, own, title)
                done.append(replace(found, row=cell.row, column=cell.column))
                if self.keep == "all":
                    self._checkpoints.make(own, cell, title)
            except PrunusError as error:
                failed[cell.row, cell.column] = str(error)
                self.say(f"{title}: {error}")
            self._tidy(done)
        for own in self._best(done) if self.keep == "best" else ():
            self._checkpoints.make(own, dict(keyed)[own], "best")
        return Table(self.grid, dense, done, failed, str(self.model))

    @cached_property
    def _log(self) -> Log:
        return Log(self.folder)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return of_all(self.model, self.grid.judge)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.model, self.grid, self.trust_remote_code, self.say)

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        where = self.folder / FOLDER
        return Checkpoints(self.model, where, self.trust_remote_code, self.say, self.observer)

    def _dense(self) -> Run:
        """Return the dense model's run, judged now unless the log has it."""
        own = key(self._facts)
        found = self._log.get(own)
        if found is None:
            self.say("dense: judging")
            begun = time.perf_counter()
            model = self._judge.dense()
            quality = self._judge.quality(model, dense=True)
            seconds = time.perf_counter() - begun
            size = token_bytes(model, None)
            found = Run(
                own, "dense", "", None, {}, quality, 0.0, size, 0.0, seconds, 0, None, VERSIONS
            )
            self._log.add(found)
        return found

    def _made(self, cell: Cell, own: str, title: str) -> Run:
        """Prune, judge, write down, and remove the checkpoint unless it may stay."""
        folder = self._checkpoints.make(own, cell, title)
        self.say(f"{title}: judging")
        begun = time.perf_counter()
        report, model = self._judge.load(folder)
        quality = self._judge.quality(model)
        run = Run(
            key=own,
            row=cell.row,
            column=cell.column,
            seed=cell.seed,
            recipe=cell.recipe.model_dump(exclude_unset=True),
            quality=quality,
            sparsity=report.structured.share_of_blocks if report.structured else report.sparsity,
            token_bytes=token_bytes(model, report.grid),
            seconds=report.seconds,
            judged_seconds=time.perf_counter() - begun,
            peak_bytes=self._checkpoints.peak,
            calibration=report.protocol.sha256 if report.protocol else None,
            versions=VERSIONS,
        )
        self._log.add(run)
        if self.keep == "none":
            self._checkpoints.remove(own)
        return run

    def _best(self, done: Sequence[Run]) -> set[str]:
        """Return the keys of the best run of each column."""
        name = self.grid.judge.first
        found: dict[str, Run] = {}
        for run in done:
            best = found.setdefault(run.column, run)
            if better(name, run.quality[name], best.quality[name]):
                found[run.column] = run
        return {run.key for run in found.values()}

    def _tidy(self, done: Sequence[Run]) -> None:
        """Remove checkpoints that no longer are the best of their column."""
        best = self._best(done)
        for run in done if self.keep == "best" else ():
            if run.key not in best:
                self._checkpoints.remove(run.key)


def compare(
    model: str | Path,
    grid: Grid,
    output: str | Path,
    *,
    keep: Keep = "none",
    together: int = 8,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda message: None,
    observer: Callable[[str], Observer | None] = lambda title: None,
) -> Table:
    """Compare methods on one model by one protocol; see ``Comparison``.

    >>> grid = Grid.of(rows=["magnitude", "wanda"], columns=[0.5, "2:4"])
    >>> table = compare("path/to/model", grid, "comparison")
    >>> table.value("wanda", "2:4", "perplexity builtin").mean
    """
    if keep not in ("none", "best", "all"):
        raise InputError(f"keep is none, best or all; got {keep!r}.")
    if together < 1:
        raise InputError(f"At least one run goes on a walk; got together {together}.")
    folder = Path(output).expanduser().absolute()
    return Comparison(model, grid, folder, keep, together, trust_remote_code, say, observer).run()
