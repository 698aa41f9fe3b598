"""Data sets with a short name: on the hub, or as files below a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import CalibrationError, first_line
from .dialects import RowReader
from .documents import Documents, Split
from .files import read_file, text_files


@dataclass(frozen=True)
class HubText:
    """A data set with a short name, read as the papers' code reads it.

    Attributes:
        path: its name on the hub.
        load: further arguments of ``datasets.load_dataset``, per split.
        column: the text.
        joiner: between rows where they are scored as one text.
        one_document: calibration draws windows from all rows joined by spaces, not from each row.
        windows: how many windows the papers score.
    """

    path: str
    load: Mapping[Split, Mapping[str, Any]]
    column: str
    joiner: str
    one_document: bool = False
    windows: int | None = None

    @property
    def has_splits(self) -> bool:
        """Whether calibration and evaluation read different rows."""
        return self.load["calibration"] != self.load["evaluation"]


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
    "wikitext2": HubText(
        "Salesforce/wikitext",
        {
            "calibration": {"name": "wikitext-2-raw-v1", "split": "train"},
            "evaluation": {"name": "wikitext-2-raw-v1", "split": "test"},
        },
        "text",
        "\n\n",
        one_document=True,
    ),
    "ptb": HubText(
        "ptb-text-only/ptb_text_only",
        {
            "calibration": {"revision": "refs/convert/parquet", "split": "train"},
            "evaluation": {"revision": "refs/convert/parquet", "split": "test"},
        },
        "sentence",
        " ",
        one_document=True,
    ),
    "lambada": HubText(
        "EleutherAI/lambada_openai",
        {
            "calibration": {"name": "default", "split": "test"},
            "evaluation": {"name": "default", "split": "test"},
        },
        "text",
        "\n\n",
    ),
}

SPLIT_WORDS: Mapping[Split, tuple[str, ...]] = {
    "calibration": ("train", "calib"),
    "evaluation": ("test", "valid", "val.", "dev"),
}
SPLITS = {  # what parts are called in the names of files, word by word
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("calib", "calibration"), "calibration"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "validation"),
}


def known_text(
    name: str, split: Split, data_dir: str | Path | None, reader: RowReader
) -> Documents:
    """Read a known name: only below ``data_dir`` if one is given, otherwise from the hub."""
    known = HUB[name]
    if data_dir is None:
        return _from_hub(name, split, reader)
    files = _below(Path(data_dir), name, split)
    texts = [text for p in files for text in read_file(p, reader, split == "evaluation")]
    listed = ", ".join(str(p.relative_to(data_dir)) for p in files)
    return Documents(
        f"{name} ({listed})", texts, known.joiner, known.windows, split=split_named(files)
    )


def split_named(files: list[Path]) -> str | None:
    """Name the split that these files belong to, or all splits if there are several.

    None if no file name says.
    """
    words = [word for p in files for word in re.findall("[a-z]+", p.name.lower())]
    return " and ".join(dict.fromkeys(SPLITS[word] for word in words if word in SPLITS)) or None


def _below(data_dir: Path, name: str, split: Split) -> list[Path]:
    """Return ``data_dir/name/*`` or ``data_dir/name*``; those of the split, if names tell."""
    folder = data_dir / name
    files = text_files(folder.rglob("*") if folder.is_dir() else data_dir.glob(f"{name}*"))
    if not files:
        raise CalibrationError(
            f"{data_dir} holds no folder {name}/ and no file {name}* with text. Put it there, give "
            "the text's own path, or leave --data-dir out to ask the hub."
        )
    if not HUB[name].has_splits:
        return files
    by_split = {s: [p for p in files if _names(p, words)] for s, words in SPLIT_WORDS.items()}
    neither = [p for p in files if not any(p in named for named in by_split.values())]
    chosen = by_split[split] or neither
    if split == "evaluation":
        chosen = [p for p in chosen if _names(p, ("test",))] or chosen
    if not chosen:
        raise CalibrationError(
            f"For {split}, {data_dir} has only {', '.join(p.name for p in files)}, by their names "
            f"the other split of {name}. Give the file's own path to use it anyway."
        )
    return chosen


def _names(path: Path, words: tuple[str, ...]) -> bool:
    return any(word in path.name.lower() for word in words)


def _from_hub(name: str, split: Split, reader: RowReader) -> Documents:
    known = HUB[name]
    try:
        from datasets import load_dataset
    except ImportError:
        raise CalibrationError(
            f"{name!r} is read through the datasets library: pip install 'prunus[hub]'; or give a "
            "text file, or --data-dir with the files."
        ) from None
    column = reader.wanted or known.column
    try:
        rows = load_dataset(known.path, **known.load[split])[column]
    except Exception as error:  # whatever the hub's client raises, its message is the news
        here = f" The folder {name}/ here is ./{name}." if Path(name).exists() else ""
        raise CalibrationError(
            f"{name!r} ({known.path}) could not be read from the hub: {first_line(error)}. Give a "
            f"text file, or --data-dir with a folder {name}/.{here}"
        ) from None
    named = ((f"{name}, row {i}", {column: row}) for i, row in enumerate(rows, 1))
    whole = known.one_document and split == "calibration"  # blank rows too, as the papers join them
    texts = reader.texts(named, keep_empty=whole or split == "evaluation")
    return Documents(
        f"{name} ({known.path})",
        [" ".join(texts)] if whole else texts,
        known.joiner,
        known.windows,
        split=str(known.load[split]["split"]),
    )
