"""Whether a model that is read as a whole fits into memory: by its files' headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from ..base.errors import RoomError
from ..base.memory import available_memory
from ..storage.checkpoint import Source, find
from ..storage.shards import check_shards
from ..storage.widths import FILE as WIDTHS
from .room import gib

SIZES = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # of all others, 1 at least


def check_whole(checkpoint: str | Path, dtype: str, streamed: bool, beside: int = 1) -> None:
    """Raise RoomError if it is not ``streamed`` block by block and cannot be in memory.

    A GGUF, and blocks of different widths, never are.

    Args:
        checkpoint: as it was given.
        dtype: that it is read in.
        streamed: whether it would be read block by block if it can.
        beside: processes of this machine that read it.
    """
    source = find(checkpoint)
    folder = Path(source.location)
    never = source.gguf_file or (folder / WIDTHS).exists()
    if streamed and not never:
        return
    size, there = _size(source, dtype), available_memory() // beside
    if size > there:
        each = f" to each of {beside} processes" if beside > 1 else ""
        raise RoomError(
            f"{checkpoint} is read as a whole here, and takes {gib(size)} of memory; {gib(there)} "
            f"are available{each}. {_levers(source, dtype, streamed, bool(never))}"
        )


def _levers(source: Source, dtype: str, streamed: bool, never: bool) -> str:
    levers = [] if dtype in ("bfloat16", "float16") else ["--dtype bfloat16"]
    if not never and not streamed:
        levers.append(
            "what is read block by block: with --output, another method than llm-pruner, "
            "and --calibration of a text instead of self"
        )
    if source.gguf_file:
        levers.append("a folder of safetensors, which is read block by block")
    return f"Use {', or '.join(levers)}." if levers else "Use a machine with more memory."


def _size(source: Source, dtype: str) -> int:
    """In memory, at least: a GGUF becomes no smaller, all else is as stored or as asked."""
    folder = Path(source.location)
    if source.gguf_file:
        return (folder / source.gguf_file).stat().st_size
    asked = dtype if dtype != "auto" else _declared(folder)
    least = getattr(torch, asked).itemsize if asked in ("float32", "bfloat16", "float16") else 8
    total = 0
    for file in set(check_shards(folder).values()):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                part = opened.get_slice(name)
                stored = SIZES.get(part.get_dtype(), 1)
                numbers = 1
                for length in part.get_shape():
                    numbers *= length
                total += numbers * (least if dtype != "auto" else min(stored, least))
    return total


def _declared(folder: Path) -> str:
    """Return the dtype in config.json, in which transformers reads weights; empty: as stored."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config.get("dtype") or config.get("torch_dtype") or "")
    except (OSError, ValueError, AttributeError):
        return ""
