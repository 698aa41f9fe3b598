"""Turns a SOURCE into documents.

A SOURCE is a path (``.txt``, ``.raw``, ``.jsonl``, ``.json.gz``, ``.parquet``, or a folder of
them), a known name (``c4``, ``wikitext2``, ``ptb``, ``lambada``), or ``builtin``. ``self`` is not
text but a way to write it: see ``self_generated``.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import CalibrationError, UnknownNameError, first_line

Split = Literal["calibration", "evaluation"]


@dataclass(frozen=True)
class Documents:
    """Texts and where they are from.

    Attributes:
        name: the SOURCE and the files read.
        texts: one string per document; for calibration, none is blank.
        joiner: what stands between documents where they are scored as one text.
        windows: how many windows are scored at most; None: all.
    """

    name: str
    texts: list[str]
    joiner: str = "\n\n"
    windows: int | None = None

    def joined(self) -> str:
        """All documents as one text, as perplexity is measured."""
        return self.joiner.join(self.texts)


@dataclass(frozen=True)
class HubText:
    """A data set that goes by a short name, as the papers' code reads it.

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


def read_documents(source: str, split: Split, data_dir: str | Path | None = None) -> Documents:
    """The documents of a SOURCE.

    Args:
        source: a path, a known name, or ``builtin``.
        split: which half of a source that has two.
        data_dir: a folder in which known names are looked up as files before the hub is asked.

    Raises:
        UnknownNameError: neither a path nor a known name.
        CalibrationError: unreadable, or without text.
    """
    if not source.strip():
        raise CalibrationError("The text's source is empty. Give a file, a folder, or a name.")
    if source == "builtin":
        documents = _builtin(split)
    elif _exists(source):
        documents = _from_path(source, Path(source))
    elif source in HUB:
        documents = _known(source, split, data_dir)
    elif Path(source).suffix or "/" in source:
        raise CalibrationError(
            f"{source[:200]} does not exist. Give an existing text file or folder."
        )
    else:
        raise UnknownNameError("text source", source[:200], [*HUB, "builtin", "self"])
    texts = documents.texts
    if split == "calibration":  # scored text keeps its blank rows: the papers join them too
        texts = [text for text in texts if text.strip()]
    if not any(text.strip() for text in texts):
        raise CalibrationError(f"{documents.name} holds no text. Give a source with text in it.")
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise CalibrationError(
            f"{documents.name} holds half a surrogate pair, which is no character. Mend the file."
        ) from None
    return replace(documents, texts=texts)


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except OSError:  # a name too long for a path
        return False


def _builtin(split: Split) -> Documents:
    """The Python documentation's own prose; every fifth topic is held out for evaluation.

    Some topics stand under several names, or whole inside of another; each text counts once, so
    that nothing which is calibrated on is scored.
    """
    from pydoc_data.topics import topics

    texts: list[str] = []
    for text in sorted(topics.values(), key=len, reverse=True):
        if not any(text.strip() in longer for longer in texts):
            texts.append(text)
    texts.sort()
    held_out = set(texts[::5])
    chosen = [text for text in texts if (text in held_out) == (split == "evaluation")]
    return Documents(f"builtin ({split} part)", chosen)


def _from_path(source: str, path: Path) -> Documents:
    if path.is_file():
        return Documents(source, _read_file(path))
    files = sorted(p for p in path.rglob("*") if p.is_file() and _reader(p) is not None)
    if not files:
        raise CalibrationError(f"{source} holds no text file ({', '.join(READERS)}).")
    return Documents(f"{source} ({len(files)} files)", [t for p in files for t in _read_file(p)])


def _known(name: str, split: Split, data_dir: str | Path | None) -> Documents:
    """A known name: below ``data_dir`` and nowhere else where one is given, else from the hub."""
    known = HUB[name]
    if data_dir is None:
        return replace(_from_hub(name, split), windows=known.windows)
    files = _below(Path(data_dir), name, split)
    texts = [text for p in files for text in _read_file(p)]
    listed = ", ".join(str(p.relative_to(data_dir)) for p in files)
    return Documents(f"{name} ({listed})", texts, known.joiner, known.windows)


