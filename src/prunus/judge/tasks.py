"""Zero-shot and few-shot tasks, run by lm-eval: its Python API, its tasks, prompts and metrics.

Only the rows may come from elsewhere: local files in place of the hub's data set, through the
``custom_dataset`` of lm-eval's own task definition. See ``task_files`` for their layouts.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..base.errors import InputError, at_least, first_line
from .task_files import find_file

NAMED = re.compile(r"^task: *[\"']?([^\s\"'\[{]+)[\"']? *$", re.MULTILINE)
ONE_PROCESS = "DISABLE_MULTIPROC"  # lm-eval's: bootstrap without a pool of forks
SPLIT_FIELDS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Tasks:
    """The tasks that were asked for.

    Attributes:
        names: of lm-eval's tasks, groups and tags.
        shots: examples before each question; None: as the task defines it, usually none.
        limit: questions of each task; None: all.
        batch_size: questions at once.
    """

    names: tuple[str, ...]
    shots: int | None = None
    limit: int | None = None
    batch_size: int = 1

    @classmethod
    def of(
        cls, names: str | Sequence[str], shots: int | None, limit: int | None, batch_size: int
    ) -> Tasks:
        """Make it of names in a list, or in words with commas between them.

        >>> Tasks.of("arc_easy,piqa", None, 20, 1).names
        ('arc_easy', 'piqa')

        Raises:
            InputError: a name twice, no string, or a number that makes no sense.
        """
        words = [names] if isinstance(names, str) else list(names)
        if not all(isinstance(word, str) for word in words):
            raise InputError(f"tasks are names of lm-eval's tasks; got {names!r}.")
        found = [part.strip() for word in words for part in word.split(",") if part.strip()]
        if len(set(found)) < len(found):
            raise InputError(f"A task is named twice: {', '.join(found)}. Name each once.")
        at_least(0, **{"--shots": 0 if shots is None else shots})
        at_least(1, **{"--limit": 1 if limit is None else limit, "--batch-size": batch_size})
        return cls(tuple(found), shots, limit, batch_size)


@dataclass(frozen=True)
class TaskScore:
    """What lm-eval found for one task or group.

    Attributes:
        task: its name.
        values: by lm-eval's names of metrics, with ``_stderr`` behind for the standard error; the
            filter of the answers behind a comma, where there is one. None: not defined.
        samples: questions that were asked; None: of a group.
        total: questions of the split.
        shots: examples before each.
        version: of the task's definition.
    """

    task: str
    values: Mapping[str, float | None] = field(default_factory=dict)
    samples: int | None = None
    total: int | None = None
    shots: int | None = None
    version: str | None = None


def load_tasks(asked: Tasks, data_dir: str | Path | None) -> list[Any]:
    """Return lm-eval's objects for the tasks, their data sets read.

    Args:
        asked: names and shots.
        data_dir: where local files lie; None: lm-eval asks the hub.

    Raises:
        InputError: lm-eval is not installed, a task that it does not have, data that cannot be
            read.
    """
    homes = _homes()
    for name in asked.names if data_dir is not None else ():
        if name not in homes:
            raise _unknown(name, "single task", homes)
    manager = _manager(asked.names)
    for name in asked.names:
        if name not in manager.task_index:
            raise _unknown(name, "task", manager.task_index)
    with _quiet():
        if data_dir is not None:
            return [_from_files(manager, name, asked.shots, Path(data_dir)) for name in asked.names]
        try:
            return _whole(asked.names, manager.load(list(asked.names)))
        except Exception as error:  # whatever the hub's client raises, its message is the news
            raise InputError(
                f"The data of {', '.join(asked.names)} could not be read: {first_line(error)}. "
                "Give --data-dir with the files, or go online."
            ) from None


def _unknown(name: str, what: str, known: Iterable[str]) -> InputError:
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    beside = " --data-dir has no groups." if what != "task" else ""
    return InputError(
        f"lm-eval has no {what} {name!r}.{hint}{beside} `lm-eval ls tasks` lists all."
    )


def run_tasks(
    model: PreTrainedModel, tokenizer: Any, loaded: list[Any], asked: Tasks
) -> list[TaskScore]:
    """Run what ``load_tasks`` returned; lm-eval shows its progress on stderr.

    Args:
        model: on its device.
        tokenizer: of it.
        loaded: the tasks.
        asked: how to run them.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # it gets a padding token
            backend="causal",
            batch_size=asked.batch_size,
        )
        found = simple_evaluate(
            model=lm,
            tasks=loaded,
            num_fewshot=asked.shots,
            limit=asked.limit,
            log_samples=False,
            task_manager=_manager(asked.names),
        )
    return [_score(name, found) for name in found["results"]]


