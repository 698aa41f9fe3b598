"""Progress on a terminal, in a notebook, or in the log: bars that observers of a run draw."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ..base.errors import InputError
from .observer import LOOK, Observer, Silent

if TYPE_CHECKING:
    from ..report.layer import LayerReport

__all__ = ["PruningBar", "bars", "console", "escape", "scoring", "watching"]

log = getLogger("prunus")
# Results go to stdout, everything else here: `prunus … --json | jq` always works.
console = Console(stderr=True, highlight=False)

Scored = Callable[[int, int, float], None]
"""Called after every window with (done, total, perplexity so far)."""

# Where each step of a block begins and how long it takes, as shares of the block's time.
STEPS = {
    "answer": (0.0, 1.0),
    "order": (0.0, 1.0),
    "search": (0.0, 1.0),
    "learn": (0.0, 0.9),
    "record": (0.0, 0.5),
    "prune": (0.5, 0.1),
    "reconstruct": (0.6, 0.35),
    "advance": (0.6, 0.4),
    "gradients": (0.0, 1.0),
    "recover": (0.0, 0.3),
    "compare": (0.5, 0.1),
}
PASSES = {
    "answer": "answering",
    "order": "ordering",
    "search": "searching",
    "gradients": "gradients",
}  # before the one that prunes


class PruningBar:
    """An Observer that shows the current block, layer, sparsity, error and the time left.

    On a terminal or in a notebook a live bar; elsewhere (a log file) one line per block.
    """

    def __init__(self, verb: str = "pruning") -> None:
        self._verb = verb
        self._bars = bars("{task.fields[now]}")
        self._cell = InCell(self._bars)
        self._task: Any = None
        self._where = ("", 0)  # pass and block
        self._begun = time.perf_counter()
        self._last: LayerReport | None = None
        self._at = self._share = 0.0

    def __enter__(self) -> PruningBar:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()
        if self._task is not None:
            self._cell.show(last=True)

    def say(self, message: str) -> None:
        """Print a sentence above the bar."""
        console.print(escape(message), soft_wrap=True)

    def block(self, index: int, total: int, name: str, step: str) -> None:
        """Begin a step of a block; each pass over the model has a bar of its own."""
        step, asked = step.removeprefix(LOOK), step
        what = "looking" if asked != step else PASSES.get(step, self._verb)
        if self._where != (what, index):
            self._log()
        if self._where[0] != what:
            self._finish()
            self._task = self._bars.add_task(what, total=total, now="")
            self._begun = time.perf_counter()
        self._where = what, index
        self._at, self._share = index + STEPS[step][0], STEPS[step][1]
        if step not in ("prune", "advance"):
            self._bars.update(self._task, now=escape(f"{step} {name}"))
        self._move(self._at)

    def sample(self, done: int, total: int) -> None:
        """Advance by a sample's share of the block's time."""
        self._move(self._at + self._share * done / total)

    def _move(self, completed: float) -> None:
        """Forward only: --true-sequential records a block again and again."""
        completed = max(completed, self._bars.tasks[self._task].completed)
        self._bars.update(self._task, completed=completed)
        self._cell.show()

    def layer(self, report: LayerReport) -> None:
        """Advance by a layer."""
        self._last = report
        if self._task is not None:
            # the count before it says which block
            self._bars.update(self._task, now=escape(f"{report.kind} {_state(report)}"))

    def done(self) -> None:
        """All blocks are done."""
        self._log()
        self._finish()

    def _finish(self) -> None:
        if self._task is not None:
            total = self._bars.tasks[self._task].total
            self._bars.update(self._task, completed=total, now="done")

    def _log(self) -> None:
        """Print a line for a finished block where no bar is drawn."""
        if self._last is None or drawn():
            return
        seconds = time.perf_counter() - self._begun
        line = f"{self._last.name}: {_state(self._last)}; {seconds:.0f} s so far"
        console.print(escape(line), soft_wrap=True)
        self._last = None


def _state(report: LayerReport) -> str:
    error = report.relative_output_error
    shown = "" if error is None else f" error {error:.3f}"
    return f"sparsity {report.sparsity:.3f}{shown}"


def bars(now: str) -> Bars:
    """Make a progress bar on stderr: number done, time left, and what is going on."""
    return Bars(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn(now),
        console=console,
        disable=not console.is_terminal,  # a notebook's cell is drawn by hand
    )


class InCell:
    """The bars as the output of a notebook's cell.

    rich's own way there is a widget: it needs ipywidgets, and is empty in a notebook that was
    saved. This output is replaced in place instead, which every front end can show.
    """

    def __init__(self, drawing: Bars) -> None:
        self._drawing, self._shown = drawing, 0.0
        self._handle: Any = None

    def show(self, last: bool = False) -> None:
        """Draw them anew, five times a second at most; the ``last`` time in any case."""
        if not console.is_jupyter or not (last or time.perf_counter() - self._shown > 0.2):
            return
        from IPython.display import display

        if self._handle is None:
            self._handle = display(self._drawing, display_id=True)
        else:
            self._handle.update(self._drawing)
        self._shown = time.perf_counter()


class Logged(Silent):
    """An Observer for scripts: the sentences go to the logger ``prunus``, at the level INFO."""

    def say(self, message: str) -> None:
        """Log it."""
        log.info(message)

    def layer(self, report: LayerReport) -> None:
        """Log it, at the level DEBUG."""
        log.debug("%s: %s", report.name, _state(report))


def drawn() -> bool:
    """Whether anybody sees a bar: on a terminal, or in a notebook."""
    return console.is_terminal or console.is_jupyter


@contextmanager
def watching(
    observer: Observer | None, first: bool = True, verb: str = "pruning"
) -> Iterator[Observer]:
    """Whoever watches a run: as given, else a bar where one is seen, else the log.

    Args:
        observer: given by the caller.
        first: whether this is the process that speaks.
        verb: what the bar calls it.
    """
    if observer is not None:
        _check(observer)
        yield observer
    elif not first:
        yield Silent()
    elif drawn():
        with PruningBar(verb) as bar:
            yield bar
    else:
        yield Logged()


def hearing(observer: Observer | None) -> Observer:
    """Choose an observer for sentences alone, which begins no bar."""
    if observer is not None:
        _check(observer)
        return observer
    return PruningBar() if drawn() else Logged()


def _check(observer: object) -> None:
    """Raise InputError for something that cannot watch."""
    if isinstance(observer, type):
        raise InputError(f"observer is the class {observer.__name__}; give an object of it.")
    wanted = [name for name in vars(Silent) if not name.startswith("_")]
    lacks = [name for name in wanted if not callable(getattr(observer, name, None))]
    if lacks:
        raise InputError(
            f"An observer has the methods of prunus.Silent; {type(observer).__name__} lacks "
            f"{', '.join(lacks)}."
        )


@contextmanager
def scoring(scored: Scored | None) -> Iterator[Scored]:
    """Whoever is told of every scored window: as given, else a bar where one is seen."""
    if scored is not None:
        yield scored
        return
    with bars("perplexity {task.fields[perplexity]}") as drawing:
        task = drawing.add_task("windows", total=None, perplexity="")
        cell = InCell(drawing)

        def show(done: int, total: int, perplexity: float) -> None:
            drawing.update(task, completed=done, total=total, perplexity=f"{perplexity:.3f}")
            cell.show(last=done == total)

        yield show
