"""Gradients of the language-model loss with respect to layers, for the whole model at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..base.errors import NumericalError
from .blocks import Layer


def loss_gradients(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    ids_ST: Tensor,
    seen: Callable[[int, int], None] = lambda done, total: None,
    windows: int | None = None,
) -> dict[str, Tensor]:
    """Compute ``∂L/∂W`` (O, I) by layer name; L is the mean next-token loss over all windows.

    ``windows`` are how many there are in all, where other processes have more: theirs are to be
    added.

    The model is in memory as a whole; beside it as many numbers again as the layers have weights,
    and the activations of one window. Nothing of it is left in the model.
    """
    trained = {id(layer.module.weight) for layer in layers}
    states = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, _ in states:
            parameter.requires_grad_(id(parameter) in trained)
            parameter.grad = None
        for done, ids_T in enumerate(ids_ST, 1):
            ids = ids_T[None].to(model.device)
            with torch.enable_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
                loss = cross_entropy(logits.float(), ids[0, 1:]) / (windows or len(ids_ST))
            loss.backward()
            seen(done, len(ids_ST))
        found = {layer.name: _outputs_first(layer) for layer in layers}
    finally:
        for parameter, required, gradient in states:
            parameter.requires_grad_(required)
            parameter.grad = gradient
    for name, gradient_OI in found.items():
        if not bool(gradient_OI.isfinite().all()):
            raise NumericalError(f"{name}: the gradient holds NaN or inf; use --dtype float32.")
    return found


def _outputs_first(layer: Layer) -> Tensor:
    gradient = layer.module.weight.grad
    assert isinstance(gradient, Tensor)
    return gradient.T if isinstance(layer.module, Conv1D) else gradient
