"""From a SOURCE to documents.

A SOURCE is a known name (``c4``, ``wikitext2``, ``wikitext2-raw``, ``ptb``, ``lambada``,
``builtin``), or a path: a file of text, rows or a table (see ``files``), or a folder of them. A
known name is never a path: ``./wikitext2`` is the folder. ``self`` is not text but a way to write
it: see ``self_generated``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..base.errors import CalibrationError, UnknownNameError
from ..base.words import a_few, number_of
from .dialects import RowReader
from .documents import Documents, Split
from .files import ending, exists, is_plain, read_file, text_files
from .known import HUB, known_text, split_named

__all__ = ["Documents", "finished", "read_documents"]

TEXT_ENDINGS = ".txt, .raw, .jsonl, .json, .csv, .tsv, .parquet"


def read_documents(
    source: str,
    split: Split,
    data_dir: str | Path | None = None,
    *,
    field: str | None = None,
    tokenizer: Any = None,
) -> Documents:
    """Read the documents of a SOURCE.

    Args:
        source: a known name, or a path.
        split: which half of a source that has two.
        data_dir: a folder in which known names are looked up as files before the hub is asked.
        field: the field of its rows that holds the text; None: by the table in ``dialects``.
        tokenizer: whose chat template chats go through; None: they are joined plainly.

    Raises:
        UnknownNameError: neither a path nor a known name.
        CalibrationError: unreadable, without text, or with rows whose text has no known name.
    """
    if not source.strip():
        raise CalibrationError("The text's source is empty. Give a file, a folder, or a name.")
    reader = RowReader(field, tokenizer)
    if source == "builtin":
        documents = _builtin(split)
    elif source in HUB:
        documents = known_text(source, split, data_dir, reader)
    elif exists(Path(source)):
        documents = _from_path(source, Path(source), split, reader)
    elif Path(source).suffix or "/" in source:
        raise CalibrationError(
            f"{source[:200]} does not exist. Give an existing text file or folder."
        )
    else:
        raise UnknownNameError("text source", source[:200], [*HUB, "builtin", "self"])
    return finished(documents, split, reader)


def finished(documents: Documents, split: Split, reader: RowReader) -> Documents:
    """Return documents with what is known of them, without blank ones unless they are scored.

    Raises:
        CalibrationError: nothing is left, or it is no Unicode.
    """
    texts = documents.texts
    if split == "calibration":  # scored text keeps its blank rows: the papers join them too
        texts = [text for text in texts if text.strip()]
    reader.check(documents.name)
    if not any(text.strip() for text in texts):
        rows = f": {number_of(reader.skipped, 'null or empty row')}" if reader.skipped else ""
        field = f" in the field {reader.label}" if rows and reader.label else ""
        raise CalibrationError(
            f"{documents.name} holds no text{rows}{field}. Give a source with text in it"
            f"{', or another --field' if field else ''}."
        )
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise CalibrationError(
            f"{documents.name} contains an unpaired surrogate, which is not a character. Fix the "
            "file."
        ) from None
    return replace(
        documents,
        texts=texts,
        field=reader.label,
        skipped=reader.skipped,
        remarks=(*documents.remarks, *reader.remarks),
    )


def _builtin(split: Split) -> Documents:
    """Return the Python documentation's prose; every fifth topic is held out for evaluation.

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
    return Documents(f"builtin ({split} part)", chosen, split=split)


def as_it_lies(path: Path) -> str:
    """Say how a plain file is scored, and how papers read one that looks like WikiText."""
    said = f"{path.name} is scored as it lies"
    if "wiki" in path.name.lower():
        said += "; papers join the rows of WikiText-2 by blank lines: --text wikitext2"
    return said


def _from_path(source: str, path: Path, split: Split, reader: RowReader) -> Documents:
    keep_empty = split == "evaluation"
    if path.is_file():
        texts, named = read_file(path, reader, keep_empty), split_named([path])
        remarks = [as_it_lies(path)] if keep_empty and is_plain(path) else []
        return Documents(source, texts, split=named, remarks=tuple(remarks))
    inside = sorted(p for p in path.rglob("*") if p.is_file() and ending(p) is not None)
    files = text_files(inside)
    if not files:
        raise CalibrationError(f"{source} holds no text file ({TEXT_ENDINGS}).")
    texts = [text for p in files for text in read_file(p, reader, keep_empty)]
    named, remarks = split_named(files), []
    if named is not None and " and " in named:
        remarks.append(f"{source} is read as a whole, {named}; give one file to use one part of it")
    if left := [p.name for p in inside if p not in files]:
        remarks.append(f"{source} has other texts, so these files are not read: {a_few(left, 5)}")
    return Documents(
        f"{source} ({number_of(len(files), 'file')})", texts, split=named, remarks=tuple(remarks)
    )