def _score(name: str, found: Mapping[str, Any]) -> TaskScore:
    values = {
        key.removesuffix(",none"): float(value) if isinstance(value, int | float) else None
        for key, value in found["results"][name].items()
        if "," in key
    }
    counted = found["n-samples"].get(name, {})
    version = found["versions"].get(name)
    return TaskScore(
        name,
        values,
        counted.get("effective"),
        counted.get("original"),
        found["n-shot"].get(name),
        None if version is None else str(version),
    )


@cache
def _manager(names: tuple[str, ...]) -> Any:
    """Return lm-eval's index of the tasks that have these names, or of all where some have not.

    To index all of its 14,000 tasks takes lm-eval ten seconds; here only folders that are needed.
    """
    from lm_eval.tasks import TaskManager

    homes = _homes()
    if any(name not in homes for name in names):
        return TaskManager()
    folders = sorted({str(homes[name]) for name in names})
    return TaskManager(include_defaults=False, include_path=folders)


@cache
def _homes() -> Mapping[str, Path]:
    """Return the folder of each single task's definition, by the line in it that names the task."""
    try:
        from lm_eval import tasks
    except ImportError:
        raise InputError("Tasks are run by lm-eval: pip install 'prunus[eval]'.") from None
    found: dict[str, Path] = {}
    for path in sorted(Path(str(tasks.__file__)).parent.rglob("*.yaml")):
        if match := NAMED.search(path.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(match[1], path.parent)
    return found


def _whole(names: Sequence[str], loaded: Mapping[str, Any]) -> list[Any]:
    """Return the groups that were named, and the tasks that are in none of them."""
    groups = [group for name, group in loaded["groups"].items() if name in names]
    inside = {task.task_name for group in groups for task in group.get_all_tasks()}
    return groups + [task for name, task in loaded["tasks"].items() if name not in inside]


def _from_files(manager: Any, name: str, shots: int | None, data_dir: Path) -> Any:
    """Return a task of lm-eval's own definition, except for where its rows come from."""
    entry = manager.task_index[name]
    config = entry.cfg or {}
    if "class" in config:
        raise InputError(f"{name} has code of its own, which reads the hub; leave --data-dir out.")
    files = {
        split: str(find_file(data_dir, name, split).absolute()) for split in _splits(config, shots)
    }
    lines = [
        f"include: {json.dumps(str(entry.yaml_path))}",
        f"task: {json.dumps(name)}",
        f"custom_dataset: !function {dataset_name()}",
        f"dataset_kwargs: {json.dumps({'task': name, 'files': files})}",
    ]
    lines += [f"{key}: null" for key in SPLIT_FIELDS if config.get(key) not in (None, *files)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        (task,) = manager.load([str(path)])["tasks"].values()
    return task


def dataset_name() -> str:
    """Return where a task's definition finds the function that reads local files."""
    from .task_files import dataset

    return f"{dataset.__module__}.{dataset.__qualname__}"


def _splits(config: Mapping[str, Any], shots: int | None) -> list[str]:
    """Name the splits that a task reads: of its questions, and of examples if there are any.

    A split of examples that its ``fewshot_config`` names is always read.
    """
    asked = config.get("test_split") or config.get("validation_split")
    own = (config.get("fewshot_config") or {}).get("split")
    usual = config.get("num_fewshot")
    most = usual if shots is None or usual == 0 else shots
    places = ("fewshot_split", "training_split", "validation_split", "test_split")
    examples = own or next(config[key] for key in places if config.get(key))
    return list(dict.fromkeys([asked, examples] if most or own else [asked]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave stdout to results, lm-eval's log to its errors, and random numbers as they were.

    Standard errors by bootstrap come from this process: lm-eval would fork it, and a fork of a
    process that has threads, as one with torch has, may wait for ever. The numbers are the same.
    """
    import numpy as np

    log = getLogger("lm_eval")
    level = log.level
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    given = os.environ.get(ONE_PROCESS)
    os.environ[ONE_PROCESS] = "1"
    log.setLevel(ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        del os.environ[ONE_PROCESS]
        if given is not None:
            os.environ[ONE_PROCESS] = given
        log.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
