"""The safetensors files of a checkpoint folder: those that transformers loads, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..base.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMED = "transformers_weights"  # a field of config.json that names another file or index


def check_shards(folder: Path) -> dict[str, Path]:
    """Return every tensor's name and its shard, after a look at each shard's header.

    As transformers reads them: the file that ``transformers_weights`` in config.json names, else
    ``model.safetensors``, else the shards of the index; of a shard all that it holds, also what the
    index leaves out. Others (``consolidated.safetensors``, variants, ``.bin``) do not count.

    Raises:
        CheckpointError: no safetensors; a shard that is missing, damaged or outside of the folder;
            an index that disagrees with the shards.
    """
    chosen = _chosen(folder)
    indexed = _indexed(folder / chosen) if chosen.endswith(".json") else None
    files = sorted(set(indexed.values())) if indexed is not None else [chosen]
    held: dict[str, str] = {}
    for file in files:
        for tensor in _header(folder, file):
            if tensor in held:
                raise CheckpointError(
                    f"{folder}: {tensor} is in two files, {held[tensor]} and {file}. Download the "
                    "checkpoint again, or save it again with save_pretrained."
                )
            held[tensor] = file
    for tensor, file in (indexed or {}).items():
        if held.get(tensor) != file:
            where = f"{held[tensor]} does" if tensor in held else "no other file does either"
            raise CheckpointError(
                f"{folder / chosen} says that {file} holds {tensor}, which it does not ({where}). "
                "The files do not belong together: download the checkpoint again."
            )
    return {tensor: folder / file for tensor, file in held.items()}


def _chosen(folder: Path) -> str:
    """Return the name of the file, or of the index, that transformers begins with."""
    config: Any = None
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        pass  # whoever loads the model says what is wrong with it
    named = config.get(NAMED) if isinstance(config, Mapping) else None
    if isinstance(named, str) and named.endswith((".safetensors", ".safetensors.index.json")):
        _inside(folder / "config.json", Path(named))
        return named
    whole = (folder / SINGLE).exists() or not (folder / INDEX).exists()
    return SINGLE if whole else INDEX


def _indexed(index: Path) -> dict[str, str]:
    """Return the file of each tensor, as the index has it."""
    try:
        content = json.loads(index.read_text("utf-8"))
        files: dict[str, str] = dict(content["weight_map"])
        whole = bool(files)
        paths = [Path(file) for file in set(files.values())]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        whole, paths = False, []
    if not whole:
        raise CheckpointError(f"{index} is damaged; download the checkpoint again.")
    for path in paths:
        _inside(index, path)
    return files


def _inside(said: Path, file: Path) -> None:
    """Check that names lie inside the folder, unresolved: a hub cache links its files elsewhere."""
    if file.is_absolute() or ".." in file.parts:
        raise CheckpointError(f"{said} names {file}, which lies outside of the folder.")


def _header(folder: Path, file: str) -> list[str]:
    """Return the names of a file's tensors."""
    path = folder / file
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {path.name}.{_others(folder)} Give a checkpoint saved as safetensors,"
            " complete."
        )
    try:
        with safe_open(path, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). Download or copy the checkpoint again."
        ) from None


def _others(folder: Path) -> str:
    """Say what else in the folder might be taken for a checkpoint, and why it is not read."""
    if list(folder.glob("*.bin")):
        return " It holds .bin files: prunus does not read pickle."
    variants = sorted(x.name for x in folder.glob("model.*.safetensors"))
    if variants:
        return f" It holds {variants[0]}, a variant: rename it to {SINGLE}."
    if list(folder.glob("consolidated*.safetensors")):
        return " Its consolidated.safetensors has Mistral's own names, not those of transformers."
    return ""


def pieces(tensors: Iterable[tuple[str, Tensor]], size: int) -> Iterator[dict[str, Tensor]]:
    """Yield tensors, as they come, in dictionaries of about ``size`` bytes: a file each."""
    piece: dict[str, Tensor] = {}
    for name, tensor in tensors:
        piece[name] = tensor.detach().contiguous()
        if sum(x.nbytes for x in piece.values()) >= size:
            yield piece
            piece = {}
    if piece:
        yield piece
