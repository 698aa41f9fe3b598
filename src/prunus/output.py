"""Writes what is there whole or not at all: under a temporary name, renamed at the end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from .errors import CheckpointError


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A folder under a temporary name, renamed to ``output`` when all went well, else removed.

    Raises:
        CheckpointError: ``output`` exists, or cannot be made.
    """
    with _renamed(Path(output)) as folder:
        yield folder


@contextmanager
def new_file(output: str | Path) -> Iterator[Path]:
    """The same for a file, which the caller makes."""
    with _renamed(Path(output), Path(output).name) as path:
        yield path


@contextmanager
def _renamed(output: Path, name: str = "") -> Iterator[Path]:
    _refuse_existing(output)
    with no_new_parents(output):
        folder = _temporary(output)
        try:
            yield folder / name
            _refuse_existing(output)
            (folder / name).rename(output)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{output} could not be written: {error}.") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_output(output: str | Path) -> None:
    """Raise CheckpointError if ``output`` exists or cannot be made: before the work, not after."""
    output = Path(output)
    _refuse_existing(output)
    try:
        try_folder(output.absolute().parent, output.name)
    except OSError as error:
        raise _unwritable(output, error) from None


def _unwritable(output: Path, error: OSError) -> CheckpointError:
    """Without the temporary name, which nobody gave."""
    why = error.strerror or error
    return CheckpointError(f"{output} cannot be written: {why}. Choose another place for it.")


def try_folder(folder: Path, name: str = "prunus") -> None:
    """Raise OSError where the nearest folder that is there takes no such name; nothing is left."""
    near = next(place for place in (folder, *folder.parents) if place.exists())
    Path(tempfile.mkdtemp(prefix=f".{name}.", dir=near)).rmdir()


@contextmanager
def no_new_parents(output: Path) -> Iterator[None]:
    """Folders above ``output`` that come inside and are empty at the end go again."""
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # it is not empty, or was never made
                folder.rmdir()


def unfinished(output: Path) -> Path:
    """The folder of a run that shall become ``output``."""
    return output.parent / f".{output.name}.unfinished"


def _refuse_existing(output: Path) -> None:
    """Nothing is ever overwritten."""
    if os.path.lexists(output):
        left = unfinished(output)
        beside = f" {left} is left of a run that was killed at its end; remove it too."
        raise CheckpointError(
            f"{output} exists. Choose another --output, or remove it first; nothing is overwritten."
            f"{beside if left.exists() else ''}"
        )


def _temporary(output: Path) -> Path:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        folder.chmod(0o755)  # mkdtemp's 0700 is for secrets
    except OSError as error:
        raise _unwritable(output, error) from None
    return folder


def write_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Mapping[str, str],
    own_names: bool = False,
) -> None:
    """Safetensors shards, config, generation config, tokenizer, and ``texts`` by file name.

    ``own_names``: tensors have the names of the model's modules, which some families' files do not.
    """
    model.save_pretrained(folder, max_shard_size="5GB", save_original_format=not own_names)
    write_texts(folder, tokenizer, texts)


def _forget_loading(path: Path) -> None:
    """Take out how transformers was called when it read the tokenizer, which it writes down."""
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {k: v for k, v in content.items() if k not in ("is_local", "local_files_only")}
        if kept != content:
            text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")


def write_texts(folder: Path, tokenizer: Any, texts: Mapping[str, str]) -> None:
    """The tokenizer, and ``texts`` by file name; every file for others to read."""
    if tokenizer is not None:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # the Rust side raises a bare one
            raise OSError(f"the tokenizer could not be written: {error}") from error
        _forget_loading(folder / "tokenizer_config.json")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for file in folder.rglob("*"):  # safetensors writes 0600, which no server's user could read
        file.chmod(0o755 if file.is_dir() else 0o644)
