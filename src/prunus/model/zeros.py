"""The linear layers with so many zeros that leaving them out pays."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from ..base.errors import InputError
from .blocks import find_blocks, find_linears, outputs_first
from .experts import Expert

LEAST = 0.3  # share of zeros, below which a dense product is as good


def share_of_zeros(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, float]]:
    """Yield every linear layer and expert of the blocks: its name, itself, its share of zeros."""
    for name, block in find_blocks(model).items():
        for layer, module in find_linears(name, block).items():
            yield layer, module, float((outputs_first(module) == 0).float().mean())


def sparse_linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers of all blocks that are at least 30 % zeros, by name.

    Experts, which are parts of one tensor, are not among them.

    Raises:
        InputError: there are none.
    """
    found, most, experts = {}, 0.0, 0
    for layer, module, zeros in share_of_zeros(model):
        if isinstance(module, Expert):
            experts += 1
            continue
        most = max(most, zeros)
        if zeros >= LEAST:
            found[layer] = module
    if not found:
        others = f" (its {experts} experts cannot be packed yet)" if experts else ""
        raise InputError(
            f"No linear layer has at least {LEAST:.0%} zeros to leave out; the most is "
            f"{most:.1%}{others}. Prune the model first."
        )
    return found
