"""What a model costs when it runs: the bytes of weights that one token reads."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ..judge.traffic import read_bytes
from ..maths.grids import Grid
from ..model.blocks import find_blocks, find_linears, outputs_first
from ..model.zeros import LEAST

SCALE = 16  # bits of the scale of a group of integers


def token_bytes(model: PreTrainedModel, grid: Grid | None) -> int | None:
    """Return the bytes of weights that one token reads, at batch 1; None with experts.

    A linear layer of a block counts as packed where that is smaller: one bit for each weight and b
    for each that is kept. b is that of the model's dtype, or of the grid, which adds a scale of 16
    bits for each group. All else counts as it is.

    Args:
        model: in memory, with zeros as numbers.
        grid: of its weights; None: they are not quantised.
    """
    sizes = read_bytes(model)
    if sizes is None:
        return None
    for name, block in find_blocks(model).items():
        for layer, module in find_linears(name, block).items():
            if layer in sizes:
                sizes[layer] = min(sizes[layer], _bytes(module, grid))
    return sum(sizes.values())


def _bytes(module: nn.Module, grid: Grid | None) -> int:
    weight_OI = outputs_first(module)
    bits, scales = 8 * weight_OI.element_size(), 0
    if grid is not None:
        bits = grid.bits
        scales = SCALE * weight_OI.numel() // (grid.group or weight_OI.shape[1])
    kept = int((weight_OI != 0).sum())
    mask = weight_OI.numel() if kept <= (1 - LEAST) * weight_OI.numel() else 0
    stored = kept if mask else weight_OI.numel()
    bias = getattr(module, "bias", None)
    return (mask + stored * bits + scales) // 8 + (0 if bias is None else bias.nbytes)
