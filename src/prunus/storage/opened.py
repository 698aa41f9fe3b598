"""A checkpoint of any form, as plain tensors that are read one at a time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from ..base.errors import CheckpointError
from .checkpoint import explained, find, load_model
from .origin import WEIGHTS, Origin, Stored, read_config
from .packed import FILE as PACKED
from .packed import is_packed, read_packed
from .scratch import Scratch
from .shards import check_shards, pieces
from .widths import skeleton

PIECE = 2**30  # bytes of a GGUF's tensors that become one file
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Opened:
    """A checkpoint, whatever its form.

    Attributes:
        given: as it was named.
        form: ``safetensors``, ``packed``, ``GGUF``, or the format that it was decoded from.
        folder: where its config and tokenizer lie; None for a GGUF, which has them inside.
        config: the fields of its config.json; of a GGUF those that transformers reads from it.
        stored: file, dtype and shape of every tensor, by name.
        read: reads a tensor; those of safetensors are mapped, not copied.
        transposed: names of the matrices that are stored as (I, O).
        held: what must live as long as the tensors are read.
    """

    given: str
    form: str
    folder: Path | None
    config: Mapping[str, Any]
    stored: Mapping[str, Stored]
    read: Callable[[str], Tensor]
    transposed: frozenset[str] = frozenset()
    held: object = None

    @property
    def weights(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(stored.shape) for stored in self.stored.values())

    def config_as_loaded(self, trust_remote_code: bool = False) -> Mapping[str, Any]:
        """Return all fields that transformers knows, those that config.json leaves out too."""
        if self.folder is None:
            return self.config
        with explained(self.given):
            config = AutoConfig.from_pretrained(self.folder, trust_remote_code=trust_remote_code)
        fields: Mapping[str, Any] = config.to_dict()
        return fields

    def files(self) -> dict[str, Path]:
        """Return all files that are neither weights, config.json nor hidden, by name."""
        if self.folder is None:
            return {}
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            hidden = any(part.startswith((".", "__pycache__")) for part in name.parts)
            if path.is_file() and not hidden and not path.name.endswith(WEIGHTS):
                found[name.as_posix()] = path
        found.pop("config.json", None)
        return found


def open_checkpoint(checkpoint: str | Path, *, trust_remote_code: bool = False) -> Opened:
    """Open a folder, plain, quantised or packed, a hub id or a GGUF; read no weights yet.

    A GGUF, and weights in formats of few bits, are decoded into a temporary folder first.

    Raises:
        CheckpointError: none of these, or damaged.
        UnsupportedModelError: an adapter, a pipeline, no language model.
    """
    source = find(checkpoint, packed=True)
    if source.gguf_file is not None:
        return _gguf(checkpoint)
    folder, given = Path(source.location), str(checkpoint)
    config = read_config(folder)
    transposed = _transposed(folder, trust_remote_code)
    if is_packed(folder):
        return _packed(given, folder, config, transposed)
    origin = Origin.of(folder, check_shards(folder))
    form = origin.decoded or "safetensors"
    return Opened(given, form, folder, config, origin.stored, origin.read, transposed, origin)


def _gguf(checkpoint: str | Path) -> Opened:
    """Write what transformers makes of a GGUF to disk, so that its tensors can be mapped."""
    model = load_model(checkpoint)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    state = {name: x for name, x in model.state_dict().items() if name not in tied}
    config, scratch = model.config.to_dict(), Scratch()
    size, free = sum(x.nbytes for x in state.values()), shutil.disk_usage(scratch.path).free
    if size > free:
        raise CheckpointError(
            f"Decoding {checkpoint} takes {size / 2**30:.1f} GiB in {scratch.path.parent}, where "
            f"{free / 2**30:.1f} GiB are free. Make room, or let TMPDIR name a larger disk."
        )
    files: dict[str, Path] = {}
    for number, piece in enumerate(pieces(state.items(), PIECE)):
        file = scratch.path / f"model-{number:05}.safetensors"
        save_file(piece, file)
        files |= dict.fromkeys(piece, file)
    origin = Origin(scratch.path, scratch.path, files, scratch=scratch)
    transposed = _conv1d(model)
    return Opened(
        str(checkpoint), "GGUF", None, config, origin.stored, origin.read, transposed, origin
    )


def _packed(
    given: str, folder: Path, config: Mapping[str, Any], transposed: frozenset[str]
) -> Opened:
    """Lay out packed layers as the dense matrices that they stand for, one at a time."""
    files = read_packed(folder)
    tensors = files.read()
    packed = {f"{layer}.weight": files.take(layer, tensors) for layer in files.layers}
    file = folder / PACKED
    stored = {name: _stored(file, tensor) for name, tensor in tensors.items()}
    for name, own in packed.items():
        shape = own.shape[::-1] if name in transposed else own.shape
        stored[name] = Stored(file, NAMES.get(own.values.kind, own.values.kind), shape)

    def read(name: str) -> Tensor:
        if name not in packed:
            return tensors[name]
        weight_OI = packed[name].dense()
        return weight_OI.T.contiguous() if name in transposed else weight_OI

    return Opened(given, "packed", folder, config, stored, read, transposed, tensors)


def _stored(file: Path, tensor: Tensor) -> Stored:
    name = str(tensor.dtype).removeprefix("torch.")
    return Stored(file, NAMES.get(name, name), tuple(tensor.shape))


def _transposed(folder: Path, trust_remote_code: bool) -> frozenset[str]:
    """Return the names of matrices that the model stores as (I, O); none if it cannot be built."""
    try:
        return _conv1d(skeleton(folder, None, {}, trust_remote_code))
    except Exception:  # of any kind: a family that is not known, code that is not trusted
        return frozenset()


def _conv1d(model: Any) -> frozenset[str]:
    """Return the weights of all ``Conv1D``, with and without the name of the base model."""
    names = [f"{name}.weight" for name, x in model.named_modules() if isinstance(x, Conv1D)]
    prefix = f"{model.base_model_prefix}."
    return frozenset([*names, *(name.removeprefix(prefix) for name in names)])
