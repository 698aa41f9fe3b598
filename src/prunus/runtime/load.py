"""Load a checkpoint as it is meant to run."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from ..base.arguments import typed
from ..base.device import Dtype, pick_device
from ..base.errors import InputError, UnknownNameError
from ..maths.orders.orders import Orders
from ..maths.packed import Values
from ..report.report import FILE as REPORT
from ..report.report import read_report
from ..storage.checkpoint import folder_of, load_model
from ..storage.packed import is_packed
from .indexed import index_inputs
from .packed_linear import PackedLinear
from .packed_model import load_packed, pack_layers
from .semi_structured import to_semi_structured


@typed
def load(
    checkpoint: str | Path,
    *,
    dtype: Dtype = "auto",
    device: str = "cpu",
    sparse: str | None = None,
    packed: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model in eval mode from a folder, a hub id or a GGUF.

    Layers that were pruned with ``--permutation gather`` get their weights in the order of the
    pattern, and an index before them.

    >>> prunus.load("pruned", dtype="bfloat16", device="cuda", sparse="2:4")
    >>> prunus.load("pruned", packed="int8")

    Args:
        checkpoint: what ``prunus prune --output`` or ``prunus export --to packed`` wrote, or any
            other.
        dtype: of the weights; in a packed checkpoint, of those that are not packed.
        device: where to put it.
        sparse: ``"2:4"`` makes torch's semi-structured tensors of the 2:4 layers, on CUDA.
            Their layout is checked on any device.
        packed: leave the zeros of pruned layers out, in memory and in products, and keep other
            values as float32, bfloat16 (bf16), float16, int8 or int4. For the CPU; on another
            device, layers are unpacked for every product.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        InputError: ``packed`` where no layer has zeros, for a checkpoint that is packed with other
            values, or with ``sparse``.
    """
    if sparse not in (None, "2:4"):
        raise UnknownNameError("sparse", sparse, ["2:4"])
    values = None if packed is None else Values.of(packed)
    where = pick_device(device)
    folder = folder_of(checkpoint)
    if is_packed(folder) or values is not None:
        if sparse is not None:
            raise InputError("Packed layers are not 2:4 tensors of torch; leave sparse out.")
        model = _packed(checkpoint, folder, dtype, values, trust_remote_code)
        model.to(where)  # type: ignore[arg-type]
        return model
    model = load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)
    model.to(where)  # type: ignore[arg-type]
    if (folder / REPORT).exists():
        layers = read_report(folder).layers
        index_inputs(model, layers, Orders.read(folder))
    else:
        layers = []
    if sparse is not None:
        to_semi_structured(model, layers)
    return model


def _packed(
    checkpoint: str | Path, folder: Path, dtype: Dtype, values: Values | None, trust: bool
) -> PreTrainedModel:
    """Load a packed checkpoint, or pack one with zeros; its channels are in their stored order."""
    if not is_packed(folder):
        assert values is not None
        model = load_model(checkpoint, dtype=dtype, trust_remote_code=trust)
        pack_layers(model, values)
        return model
    model = load_packed(folder, dtype, trust)
    there = {module.values.kind for module in model.modules() if isinstance(module, PackedLinear)}
    if values is not None and there != {values.kind}:
        raise InputError(
            f"{checkpoint} is packed already, as {', '.join(sorted(there))}, and not as "
            f"{values.kind}. Leave packed out, or load the checkpoint that it was exported from."
        )
    return model
