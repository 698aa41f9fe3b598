"""Load a checkpoint as it is meant to run."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from ..base.arguments import typed
from ..base.device import Dtype, pick_device
from ..base.errors import UnknownNameError
from ..maths.orders.orders import Orders
from ..report.report import FILE as REPORT
from ..report.report import read_report
from ..storage.checkpoint import folder_of, load_model
from .indexed import index_inputs
from .semi_structured import to_semi_structured


@typed
def load(
    checkpoint: str | Path,
    *,
    dtype: Dtype = "auto",
    device: str = "cpu",
    sparse: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model in eval mode from a folder, a hub id or a GGUF.

    Layers that were pruned with ``--permutation gather`` get their weights in the order of the
    pattern, and an index before them.

    >>> prunus.load("pruned", dtype="bfloat16", device="cuda", sparse="2:4")

    Args:
        checkpoint: what ``prunus prune --output`` wrote, or any other.
        dtype: of the weights.
        device: where to put it.
        sparse: ``"2:4"`` makes torch's semi-structured tensors of the 2:4 layers, on CUDA; this
            has not been run yet, for lack of a GPU. Their layout is checked on any device.
        trust_remote_code: run code that comes with the checkpoint.
    """
    if sparse not in (None, "2:4"):
        raise UnknownNameError("sparse", sparse, ["2:4"])
    where = pick_device(device)
    model = load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)
    model.to(where)  # type: ignore[arg-type]
    folder = folder_of(checkpoint)
    if (folder / REPORT).exists():
        layers = read_report(folder).layers
        index_inputs(model, layers, Orders.read(folder))
    else:
        layers = []
    if sparse is not None:
        to_semi_structured(model, layers)
    return model