def _below(data_dir: Path, name: str, split: Split) -> list[Path]:
    """``data_dir/name/*`` or ``data_dir/name*``; of the split, where their names tell."""
    folder = data_dir / name
    found = folder.rglob("*") if folder.is_dir() else data_dir.glob(f"{name}*")
    files = sorted(p for p in found if p.is_file() and _reader(p) is not None)
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
            f"For {split}, {data_dir} has only {', '.join(p.name for p in files)}, by name the "
            f"other part of {name}. Give the file's own path to use it all the same."
        )
    return chosen


SPLIT_WORDS: Mapping[Split, tuple[str, ...]] = {
    "calibration": ("train", "calib"),
    "evaluation": ("test", "valid", "val.", "dev"),
}


def _names(path: Path, words: tuple[str, ...]) -> bool:
    return any(word in path.name.lower() for word in words)


def _from_hub(name: str, split: Split) -> Documents:
    known = HUB[name]
    try:
        from datasets import load_dataset
    except ImportError:
        raise CalibrationError(
            f"{name!r} is read through the datasets library: pip install 'prunus[hub]'; or give a "
            "text file, or --data-dir with the files."
        ) from None
    try:
        rows = load_dataset(known.path, **known.load[split])[known.column]
    except Exception as error:  # whatever the hub's client raises, its message is the news
        raise CalibrationError(
            f"{name!r} ({known.path}) could not be read from the hub: {first_line(error)}. Give a "
            f"text file, or --data-dir with a folder {name}/."
        ) from None
    texts = list(rows)
    if known.one_document and split == "calibration":
        texts = [" ".join(texts)]
    return Documents(f"{name} ({known.path})", texts, known.joiner)


def _read_file(path: Path) -> list[str]:
    reader = _reader(path)
    if reader is None:
        raise CalibrationError(
            f"{path}: cannot read {path.suffix or 'a file without ending'}; "
            f"text comes as {', '.join(READERS)}."
        )
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    except (OSError, EOFError, zlib.error, RecursionError) as error:
        raise CalibrationError(f"{path} is damaged or cannot be read: {error}.") from None


def _read_plain(path: Path) -> list[str]:
    # newline="" keeps the file's own line ends: token ids must not depend on the platform.
    with path.open(encoding="utf-8", newline="") as file:
        return [file.read()]


def _read_json_lines(path: Path) -> list[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    texts = []
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                texts.append(_text_of(line, f"{path}, line {number}"))
    return texts


def _text_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:  # JSONDecodeError, or a number of too many digits
        raise CalibrationError(f"{where}: not JSON ({str(error).rstrip('.')}).") from None
    if isinstance(row, str):
        return row
    strings = [v for v in row.values() if isinstance(v, str)] if isinstance(row, dict) else []
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return str(row["text"])
    if not strings:
        raise CalibrationError(f'{where}: no text; expected an object with a field "text".')
    return strings[0]


def _read_parquet(path: Path) -> list[str]:
    try:
        from pyarrow import ArrowInvalid, parquet, types
    except ImportError:
        raise CalibrationError(f"{path}: parquet needs pip install 'prunus[hub]'.") from None
    try:
        table = parquet.read_table(path)
    except ArrowInvalid as error:
        raise CalibrationError(f"{path} is not a parquet file ({error}).") from None
    textual = []
    for field in table.schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        if types.is_string(kind) or types.is_large_string(kind):
            textual.append(field.name)
    if not textual:
        raise CalibrationError(f"{path} has no text column; it has {table.column_names}.")
    column = "text" if "text" in textual else textual[0]
    return [text for text in table[column].to_pylist() if text is not None]


READERS: Mapping[str, Callable[[Path], list[str]]] = {
    ".txt": _read_plain,
    ".raw": _read_plain,
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".json.gz": _read_json_lines,
    ".parquet": _read_parquet,
}


def _reader(path: Path) -> Callable[[Path], list[str]] | None:
    ending = next((e for e in READERS if path.name.lower().endswith(e)), None)
    return READERS[ending] if ending else None
