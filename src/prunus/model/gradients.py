"""Gradients of the language-model loss with respect to layers, for the whole model at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..base.errors import NumericalError
from ..maths.scores.units import Curvature
from .blocks import Layer


def loss_gradients(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    ids_ST: Tensor,
    seen: Callable[[int, int], None] = lambda done, total: None,
    windows: int | None = None,
    curved: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Curvature]]:
    """Compute ``∂L/∂W`` (O, I) by layer name; L is the mean next-token loss over all windows.

    ``windows`` are how many there are in all, where other processes have more: theirs are to be
    added. ``curved``: also what the gradient of each window by itself says of the curvature, in the
    same passes; else those are left empty.

    The model is in memory as a whole; beside it as many numbers again as the layers have weights
    (``curved``: twice as many, in float32), and the activations of one window. Nothing of it is
    left in the model.
    """
    trained = {id(layer.module.weight) for layer in layers}
    states = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    every = windows or len(ids_ST)
    sums = {layer.name: _Sums(layer) for layer in layers} if curved else {}
    try:
        for parameter, _, _ in states:
            parameter.requires_grad_(id(parameter) in trained)
            parameter.grad = None
        with ExitStack() as stack:
            for each in sums.values():
                stack.callback(each.follow(every))
            for done, ids_T in enumerate(ids_ST, 1):
                _backward(model, ids_T, every)
                seen(done, len(ids_ST))
        found = {
            layer.name: sums[layer.name].gradient_OI if curved else _outputs_first(layer)
            for layer in layers
        }
    finally:
        for parameter, required, gradient in states:
            parameter.requires_grad_(required)
            parameter.grad = gradient
    curvatures = {name: each.curvature for name, each in sums.items()}
    for name, gradient_OI in found.items():
        _check(name, gradient_OI)
        if curved:
            _check(name, curvatures[name].squares_OI)
    return found, curvatures


class _Sums:
    """Sums over windows of one layer's gradient and of its squares, taken as it comes."""

    def __init__(self, layer: Layer) -> None:
        weight_OI = layer.weight_OI.float()
        self._layer = layer
        self.gradient_OI = torch.zeros_like(weight_OI)
        self.curvature = Curvature(
            torch.zeros_like(weight_OI), weight_OI.new_zeros(len(weight_OI)),
            weight_OI.new_zeros(weight_OI.shape[1]),
        )  # fmt: skip

    def follow(self, windows: int) -> Callable[[], None]:
        """Add every window's gradient from now on, and free it; returns what ends that."""
        layer, found = self._layer, self.curvature

        @torch.no_grad()
        def add(parameter: Tensor) -> None:
            gradient_OI = _outputs_first(layer).float()  # of this window's loss / windows
            change_OI = layer.weight_OI.float() * gradient_OI
            self.gradient_OI.add_(gradient_OI)
            found.squares_OI.addcmul_(gradient_OI, gradient_OI, value=windows)
            found.rows_O.add_(change_OI.sum(1).square(), alpha=windows)
            found.columns_I.add_(change_OI.sum(0).square(), alpha=windows)
            parameter.grad = None

        weight: Any = layer.module.weight
        handle = weight.register_post_accumulate_grad_hook(add)
        return lambda: handle.remove()


def _backward(model: PreTrainedModel, ids_T: Tensor, windows: int) -> None:
    """Add the gradient of one window's loss, divided by the number of windows."""
    ids = ids_T[None].to(model.device)
    with torch.enable_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = cross_entropy(logits.float(), ids[0, 1:]) / windows
    loss.backward()


def _check(name: str, gradient_OI: Tensor) -> None:
    if not bool(gradient_OI.isfinite().all()):
        raise NumericalError(f"{name}: the gradient holds NaN or inf; use --dtype float32.")


def _outputs_first(layer: Layer) -> Tensor:
    gradient = layer.module.weight.grad
    assert isinstance(gradient, Tensor)
    return gradient.T if isinstance(layer.module, Conv1D) else gradient
