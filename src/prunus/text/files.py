"""Text files of every kind: plain, JSON, JSON lines, CSV and parquet, also compressed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..base.errors import CalibrationError
from .dialects import Reader, Row

BOM = "\ufeff"
Rows = Iterator[tuple[str, Row]]


def text_files(paths: Iterable[Path]) -> list[Path]:
    """Return those of these paths that are text files, in order.

    ``.json`` and tables beside other texts are more often about those than texts themselves, and
    compressed files are often the same once more: they count where there are no others.
    """
    files = sorted(path for path in paths if path.is_file() and ending(path) is not None)
    return [path for path in files if ending(path) in ALWAYS] or files


def ending(path: Path) -> str | None:
    """Return the ending that tells how to read a file; None if it is no text file."""
    name = path.name.lower()
    return next((e for e in ENDINGS if name.endswith(e)), None)


def exists(path: Path) -> bool:
    """Return whether there is such a path; a name that is too long for one is none."""
    try:
        return path.exists()
    except OSError:
        return False


def is_plain(path: Path) -> bool:
    """Return whether a file is text as a whole, without rows."""
    return (ending(path) or "").startswith((".txt", ".raw"))


def read_file(path: Path, reader: Reader, keep_empty: bool) -> list[str]:
    """Read the documents of a file, without byte-order marks.

    Raises:
        CalibrationError: it cannot be read, or no text is found in its rows; says where.
    """
    found = ending(path)
    if found is None:
        raise CalibrationError(
            f"{path}: cannot read {path.suffix or 'a file without ending'}; "
            f"text comes as {', '.join(KINDS)}, also with {' or '.join(PACKED)} at the end."
        )
    kind = next(e for e in KINDS if found.startswith(e))
    try:
        texts = KINDS[kind](path, reader, keep_empty)
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    except (OSError, EOFError, zlib.error, RecursionError) as error:
        raise CalibrationError(f"{path} is damaged or cannot be read: {error}.") from None
    return [text.removeprefix(BOM) for text in texts]


def _plain(path: Path, reader: Reader, keep_empty: bool) -> list[str]:
    # newline="" keeps the file's own line ends: token ids must not depend on the platform.
    with _opened(path, newline="") as file:
        return [file.read()]


def _json_lines(path: Path, reader: Reader, keep_empty: bool) -> list[str]:
    with _opened(path) as file:
        return reader.texts(_lines(path, file), keep_empty)


def _json(path: Path, reader: Reader, keep_empty: bool) -> list[str]:
    """Read one array of rows, or one row; or JSON lines under another name, as C4 has them."""
    with _opened(path) as file:
        content = file.read().removeprefix(BOM)
    try:
        rows = json.loads(content)
    except ValueError as error:
        if content.lstrip().startswith("["):
            raise CalibrationError(f"{path}: not JSON ({str(error).rstrip('.')}).") from None
        return reader.texts(_lines(path, io.StringIO(content)), keep_empty)
    rows = rows if isinstance(rows, list) else [rows]
    return reader.texts(((f"{path}, row {i}", row) for i, row in enumerate(rows, 1)), keep_empty)


def _lines(path: Path, file: TextIO) -> Rows:
    for number, line in enumerate(file, 1):
        line = line.removeprefix(BOM)
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # JSONDecodeError, or a number of too many digits
                raise CalibrationError(f"{where}: not JSON ({str(error).rstrip('.')}).") from None
            yield where, row


def _table(path: Path, reader: Reader, keep_empty: bool) -> list[str]:
    with _opened(path, newline="") as file, _any_length():
        return reader.texts(_cells(path, file), keep_empty)


def _cells(path: Path, file: TextIO) -> Rows:
    """Yield the rows of a table whose first row has the names of the columns."""
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    table = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        for row in table:
            where = f"{path}, line {table.line_num}"
            if None in row:
                raise CalibrationError(
                    f"{where}: more cells than the {len(table.fieldnames or ())} columns that the "
                    "first row names. Put cells that have commas in them into quotes."
                )
            yield where, row
    except csv.Error as error:
        raise CalibrationError(f"{path}, line {table.line_num}: not a table ({error}).") from None


@contextmanager
def _any_length() -> Iterator[None]:
    """Allow cells longer than the 131,072 characters of Python's default."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, reader: Reader, keep_empty: bool) -> list[str]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise CalibrationError(f"{path}: parquet needs pip install 'prunus[hub]'.") from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = reader.columns(str(path), file.schema_arrow.names)
            rows = file.read(columns=columns).to_pylist() if columns else []
    except ArrowInvalid as error:
        raise CalibrationError(f"{path} is not a parquet file ({error}).") from None
    return reader.texts(((f"{path}, row {i}", row) for i, row in enumerate(rows, 1)), keep_empty)


@contextmanager
def _opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file, decompressed, without a byte-order mark at its beginning."""
    encoding: Any = {"encoding": "utf-8-sig", "newline": newline}
    if path.suffix.lower() == ".gz":
        with gzip.open(path, "rt", **encoding) as file:
            yield file
    elif path.suffix.lower() == ".zst":
        yield io.TextIOWrapper(io.BytesIO(_from_zstandard(path)), **encoding)
    else:
        with path.open(**encoding) as file:
            yield file


def _from_zstandard(path: Path) -> bytes:
    """Decompress all frames of a file; a truncated one is an error, not a shorter text."""
    if sys.version_info >= (3, 14):
        from compression import zstd

        try:
            return zstd.decompress(path.read_bytes())
        except zstd.ZstdError as error:
            raise CalibrationError(f"{path} is damaged: {error}.") from None
    try:
        import zstandard
    except ImportError:
        raise CalibrationError(f"{path}: .zst needs pip install 'prunus[zst]'.") from None
    data, parts = path.read_bytes(), []
    try:
        while data:
            frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            parts.append(frame.decompress(data))
            if not frame.eof:
                raise EOFError("the compressed data ends too early")
            data = frame.unused_data
    except zstandard.ZstdError as error:
        raise CalibrationError(f"{path} is damaged: {error}.") from None
    return b"".join(parts)


KINDS: Mapping[str, Callable[[Path, Reader, bool], list[str]]] = {
    ".txt": _plain,
    ".raw": _plain,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
PACKED = (".gz", ".zst")
ENDINGS = (
    *(f"{kind}{packed}" for kind in KINDS if kind != ".parquet" for packed in PACKED),
    *KINDS,
)
ALWAYS = (".txt", ".raw", ".jsonl", ".jsonl.gz", ".json.gz", ".parquet")
