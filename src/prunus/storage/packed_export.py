"""A pruned checkpoint as a packed one, a layer at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.arguments import typed
from ..base.atomic import check_output, new_folder, readable
from ..base.errors import CheckpointError
from ..maths.packed import FLOATS, Packed, Values, pack
from ..model.blocks import outputs_first
from ..model.zeros import sparse_linears
from .checkpoint import find, load_model
from .decoding import without_claims
from .origin import WEIGHTS, read_config
from .packed import write_packed


@dataclass(frozen=True)
class ExportedPacked:
    """A record of what was written.

    Attributes:
        output: the folder.
        values: what the kept weights are stored as.
        layers: how many are packed.
        weights: in these layers, kept or not.
        kept: of them.
        packed_bytes: of these layers.
        dense_bytes: of the same layers before.
        bytes: of all weights, those that stay dense too.
    """

    output: str
    values: str
    layers: int
    weights: int
    kept: int
    packed_bytes: int
    dense_bytes: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the record for ``--json``."""
        return asdict(self)


@typed
def write_packed_checkpoint(
    folder: str | Path,
    output: str | Path,
    *,
    values: str = "auto",
    group: int | None = None,
    trust_remote_code: bool = False,
) -> ExportedPacked:
    """Write the checkpoint in ``folder`` with its pruned layers packed, for ``prunus.load``.

    >>> write_packed_checkpoint("pruned", "packed", values="int8")

    Args:
        folder: of safetensors, pruned.
        output: the folder to write, which must not exist.
        values: float32, bfloat16, float16, int8 or int4; "auto": the checkpoint's own dtype, whose
            values come back bit for bit (but −0, which becomes 0).
        group: inputs that share a scale; None: whole rows for int8, 64 for int4.
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        InputError: no layer has zeros to leave out, or no place to write.
        NumericalError: NaN or inf, which integers cannot hold.
    """
    output = Path(output).expanduser()
    check_output(output)
    if values != "auto":
        Values.of(values, group)
    source = find(folder)
    if source.gguf_file:
        raise CheckpointError(f"{folder} is a GGUF; give a folder of safetensors.")
    model = load_model(folder, trust_remote_code=trust_remote_code)
    chosen = sparse_linears(model)
    first = outputs_first(next(iter(chosen.values()))).dtype
    stored = Values.of(_name(first) if values == "auto" else values, group)
    told = _Told()
    with new_folder(output) as made:
        size = write_packed(made, _tensors(model, chosen, stored, told))
        _copy_others(Path(source.location), made)
    return ExportedPacked(
        str(output), str(stored), len(chosen),
        told.weights, told.kept, told.packed, told.dense, size,
    )  # fmt: skip


@dataclass
class _Told:
    weights: int = 0
    kept: int = 0
    packed: int = 0
    dense: int = 0


def _name(dtype: Any) -> str:
    return next((name for name, known in FLOATS.items() if known == dtype), "float32")


def _tensors(
    model: PreTrainedModel, chosen: dict[str, nn.Module], values: Values, told: _Told
) -> Iterator[tuple[str, Tensor | Packed]]:
    """Yield every tensor of the model, packed layers in place of their weights."""
    weights = {f"{name}.weight" for name in chosen}
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    for name, tensor in model.state_dict().items():
        if name in weights:
            layer = name.removesuffix(".weight")
            weight_OI = outputs_first(chosen[layer])
            packed = pack(weight_OI, values)
            told.weights += weight_OI.numel()
            told.kept += int((weight_OI != 0).sum())
            told.packed += packed.nbytes
            told.dense += weight_OI.nbytes
            yield layer, packed
        elif name not in tied:
            yield name, tensor


def _copy_others(folder: Path, made: Path) -> None:
    """Copy config, tokenizer, report and whatever else is no weight."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith(".") and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, made / file.name)
    text = json.dumps(without_claims(read_config(folder)), indent=2, ensure_ascii=False) + "\n"
    (made / "config.json").write_text(text, encoding="utf-8")
    for file in made.iterdir():
        readable(file)
