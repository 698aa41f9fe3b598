"""``--permutation gather`` at run time: weights in the order of their pattern, behind an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import CheckpointError, InputError
from ..maths.orders.orders import Orders
from ..model.blocks import outputs_first
from ..report.layer import LayerReport


@torch.no_grad()
def index_inputs(model: PreTrainedModel, layers: Sequence[LayerReport], orders: Orders) -> None:
    """Put the columns of gathered layers into their order, and index what they read.

    In place; the model computes the same. Such a model cannot be saved: its weights mean nothing
    without the indices, which are hooks.

    Raises:
        CheckpointError: an order is missing or does not fit.
    """
    for layer in layers:
        if layer.notes.get("order") != "gather":
            continue
        order_I = orders.gathered.get(str(layer.notes.get("site")))
        module = model.get_submodule(layer.name)
        weight_OI = outputs_first(module)
        if order_I is None or len(order_I) != weight_OI.shape[1]:
            raise CheckpointError(f"channel_orders.json has no order that fits {layer.name}.")
        weight_OI.copy_(weight_OI[:, order_I.to(weight_OI.device)])
        index(module, order_I.to(weight_OI.device))
        model.save_pretrained = _refuse  # type: ignore[method-assign]


def index(module: nn.Module, order_I: Tensor) -> None:
    """Make the module read its inputs in this order."""
    module.register_buffer("input_order", order_I, persistent=False)
    module.register_forward_pre_hook(_indexed)


def _indexed(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
    order_I: Tensor = module.input_order  # type: ignore[assignment]
    return (args[0].index_select(-1, order_I), *args[1:])


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise InputError(
        "The weights of this model are in the order of their N:M pattern, behind indices that no "
        "file of weights holds. Copy the checkpoint's folder instead."
    )
