"""2:4 weights as torch's semi-structured tensors, which sparse tensor cores multiply."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured
from transformers import PreTrainedModel

from ..base.errors import CheckpointWarning, InputError, PatternError
from ..model.blocks import outputs_first
from ..report.layer import LayerReport
from .indexed import index

ALONG_OUTPUTS = (
    "have zeros along their outputs. Sparse tensor cores skip zeros along the inputs, over which a "
    "product sums, so nothing can multiply these layers in fewer steps"
)
FREE = "have zeros in an order of the inputs that is not the stored one"
OTHER = "have another pattern"
ROWS, COLUMNS = 32, 64  # both sides must be multiples, in torch's stricter backend (CUTLASS)


def to_semi_structured(model: PreTrainedModel, layers: Sequence[LayerReport]) -> None:
    """Replace the weights of 2:4 layers, in place, on the CUDA device where the model is.

    The layout is checked anywhere. torch calls this interface a prototype: on an H100 each call of
    such a layer took half a millisecond whatever its size, more than the dense layer's
    (docs/speed.md).

    Layers that are not 2:4 along their stored inputs stay dense, with one warning that counts them:
    gate and up of DaSS, which are 2:4 along outputs, among them. torch can hold the transpose of
    such a weight, but only for the product with ``W`` itself, in a backward pass; the layer's own
    product with ``Wᵀ`` sums over the inputs, and there its zeros are in no pattern.

    Raises:
        PatternError: a layer that torch would not take, with its name.
        InputError: no layer is 2:4, or some are experts, or the model is not on a CUDA device.
    """
    chosen = [x for x in layers if _stays_dense(x) is None]
    names = [x.name for x in chosen]
    _warn([x for x in layers if _stays_dense(x) is not None], len(layers))
    experts = [x.name for x in chosen if x.expert is not None]
    if experts:
        raise InputError(
            f"sparse='2:4': {len(experts)} of the layers, such as {experts[0]}, are experts: parts "
            "of one tensor, which torch has no semi-structured form for. Leave sparse out."
        )
    if not names:
        raise InputError("sparse='2:4': the report of this checkpoint names no layer as 2:4.")
    for name in names:
        check_layout(name, outputs_first(model.get_submodule(name)))
    if model.device.type != "cuda":
        raise InputError(
            f"sparse='2:4': all {len(names)} such layers have the layout, but torch multiplies it "
            f"on CUDA alone and the model is on {model.device.type}. Give device='cuda', or leave "
            "sparse out."
        )
    for name in names:
        module = model.get_submodule(name)
        compressed = to_sparse_semi_structured(outputs_first(module).contiguous())
        if not isinstance(module, nn.Linear):  # Conv1D multiplies from the other side
            bias = module.bias
            outputs, inputs = outputs_first(module).shape
            order_I = getattr(module, "input_order", None)
            module = nn.Linear(inputs, outputs, device="meta")
            module.bias = bias  # type: ignore[assignment]
            if isinstance(order_I, Tensor):
                index(module, order_I)
            model.set_submodule(name, module)
        module.weight = nn.Parameter(compressed, requires_grad=False)


def _stays_dense(layer: LayerReport) -> str | None:
    """Return why a layer is not multiplied as 2:4; None if it is."""
    if layer.notes.get("order") == "free":
        return FREE
    if layer.pattern == "2:4":
        return None
    return ALONG_OUTPUTS if layer.pattern.endswith(":output") else OTHER


def _warn(dense: Sequence[LayerReport], layers: int) -> None:
    """Warn once about all layers that stay dense."""
    if not dense:
        return
    reasons: dict[str, list[str]] = {}
    for layer in dense:
        reasons.setdefault(str(_stays_dense(layer)), []).append(layer.name)
    told = "; ".join(
        f"{len(names)} of them, such as {names[0]}, {why}" for why, names in reasons.items()
    )
    warnings.warn(
        f"sparse='2:4': {len(dense)} of the {layers} pruned layers stay dense: {told}.",
        CheckpointWarning,
        stacklevel=4,  # whoever called prunus.load
    )


def check_layout(name: str, weight_OI: Tensor) -> None:
    """Check on any device what ``to_sparse_semi_structured`` asks of a weight.

    Two nonzero values at most in every four consecutive inputs, float16 or bfloat16 (in float32 the
    hardware's pattern is 1:2), and sides that are multiples of 32 and 64.

    Raises:
        PatternError: which of these it lacks.
    """
    outputs, inputs = weight_OI.shape
    if weight_OI.dtype not in (torch.float16, torch.bfloat16):
        raise PatternError(
            f"{name} is {weight_OI.dtype}; 2:4 runs in half precision. Load with dtype='bfloat16'."
        )
    if outputs % ROWS or inputs % COLUMNS:
        raise PatternError(
            f"{name} is {outputs} × {inputs}; torch's 2:4 takes multiples of {ROWS} × {COLUMNS}."
        )
    full = int(((weight_OI != 0).reshape(-1, 4).sum(1) > 2).sum())
    if full:
        raise PatternError(
            f"{name} is not 2:4 in the stored order: {full} groups hold more than two values. "
            "Prune with --pattern 2:4, and --permutation fold or none."
        )
