"""Data sets of lm-eval's tasks from local files, in the form that they have on the hub.

A task's files are ``FOLDER/TASK/*.jsonl`` or ``FOLDER/TASK*.jsonl``, a row on each line, and a
file's name says its split: train, validation (valid, val, dev) or test. Rows are as on the hub, or
in a layout of ``LAYOUTS``: then they are converted, so that lm-eval's prompts and metrics run on
them unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from ..text.known import SPLITS

Row = dict[str, Any]
Convert = Callable[[Row], Row]


def arc(row: Row) -> Row:
    """Return a question of ARC or OpenBookQA as on the hub, from AI2's own file.

    >>> arc({"id": "1", "question": {"stem": "Why?", "choices": []}, "answerKey": "A"})["question"]
    'Why?'
    """
    if isinstance(row["question"], str):
        return row
    asked = row["question"]
    choices = {part: [choice[part] for choice in asked["choices"]] for part in ("text", "label")}
    return {
        "id": row["id"],
        "question": asked["stem"],
        "question_stem": asked["stem"],
        "choices": choices,
        "answerKey": row["answerKey"],
    }


def boolq(row: Row) -> Row:
    """Return a question of BoolQ as on the hub, from SuperGLUE's file or BoolQ's own.

    >>> boolq({"question": "is it", "passage": "It is.", "label": "true"})["label"]
    1
    """
    said = row["answer"] if "answer" in row else row["label"]
    known = {"true": 1, "false": 0, "1": 1, "0": 0}
    label = known[str(said).lower()]
    return {"question": row["question"], "passage": row["passage"], "label": label}


def hellaswag(row: Row) -> Row:
    """Return a row of HellaSwag as on the hub, from its own file or llama.cpp's conversion.

    The conversion has one ``query``: the activity, a colon and the context. lm-eval begins the last
    piece of the context, which the hub stores apart, with a capital. Here that piece is what
    follows the last full stop, if it begins with a small letter.

    >>> hellaswag({"query": "Polo: He rides. the horse", "endings": ["runs"], "label": 0})["ctx_b"]
    'the horse'
    """
    shared = {"endings": row["endings"], "label": str(row["label"])}
    if "query" not in row:
        return {**{key: row[key] for key in ("activity_label", "ctx_a", "ctx_b")}, **shared}
    activity, _, context = row["query"].partition(": ")
    found = re.fullmatch(r"(.*[.!?])\s+([a-z][^.!?]*)", context, re.DOTALL)
    first, last = found.groups() if found is not None else (context, "")
    return {"activity_label": activity, "ctx_a": first, "ctx_b": last, **shared}


def same(row: Row) -> Row:
    """Return the row, which is as on the hub."""
    return row


LAYOUTS: Mapping[str, Convert] = {
    "arc_challenge": arc, "arc_easy": arc, "boolq": boolq, "hellaswag": hellaswag,
    "openbookqa": arc,
}  # fmt: skip
PLACES = {"arc_challenge": "ARC-Challenge", "arc_easy": "ARC-Easy", "lambada_openai": "lambada"}
LABELS = {"piqa": "label"}  # may lie beside the rows, one a line, in a file *labels.lst


def find_file(data_dir: Path, task: str, split: str) -> Path:
    """Find the rows of a task's split below ``data_dir``.

    Raises:
        InputError: there is no such file, or more than one.
    """
    files = [path for path in _files(data_dir, task, ".jsonl") if _is_of(split, path)]
    if not files:
        raise InputError(
            f"{task} reads its split {split!r} from {data_dir / task}/*.jsonl or {task}*.jsonl, "
            f"with {_words(split)} in the file's name, and there is no such file. Put it there, or "
            "leave --data-dir out to ask the hub."
        )
    return _single(files, task, split)


def dataset(task: str, files: Mapping[str, str], **metadata: object) -> Any:
    """Read a task's splits: what lm-eval calls a ``custom_dataset``.

    Args:
        task: its name.
        files: of each split.
        metadata: of the task, which lm-eval adds.

    Raises:
        InputError: a file that cannot be read, or a row that is none of the task.
    """
    from datasets import Dataset, DatasetDict

    return DatasetDict(
        {split: Dataset.from_list(rows(task, split, Path(file))) for split, file in files.items()}
    )


def rows(task: str, split: str, file: Path) -> list[Row]:
    """Read the rows of a file as they are on the hub.

    Raises:
        InputError: a line that is no JSON object, or lacks a field; says which.
    """
    convert, found = LAYOUTS.get(task, same), []
    for where, row in _lines(file):
        try:
            found.append(convert(row))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{where}: no row of {task} ({type(error).__name__}: {error}); it has the fields "
                f"{', '.join(row)}. Give rows as on the hub, or as the data set's authors have "
                "them."
            ) from None
    if not found:
        raise InputError(f"{file} holds no rows. Get the complete file.")
    return _labelled(task, split, file, found)


def _labelled(task: str, split: str, file: Path, found: list[Row]) -> list[Row]:
    """Add labels that lie in a file of their own."""
    name = LABELS.get(task)
    if name is None or name in found[0]:
        return found
    beside = [x for x in file.parent.glob("*labels.lst") if _is_of(split, x)]
    if not beside:
        raise InputError(
            f"{file} has no field {name!r}, and no {file.stem}-labels.lst lies beside it. Put the "
            f"labels of {task} there."
        )
    labels = _single(beside, task, split).read_text(encoding="utf-8").split()
    if len(labels) != len(found) or not all(label.isdecimal() for label in labels):
        raise InputError(
            f"{beside[0]} has {len(labels)} labels, and {file} {len(found)} rows. Get files that "
            "belong together."
        )
    return [{**row, name: int(label)} for row, label in zip(found, labels, strict=True)]


def _files(data_dir: Path, task: str, ending: str) -> Iterator[Path]:
    for place in filter(None, (task, PLACES.get(task))):
        folder = data_dir / place
        inside = folder.rglob("*") if folder.is_dir() else data_dir.glob(f"{place}*")
        yield from (x for x in sorted(inside) if x.is_file() and x.name.endswith(ending))


def _is_of(split: str, path: Path) -> bool:
    """Whether the name of a file says that it is of a split."""
    words = re.findall("[a-z]+", path.name.lower())
    return path.stem == split or any(SPLITS.get(word) == split for word in words)


def _words(split: str) -> str:
    return " or ".join([word for word, means in SPLITS.items() if means == split] or [split])


def _single(files: Sequence[Path], task: str, split: str) -> Path:
    if len(files) > 1:
        names = ", ".join(str(path) for path in files)
        raise InputError(f"{task}: {names} are all of its split {split!r}. Leave one of them.")
    return files[0]


def _lines(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({str(error).rstrip('.')}).") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: a row is a JSON object; got {line[:40]!r}.")
        yield where, row
