"""What every sub-command shares: streams, errors, progress."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial, wraps
from io import TextIOWrapper
from logging import CRITICAL, getLogger
from signal import SIG_IGN, SIGTERM, signal
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from ..errors import CheckpointWarning, PrunusError, TeamError
from ..observer import LOOK

if TYPE_CHECKING:
    from ..types import LayerReport

P = ParamSpec("P")

TERMINATED = 128 + SIGTERM  # exit code
UNREAD = 128 + 13  # SIGPIPE, which some systems do not have

# Results go to stdout, everything else here: `prunus … --json | jq` always works.
console = Console(stderr=True, highlight=False)


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Quiet libraries, and errors as one sentence with exit code 2; with --json an object too."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        fail = partial(_fail, json=bool(kwargs.get("json")))
        from transformers import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        getLogger("huggingface_hub").setLevel(CRITICAL)  # its retries; the error says enough
        signal(SIGTERM, _stop)
        warnings.showwarning = _show_warning
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that has no ×
        try:
            function(*args, **kwargs)
        except PrunusError as error:
            if isinstance(error, TeamError) and error.said:
                raise typer.Exit(2) from None
            fail(str(error), type(error).__name__)
        except SystemExit as ended:
            if ended.code != TERMINATED or not _in_a_team():
                raise
            fail(
                "ended by SIGTERM: another process of the run has died, or torchrun itself was "
                "ended. Blocks that are done are kept: start all processes again with --resume.",
                "Terminated",
            )
        except BrokenPipeError:  # whoever reads it has enough, such as `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(UNREAD) from None
        except OSError as error:  # of the output: all else says what it is itself
            fail(f"{error}.", type(error).__name__)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            fail(
                "out of memory. Use fewer --samples, a shorter --length, --spill DIR for the "
                "activations, or --dtype bfloat16.",
                "OutOfMemory",
            )

    return run


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours as a sentence, others as they are."""
    if issubclass(category, CheckpointWarning):
        console.print(f"[bold yellow]warning:[/] {escape(str(message))}", soft_wrap=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _fail(message: str, kind: str, json: bool) -> NoReturn:
    if _in_a_team():
        signal(SIGTERM, SIG_IGN)  # torchrun's, which must not come between
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    if json:
        with suppress(OSError):  # it may be the output that failed
            print_error(kind, message)
    raise typer.Exit(2) from None


def print_error(kind: str, message: str) -> None:
    """The JSON object to stdout in place of a result."""
    print_json({"error": {"type": kind, "message": message}})
    sys.stdout.flush()


def _in_a_team() -> bool:
    """Whether ``torchrun`` started other processes beside this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's, CUDA's, and the CPU allocator's, which is a plain RuntimeError."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return named or "can't allocate memory" in str(error)


def _stop(number: int, frame: object) -> NoReturn:
    """Terminated: leave as Ctrl-C would, so that temporary folders are removed."""
    sys.exit(TERMINATED)


def escape(text: str) -> str:
    """Text with rich's square brackets made harmless."""
    from rich.markup import escape as escaped

    return escaped(text)


def print_json(content: dict[str, Any]) -> None:
    """One JSON object to stdout; NaN and infinities, which JSON lacks, as null."""
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in content.items()
    }
    sys.stdout.write(json.dumps(clean, allow_nan=False) + "\n")


def print_line(text: str = "") -> None:
    """A line of the result, to stdout."""
    typer.echo(text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A part of the result, to stdout."""
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


# Where each step of a block begins and how long it takes, as shares of the block's time.
STEPS = {
    "order": (0.0, 1.0),
    "learn": (0.0, 0.9),
    "record": (0.0, 0.5),
    "prune": (0.5, 0.1),
    "advance": (0.6, 0.4),
    "gradients": (0.0, 1.0),
    "recover": (0.0, 0.3),
    "compare": (0.5, 0.1),
}
PASSES = {"order": "ordering", "gradients": "gradients"}  # before the one that prunes


class PruningBar:
    """An Observer that shows the current block, layer, sparsity, error and the time left.

    On a terminal a live bar; elsewhere (a log file) one line per block.
    """

    def __init__(self, verb: str = "pruning") -> None:
        self._verb = verb
        self._bars = bars("{task.fields[now]}")
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

    def say(self, message: str) -> None:
        """A sentence above the bar."""
        console.print(escape(message), soft_wrap=True)

    def block(self, index: int, total: int, name: str, step: str) -> None:
        """A step of a block begins; each pass over the model has a bar of its own."""
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
        """A sample is through; it has its share of the block's time."""
        self._move(self._at + self._share * done / total)

    def _move(self, completed: float) -> None:
        """Forward only: --true-sequential records a block again and again."""
        completed = max(completed, self._bars.tasks[self._task].completed)
        self._bars.update(self._task, completed=completed)

    def layer(self, report: LayerReport) -> None:
        """A layer is done."""
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
        """A line for the block that is done, where no bar is drawn."""
        if self._last is None or console.is_terminal:
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
    """A progress bar on stderr: number done, time left, and what is going on."""
    return Bars(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn(now),
        console=console,
        disable=not console.is_terminal,
    )
