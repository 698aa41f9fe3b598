"""Writes of a model that is in memory, and of the texts beside any checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..base.atomic import readable


def write_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Mapping[str, str],
    own_names: bool = False,
) -> None:
    """Write safetensors shards, configs, tokenizer, and ``texts`` by file name.

    ``own_names``: tensors have the names of the model's modules, which some families' files do not.
    """
    model.save_pretrained(folder, max_shard_size="5GB", save_original_format=not own_names)
    write_texts(folder, tokenizer, texts)


def _forget_loading(path: Path) -> None:
    """Remove how transformers was called to read the tokenizer, which it records."""
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {k: v for k, v in content.items() if k not in ("is_local", "local_files_only")}
        if kept != content:
            text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")


def write_texts(folder: Path, tokenizer: Any, texts: Mapping[str, str]) -> None:
    """Write the tokenizer, and ``texts`` by file name; make every file readable for others."""
    if tokenizer is not None:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # the Rust side raises a bare one
            raise OSError(f"the tokenizer could not be written: {error}") from error
        _forget_loading(folder / "tokenizer_config.json")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for file in folder.rglob("*"):  # safetensors writes 0600, which no server's user could read
        readable(file)
