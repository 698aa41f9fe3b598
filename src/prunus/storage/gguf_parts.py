"""A GGUF in parts, ``NAME-00001-of-00003.gguf`` and so on, as one: transformers reads one file.

llama.cpp and the hub split large models so. The first part has the keys; the tensors are spread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Any

from ..base.errors import CheckpointError, first_line
from ..base.words import a_few
from .scratch import Scratch

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
SPLIT = "split."  # keys that are about the parts


def parts(file: Path) -> list[Path]:
    """Return all parts of a GGUF in order; the file alone if it is whole.

    Raises:
        CheckpointError: with the parts that are missing.
    """
    match = PART.fullmatch(file.name)
    if match is None:
        return [file]
    name, count = match[1], int(match[3])
    every = [file.with_name(f"{name}-{i:05}-of-{match[3]}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in every if not part.exists()]
    if missing or not every:
        raise CheckpointError(
            f"{file} is one of {count} parts of a GGUF, and of these {a_few(missing) or 'all'} "
            f"{'are' if len(missing) > 1 else 'is'} missing from {file.parent}. Put all parts into "
            "one folder."
        )
    return every


def wholes(files: Sequence[Path]) -> list[Path]:
    """Return each GGUF among these once, by its first part if it is split.

    Raises:
        CheckpointError: as ``parts``.
    """
    return sorted({parts(file)[0] for file in files})


@contextmanager
def whole(folder: str, gguf_file: str | None) -> Iterator[str]:
    """Return the folder to load from: of a split GGUF, one with a whole file of the same name.

    That file lies in the folder for temporary files and is removed at the end.

    Raises:
        CheckpointError: parts that do not belong together, or no room.
    """
    every = parts(Path(folder, gguf_file)) if gguf_file else []
    if len(every) < 2:
        yield folder
        return
    scratch = Scratch()
    size, free = sum(part.stat().st_size for part in every), disk_usage(scratch.path).free
    if size > free:
        raise CheckpointError(
            f"The {len(every)} parts of {every[0]} take {size / 2**30:.1f} GiB as one file in "
            f"{scratch.path.parent}, where {free / 2**30:.1f} GiB are free. Make room, or let "
            "TMPDIR name a larger disk."
        )
    try:
        _merge(every, scratch.path / every[0].name)
    except OSError as error:
        raise CheckpointError(
            f"The {len(every)} parts of {every[0]} could not be put together in "
            f"{scratch.path.parent}: {error.strerror or error}. Let TMPDIR name another folder."
        ) from None
    try:
        yield str(scratch.path)
    finally:
        del scratch


def _merge(every: Sequence[Path], merged: Path) -> None:
    """Write one file; the tensors are copied from mapped files."""
    try:
        from gguf import GGUFReader, GGUFWriter
    except ImportError:
        raise CheckpointError(
            "A GGUF needs the gguf library: pip install 'prunus[gguf]'."
        ) from None
    readers = []
    for part in every:
        try:
            readers.append(GGUFReader(part))
        except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{part} cannot be read as a part of a GGUF: {first_line(error)}. Download it "
                "again."
            ) from None
    _check(every, readers)
    first = readers[0]
    architecture = first.fields["general.architecture"].contents()
    writer = GGUFWriter(merged, architecture, endianess=first.endianess)
    writer.data_alignment = first.alignment
    for key, field in first.fields.items():
        about = key.startswith(("GGUF.", SPLIT)) or key == "general.architecture"
        if about or not field.data:  # an array of nothing says nothing, and cannot be written
            continue
        kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    for reader in readers:
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _check(every: Sequence[Path], readers: Sequence[Any]) -> None:
    """Raise CheckpointError if the parts' keys say that parts are missing or of another model."""
    seen: set[str] = set()
    for number, (part, reader) in enumerate(zip(every, readers, strict=True)):
        said = _said(reader, "no"), _said(reader, "count")
        if said not in ((number, len(every)), (None, None)):
            raise CheckpointError(
                f"{part} says that it is part {said[0]} (from 0) of {said[1]}, but its name says "
                "otherwise. Download the parts again, under the names that they had."
            )
        twice = seen.intersection(tensor.name for tensor in reader.tensors)
        if twice:
            raise CheckpointError(
                f"{part} holds {min(twice)}, which an earlier part holds already: they belong to "
                "different models. Download the parts again."
            )
        seen |= {tensor.name for tensor in reader.tensors}
    expected = _said(readers[0], "tensors.count")
    if "general.architecture" not in readers[0].fields or expected not in (None, len(seen)):
        raise CheckpointError(
            f"The parts of {every[0]} hold {len(seen)} tensors, but the first part declares "
            f"{expected if expected is not None else 'no model'}. Download the parts again."
        )


def _said(reader: Any, key: str) -> int | None:
    field = reader.fields.get(SPLIT + key)
    return None if field is None else int(field.contents())
