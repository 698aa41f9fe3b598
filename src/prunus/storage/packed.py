"""Packed checkpoints on disk: ``packed.json`` beside safetensors, as ``docs/packed.md`` has them.

Everything else in the folder is what the dense checkpoint has: config, tokenizer, report. Files are
named so that no other program takes them for a whole model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..base.errors import CheckpointError
from ..maths.packed import PARTS, PREFIX, Packed, Values, check
from .shards import pieces

FILE = "packed.json"
VERSION = 1
SHARD = 2**31  # bytes, after which a new file begins


@dataclass(frozen=True)
class PackedFiles:
    """What ``packed.json`` says.

    Attributes:
        folder: where it lies.
        files: the names of the safetensors files.
        layers: shape (O, I) and values of every packed layer, by its name.
    """

    folder: Path
    files: tuple[str, ...]
    layers: Mapping[str, tuple[tuple[int, int], Values]]

    def read(self) -> dict[str, Tensor]:
        """Return all tensors, mapped from their files.

        Raises:
            CheckpointError: a file that is missing or damaged, a tensor in two files.
        """
        found: dict[str, Tensor] = {}
        for name in self.files:
            for key, tensor in _mapped(self.folder / name):
                if key in found:
                    raise CheckpointError(f"{self.folder}: {key} is in two files; export it again.")
                found[key] = tensor
        return found

    def take(self, name: str, tensors: dict[str, Tensor]) -> Packed:
        """Take the tensors of a packed layer out of all tensors.

        Raises:
            CheckpointError: they are missing or do not belong together.
        """
        shape, values = self.layers[name]
        own = {part: tensors.pop(f"{name}.{PREFIX}{part}", None) for part in PARTS}
        masks, stored, offsets = own["masks"], own["values"], own["offsets"]
        if masks is None or stored is None or offsets is None:
            raise CheckpointError(f"{self.folder} lacks tensors of {name}; export it again.")
        packed = Packed(masks, stored, offsets, own["levels"], own["scales"], values, shape)
        check(packed, f"{name} in {self.folder}")
        return packed


def is_packed(folder: str | Path) -> bool:
    """Whether a folder holds a packed checkpoint."""
    return (Path(folder) / FILE).is_file()


def read_packed(folder: Path) -> PackedFiles:
    """Read ``packed.json``.

    Raises:
        CheckpointError: damaged, or of a later version.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["version"]
        if version == VERSION:
            return _parsed(folder, content)
    except CheckpointError:
        raise
    except Exception as error:  # what a damaged file makes of it
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}). Export the checkpoint again."
        ) from None
    raise CheckpointError(
        f"{path} has version {version!r}; this prunus reads {VERSION}. Install a newer prunus, or "
        "export the checkpoint again."
    )


def _parsed(folder: Path, content: Mapping[str, Any]) -> PackedFiles:
    layers = {}
    for name, said in content["layers"].items():
        outputs, inputs = said["shape"]
        if not all(type(size) is int and 0 < size < 2**31 for size in (outputs, inputs)):
            raise ValueError(f"{name} has shape {said['shape']}")
        layers[name] = (outputs, inputs), Values(said["values"], said["group"])
    files = tuple(content["files"])
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{file!r} is no name of a file")
    return PackedFiles(folder, files, layers)


def _mapped(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():
                yield key, opened.get_tensor(key)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy the whole folder.") from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Export it again.") from None


def write_packed(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor | Packed]],
) -> int:
    """Write tensors and packed layers as they come, and ``packed.json`` last; returns the bytes.

    Args:
        folder: exists, and is renamed by the caller when all is written.
        tensors: by name; of a packed layer the name of its module.
    """
    layers: dict[str, Any] = {}
    files: list[str] = []
    for piece in pieces(_flat(tensors, layers), SHARD):
        files.append(f"packed-{len(files) + 1:05}.safetensors")
        save_file(piece, folder / files[-1])
    index = {"version": VERSION, "files": files, "layers": layers}
    (folder / FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return sum((folder / file).stat().st_size for file in files)


def _flat(
    tensors: Iterable[tuple[str, Tensor | Packed]], layers: dict[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor by its name in a file; note the packed layers."""
    for name, content in tensors:
        if isinstance(content, Packed):
            kind, group = content.values.kind, content.values.group
            layers[name] = {"shape": list(content.shape), "values": kind, "group": group}
            yield from content.named(name).items()
        else:
            yield name, content
