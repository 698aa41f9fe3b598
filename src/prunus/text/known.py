"""Data sets with a short name: on the hub, or as files below a folder."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base.errors import CalibrationError, first_line
from .dialects import RowReader
from .documents import Documents, Split
from .files import is_plain, read_file, text_files

SPLIT_WORDS: Mapping[Split, tuple[str, ...]] = {
    "calibration": ("train", "calib"),
    "evaluation": ("test", "valid", "val.", "dev"),
}
RATHER: Mapping[Split, tuple[str, ...]] = {
    "calibration": ("train", "calib"),
    "evaluation": ("test",),
}


@dataclass(frozen=True)
class HubText:
    """A data set with a short name, read as the papers' code reads it.

    Attributes:
        path: its name on the hub.
        load: further arguments of ``datasets.load_dataset``, per split; ``path`` replaces the name.
        column: the text.
        joiner: between rows where they are scored as one text.
        one_document: calibration draws windows from all rows joined by spaces, not from each row.
        windows: how many windows the papers score.
        rows: from a plain file to its rows as they are on the hub; None: the file is one text.
        blank: what an empty row is where the text is read as it lies; None: rows are joined.
        folder: where its files are below ``--data-dir``; None: under the short name.
        words: in the names of its files, per split.
        last_word: passages whose last word is scored.
    """

    path: str
    load: Mapping[Split, Mapping[str, Any]]
    column: str
    joiner: str
    one_document: bool = False
    windows: int | None = None
    rows: Callable[[str], list[str]] | None = None
    blank: str | None = None
    folder: str | None = None
    words: Mapping[Split, tuple[str, ...]] = field(default_factory=lambda: SPLIT_WORDS)
    last_word: bool = False

    def texts(self, rows: list[str], split: Split) -> list[str]:
        """Return the documents that the rows are."""
        if self.blank is not None:
            return ["".join(row or self.blank for row in rows)]
        if self.one_document and split == "calibration":
            return [" ".join(rows)]  # blank rows too, as the papers join them
        return rows

    def keeps_empty(self, split: Split) -> bool:
        """Whether blank rows are text."""
        return self.one_document or split == "evaluation"


def _lines(text: str) -> list[str]:
    """Return the lines of a file as Python iterates them, with their ends."""
    return list(io.StringIO(text, newline=None))


def with_ends(text: str) -> list[str]:
    """Return lines with their ends, blank ones empty: the rows of WikiText on the hub."""
    return [line if line.strip() else "" for line in _lines(text)]


def stripped(text: str) -> list[str]:
    """Return lines without space at either end: the rows of Penn Treebank on the hub."""
    return [line.strip() for line in _lines(text)]


WIKITEXT2 = HubText(
    "Salesforce/wikitext",
    {
        "calibration": {"name": "wikitext-2-raw-v1", "split": "train"},
        "evaluation": {"name": "wikitext-2-raw-v1", "split": "test"},
    },
    "text",
    "\n\n",
    one_document=True,
    rows=with_ends,
)

HUB: Mapping[str, HubText] = {
    "c4": HubText(
        "allenai/c4",
        {
            "calibration": {
                "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"},
                "split": "train",
            },
            # The first 1100 validation documents: what SparseGPT and its descendants score.
            "evaluation": {
                "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
                "split": "validation[:1100]",
            },
        },
        "text",
        " ",
        windows=256,
    ),
    "wikitext2": WIKITEXT2,
    # As it lies in wiki.test.raw, whose blank lines are a space each.
    "wikitext2-raw": replace(WIKITEXT2, rows=None, blank=" \n", folder="wikitext2"),
    "ptb": HubText(
        "ptb-text-only/ptb_text_only",
        {
            "calibration": {"revision": "refs/convert/parquet", "split": "train"},
            "evaluation": {"revision": "refs/convert/parquet", "split": "test"},
        },
        "sentence",
        " ",
        one_document=True,
        rows=stripped,
    ),
    # The version that is scored has only a test split. The original has its development passages,
    # from other novels, in lower case; its training novels are 1.1 GB.
    "lambada": HubText(
        "EleutherAI/lambada_openai",
        {
            "calibration": {"path": "cimec/lambada", "name": "plain_text", "split": "validation"},
            "evaluation": {"name": "default", "split": "test"},
        },
        "text",
        "\n\n",
        rows=str.splitlines,
        words={
            "calibration": ("train", "calib", "valid", "val.", "dev"),
            "evaluation": ("test",),
        },
        last_word=True,
    ),
}

SPLITS = {  # what parts are called in the names of files, word by word
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("calib", "calibration"), "calibration"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "validation"),
}


def known_text(
    name: str, split: Split, data_dir: str | Path | None, reader: RowReader
) -> Documents:
    """Read a known name: only below ``data_dir`` if one is given, otherwise from the hub.

    Files of plain text have the rows that the hub's data set makes of them, so the text that is
    scored is the same, character for character.
    """
    known = HUB[name]
    part: str | None
    remarks: tuple[str, ...] = ()
    if data_dir is None:
        rows, found = _from_hub(name, split, reader), known.load[split]
        origin, part = found.get("path", known.path), str(found["split"])
    else:
        files, remarks = _below(Path(data_dir), name, split)
        rows = [row for path in files for row in _rows(path, known, split, reader)]
        origin = ", ".join(str(path.relative_to(data_dir)) for path in files)
        part = split_named(files)
    return Documents(
        f"{name} ({origin})",
        known.texts(rows, split),
        known.joiner,
        known.windows,
        split=part,
        remarks=remarks,
        last_word=known.last_word,
    )


def _rows(path: Path, known: HubText, split: Split, reader: RowReader) -> list[str]:
    texts = read_file(path, reader, known.keeps_empty(split))
    if known.rows is None or not is_plain(path):
        return texts
    return [row for text in texts for row in known.rows(text)]


def split_named(files: list[Path]) -> str | None:
    """Name the split that these files belong to, or all splits if there are several.

    None if no file name says.
    """
    words = [word for p in files for word in re.findall("[a-z]+", p.name.lower())]
    return " and ".join(dict.fromkeys(SPLITS[word] for word in words if word in SPLITS)) or None


def _below(data_dir: Path, name: str, split: Split) -> tuple[list[Path], tuple[str, ...]]:
    """Return ``data_dir/name/*`` or ``data_dir/name*``, those of the split, and a remark.

    Where no name tells a split, all files are read for either.
    """
    known = HUB[name]
    place = known.folder or name
    folder = data_dir / place
    files = text_files(folder.rglob("*") if folder.is_dir() else data_dir.glob(f"{place}*"))
    if not files:
        raise CalibrationError(
            f"{data_dir} holds no folder {place}/ and no file {place}* with text. Put it there, "
            "give the text's own path, or leave --data-dir out to ask the hub."
        )
    by_split = {s: [p for p in files if _names(p, words)] for s, words in known.words.items()}
    neither = [p for p in files if not any(p in named for named in by_split.values())]
    chosen = by_split[split]
    chosen = [p for p in chosen if _names(p, RATHER[split])] or chosen
    if known.last_word and split == "evaluation":  # rows, where the original lies beside them
        chosen = [p for p in chosen if not is_plain(p)] or chosen
    if chosen:
        return chosen, ()
    if not neither:
        raise CalibrationError(
            f"For {split}, {data_dir} has only {', '.join(p.name for p in files)}, by their names "
            f"the other split of {name}. Give the file's own path to use it anyway."
        )
    listed = ", ".join(p.name for p in neither)
    return neither, (
        f"no split is named in {listed}, so calibration and evaluation read the same text of "
        f"{name}",
    )


def _names(path: Path, words: tuple[str, ...]) -> bool:
    return any(word in path.name.lower() for word in words)


def _from_hub(name: str, split: Split, reader: RowReader) -> list[str]:
    """Return the rows of the hub's data set."""
    known = HUB[name]
    try:
        from datasets import load_dataset
    except ImportError:
        raise CalibrationError(
            f"{name!r} is read through the datasets library: pip install 'prunus[hub]'; or give a "
            "text file, or --data-dir with the files."
        ) from None
    column = reader.wanted or known.column
    load = dict(known.load[split])
    path = load.pop("path", known.path)
    try:
        rows = load_dataset(path, **load)[column]
    except Exception as error:  # whatever the hub's client raises, its message is the news
        here = f" The folder {name}/ here is ./{name}." if Path(name).exists() else ""
        raise CalibrationError(
            f"{name!r} ({path}) could not be read from the hub: {first_line(error)}. Give a "
            f"text file, or --data-dir with a folder {known.folder or name}/.{here}"
        ) from None
    named = ((f"{name}, row {i}", {column: row}) for i, row in enumerate(rows, 1))
    return reader.texts(named, known.keeps_empty(split))
