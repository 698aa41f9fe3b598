"""The memory that a checkpoint takes as a model, by its files' headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from .checkpoint import Source
from .shards import check_shards

SIZES = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # of all others, 1 at least


def loaded_bytes(source: Source, dtype: str) -> int:
    """Return the bytes, at least: a GGUF becomes no smaller, all else is as stored or as asked."""
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
