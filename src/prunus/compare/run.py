"""The loop of a comparison: the dense model first, then every cell that is not done yet."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import transformers
from transformers import PreTrainedModel

from .._version import __version__
from ..api import prune
from ..base.atomic import unfinished
from ..base.errors import InputError, PrunusError
from ..judge.resident import forget_peak, peak_bytes
from ..run.fingerprint import choices, files_of
from ..run.observer import Observer, Silent
from ..run.together import grouped, prune_together
from .cost import token_bytes
from .grid import Cell, Grid
from .judge import Judge
from .log import Log, Run, key
from .table import Table, better

Keep = Literal["none", "best", "all"]
MODELS = "checkpoints"
VERSIONS = {
    "prunus": __version__,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
}


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
        observer: told of every step of a pruning run.
    """

    model: str | Path
    grid: Grid
    folder: Path
    keep: Keep = "none"
    together: int = 8
    trust_remote_code: bool = False
    say: Callable[[str], None] = lambda message: None
    observer: Callable[[str], Observer] = field(default=lambda title: Silent())

    def run(self) -> Table:
        """Make every run that is missing, and return the table of all.

        A run that fails is left out of the table, which says why; the others go on.

        Raises:
            InputError: no cell can be run, or the model cannot be found or judged.
            CheckpointError: the log is damaged.
        """
        cells, failed = self.grid.cells()
        log, files = Log(self.folder), files_of(self.model)
        facts = {**files, **VERSIONS, "judge": self.grid.judge.model_dump(exclude={"data_dir"})}
        judge = Judge(self.model, self.grid, self.trust_remote_code, self.say)
        dense = log.get(key(facts))
        if dense is None:
            self.say("dense: judging")
            dense = self._dense(judge, key(facts))
            log.add(dense)
        keys = [key({**facts, **choices(x.recipe), "text": x.recipe.calibration}) for x in cells]
        missing = [number for number, own in enumerate(keys) if self._missing(own, log)]
        groups = grouped([cells[number].recipe for number in missing], self.together)
        shared = {missing[i]: [missing[j] for j in group] for group in groups for i in group}
        done: list[Run] = []
        seconds: dict[str, float] = {}
        for number, (cell, own) in enumerate(zip(cells, keys, strict=True)):
            title = f"[{number + 1}/{len(cells)}] {cell}"
            found = log.get(own)
            if found is None or self._missing(own, log):
                try:
                    if number in shared and own not in seconds:
                        group = {keys[i]: cells[i] for i in shared[number]}
                        seconds |= self._together(group)
                    found = self._made(cell, own, judge, title)
                except PrunusError as error:
                    failed[cell.row, cell.column] = str(error)
                    self.say(f"{title}: {error}")
                    continue
                if own in seconds:
                    found = replace(found, seconds=seconds[own])
                log.add(found)
            done.append(replace(found, row=cell.row, column=cell.column))
            self._tidy(done)
        self._again(done, cells, judge)
        return Table(self.grid, dense, done, failed, str(self.model))

    def _missing(self, key: str, log: Log) -> bool:
        """Whether a run has to be made: it never was, or its checkpoint is wanted and gone."""
        gone = self.keep == "all" and not self.checkpoint(key).exists()
        return log.get(key) is None or gone

    def _together(self, cells: Mapping[str, Cell]) -> dict[str, float]:
        """Prune the runs that share a walk, up to their last step; return the seconds of each."""
        todo = {self.checkpoint(key): cell.recipe for key, cell in cells.items()}
        todo = {output: recipe for output, recipe in todo.items() if not output.exists()}
        if not todo:
            return {}
        self.say(f"one walk for {len(todo)} runs: {', '.join(str(x) for x in cells.values())}")
        spent = prune_together(
            self.model,
            todo,
            trust_remote_code=self.trust_remote_code,
            observer=self.observer(f"{len(todo)} runs"),
        )
        return {output.name: seconds for output, seconds in spent.items()}

    def checkpoint(self, key: str) -> Path:
        """Return where the checkpoint of a run lies while it is kept."""
        return self.folder / MODELS / key

    def _dense(self, judge: Judge, key: str) -> Run:
        begun = time.perf_counter()
        model = judge.dense
        quality = judge.quality(model)
        seconds = time.perf_counter() - begun
        size = token_bytes(model, None)
        return Run(key, "dense", "", None, {}, quality, 0.0, size, 0.0, seconds, 0, None, VERSIONS)

    def _made(self, cell: Cell, key: str, judge: Judge, title: str) -> Run:
        """Prune, judge, and forget the checkpoint unless it may stay."""
        folder = self._pruned(cell, key, title)
        peak = peak_bytes()
        begun = time.perf_counter()
        report, model = judge.load(folder)
        self.say(f"{title}: judging")
        quality = judge.quality(model)
        size = token_bytes(model, report.grid)
        removed = report.structured.share_of_blocks if report.structured else report.sparsity
        if self.keep == "none":
            shutil.rmtree(folder)
        return Run(
            key=key,
            row=cell.row,
            column=cell.column,
            seed=cell.seed,
            recipe=cell.recipe.model_dump(exclude_unset=True),
            quality=quality,
            sparsity=removed,
            token_bytes=size,
            seconds=report.seconds,
            judged_seconds=time.perf_counter() - begun,
            peak_bytes=peak,
            calibration=report.protocol.sha256 if report.protocol else None,
            versions=VERSIONS,
        )

    def _pruned(self, cell: Cell, key: str, title: str) -> Path:
        """Return the checkpoint of a cell, made now unless an earlier run made it."""
        folder = self.checkpoint(key)
        if not folder.exists():
            forget_peak()
            going_on = unfinished(folder).exists()
            self.say(f"{title}: {'going on' if going_on else 'pruning'}")
            prune(
                self.model,
                cell.recipe,
                output=folder,
                resume=going_on,
                trust_remote_code=self.trust_remote_code,
                observer=self.observer(str(cell)),
            )
        return folder

    def _best(self, done: list[Run]) -> set[str]:
        """Return the keys of the best run of each column."""
        name = self.grid.judge.first
        found: dict[str, Run] = {}
        for run in done:
            best = found.setdefault(run.column, run)
            if better(name, run.quality[name], best.quality[name]):
                found[run.column] = run
        return {run.key for run in found.values()}

    def _tidy(self, done: list[Run]) -> None:
        """Remove checkpoints that no longer are the best of their column."""
        if self.keep != "best":
            return
        best = self._best(done)
        for run in done:
            if run.key not in best and self.checkpoint(run.key).exists():
                shutil.rmtree(self.checkpoint(run.key))

    def _again(self, done: list[Run], cells: list[Cell], judge: Judge) -> None:
        """Make checkpoints that are to be kept and were not when their run was made."""
        if self.keep != "best":
            return
        best = self._best(done)
        for run in done:
            if run.key in best:
                cell = next(x for x in cells if (x.row, x.column, x.seed) == _place(run))
                self._pruned(cell, run.key, str(cell))


def _place(run: Run) -> tuple[str, str, int | None]:
    return run.row, run.column, run.seed


def compare(
    model: str | Path,
    grid: Grid,
    output: str | Path,
    *,
    keep: Keep = "none",
    together: int = 8,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda message: None,
    observer: Callable[[str], Observer] = lambda title: Silent(),
) -> Table:
    """Compare methods on one model by one protocol; see ``Comparison``.

    >>> grid = Grid.of(rows=["magnitude", "wanda"], columns=[0.5, "2:4"])
    >>> table = compare("path/to/model", grid, "comparison")
    >>> print(table.markdown())
    """
    if keep not in ("none", "best", "all"):
        raise InputError(f"keep is none, best or all; got {keep!r}.")
    if together < 1:
        raise InputError(f"At least one run goes on a walk; got together {together}.")
    folder = Path(output).expanduser().absolute()
    return Comparison(
        model, grid, folder, keep, together, trust_remote_code, say, observer
    ).run()


def places(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints that a comparison has kept."""
    yield from sorted(path for path in (folder / MODELS).glob("*") if path.is_dir())
