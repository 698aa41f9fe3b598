"""What ``prunus eval --json`` wrote, as rows of tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import InputError, first_line
from ...base.words import number_of
from .words import percent, without_folders

CURE = "Give what `prunus eval … --json > FILE` writes."


@dataclass(frozen=True)
class Measured:
    """One text on which a model was evaluated.

    Attributes:
        name: of the model: that of the file without its ending.
        text: what was scored.
        quantity: what ``value`` is.
        value: the perplexity.
        accuracy: of last words, as it is shown; "": windows were scored.
        how: windows, their length, how the text lies.
        against: what ``--against`` adds, as it is shown: the dense model's perplexity, divergence,
            agreement, prefix; empty without it.
    """

    name: str
    text: str
    quantity: str
    value: float
    accuracy: str
    how: str
    against: Sequence[str] = ()


@dataclass(frozen=True)
class Task:
    """One task of lm-eval: a metric and its standard error, as they are shown."""

    name: str
    task: str
    metric: str
    value: str
    how: str


@dataclass(frozen=True)
class Evaluations:
    """All that was measured, in the order in which the files were given."""

    texts: Sequence[Measured] = ()
    tasks: Sequence[Task] = ()

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Evaluations:
        """Read files with what ``prunus eval --json`` printed.

        Raises:
            InputError: one cannot be read, or holds no evaluation.
        """
        texts: list[Measured] = []
        tasks: list[Task] = []
        for path in paths:
            objects = list(_objects(_content(path)))
            if not objects:
                raise InputError(f"{path} holds no perplexity and no task. {CURE}")
            try:
                texts += [_measured(path.stem, x) for x in objects if "source" in x]
                tasks += [t for x in objects if "task" in x for t in _tasks(path.stem, x)]
            except (KeyError, TypeError, ValueError, AttributeError):
                raise InputError(f"{path} holds no evaluation. {CURE}") from None
        return cls(texts, tasks)

    def __bool__(self) -> bool:
        return bool(self.texts or self.tasks)


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}. {CURE}") from None


def _objects(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object of a text or a task: the content itself, or what it holds."""
    if isinstance(content, dict) and ("source" in content or "task" in content):
        yield content
    if isinstance(content, list | dict):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _objects(part)


def _measured(name: str, found: Mapping[str, Any]) -> Measured:
    words = found.get("accuracy") is not None
    thing = number_of(found["windows"], "passage" if words else "window")
    upto = "up to " if words else ""
    reading = f", {found['reading']}" if found.get("reading") and not words else ""
    return Measured(
        name=name,
        text=without_folders(str(found["source"])),
        quantity="perplexity of the last word" if words else "perplexity",
        value=float(found["perplexity"]),
        accuracy=percent(float(found["accuracy"])) if words else "",
        how=f"{thing} of {upto}{found['length']:,} tokens{reading}",
        against=_against(found["against"]) if found.get("against") else (),
    )


def _against(found: Mapping[str, Any]) -> Sequence[str]:
    return (
        f"{found['perplexity']:,.2f}",
        f"{found['kl']:.4f}",
        percent(found["top_token"]),
        percent(found["best_five"]),
        f"{found['prefix_mean']:.1f} of {found['prefix_most']}",
    )


def _tasks(name: str, found: Mapping[str, Any]) -> Iterator[Task]:
    """Yield the metrics of a task; lm-eval's ``acc_stderr,none`` goes with ``acc,none``."""
    values = found["values"]
    samples = "" if found.get("samples") is None else number_of(found["samples"], "question")
    shots = "" if found.get("shots") is None else f"{found['shots']} shots"
    for metric, value in values.items():
        key, _, kind = metric.partition(",")
        if value is None or key.endswith("_stderr"):
            continue
        error = values.get(f"{key}_stderr,{kind}", values.get(f"{key}_stderr"))
        spread = "" if error is None else f" ± {error:.3f}"
        shown = metric.removesuffix(",none")
        how = ", ".join(x for x in (samples, shots) if x)
        yield Task(name, str(found["task"]), shown, f"{value:.3f}{spread}", how)
