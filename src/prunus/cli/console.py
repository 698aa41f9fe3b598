"""What every sub-command shares: streams, errors, progress."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial, wraps
from io import TextIOWrapper
from logging import CRITICAL, getLogger
from signal import SIG_IGN, SIGTERM, signal
from typing import Any, NoReturn, ParamSpec, TextIO

import typer
from rich.console import Console
from rich.table import Table

from ..base.errors import CheckpointWarning, PluginWarning, PrunusError, TeamError
from ..run.progress import console, escape

__all__ = ["command", "console", "escape", "print_json", "print_line", "print_table"]

P = ParamSpec("P")

TERMINATED = 128 + SIGTERM  # exit code
WIDE = 1000  # columns of a file, in which no name is cut off
UNREAD = 128 + 13  # SIGPIPE, which some systems do not have


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
    if issubclass(category, CheckpointWarning | PluginWarning):
        console.print(f"[bold yellow]warning:[/] {escape(str(message))}", soft_wrap=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _fail(message: str, kind: str, json: bool) -> NoReturn:
    if _in_a_team():
        signal(SIGTERM, SIG_IGN)  # torchrun's, which must not come between
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    if json and int(os.environ.get("RANK", 0)) == 0:  # one object, however many processes
        with suppress(OSError):  # it may be the output that failed
            print_error(kind, message)
    raise typer.Exit(2) from None


def print_error(kind: str, message: str) -> None:
    """Print a JSON object to stdout in place of a result."""
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


def print_json(content: dict[str, Any]) -> None:
    """One JSON object to stdout; NaN and infinities, which JSON lacks, as null."""
    sys.stdout.write(json.dumps(_finite(content), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return the same content with None for every number that JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_line(text: str = "") -> None:
    """Print a line of the result to stdout."""
    typer.echo(text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a part of the result to stdout."""
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    out = Console()
    if not out.is_terminal:
        out.width = WIDE
    out.print(table)
