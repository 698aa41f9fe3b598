"""Errors over depth, and layers pruned one kind at a time (BESA's figures 1a, 1b and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..maths.patterns import Unstructured
from ..maths.scores import Wanda
from ..model.blocks import find_blocks, outputs_first
from .activations import watched
from .desk import Desk
from .entry import Rows


def block_error(desk: Desk, *, windows: int = 8) -> Rows:
    """Measure how far the residual stream behind each block is from the dense model's.

    Args:
        desk: of the run; the first text of its protocol is read.
        windows: how many at most.
    """
    ids_NL = desk.evaluation(windows)
    rows: Rows = {}
    for row, _, fields in desk.entry.cells():
        found = stream_errors(desk.dense, desk.prune(fields).model, ids_NL)
        rows[row] = {f"block {index}": error for index, error in enumerate(found)}
        desk.say(f"{row}: {found[-1]:.4f} behind the last block")
    return rows


@torch.no_grad()
def stream_errors(dense: PreTrainedModel, pruned: PreTrainedModel, ids_NL: Tensor) -> list[float]:
    """Return ``Σ ‖Y − Ŷ‖² / Σ ‖Y‖²`` of what comes out of each block, over all windows."""
    squares: list[tuple[float, float]] = []
    for ids_L in ids_NL:
        pairs = zip(_streams(dense, ids_L), _streams(pruned, ids_L), strict=True)
        found = [
            (float((y - x).square().sum()), float(y.square().sum()))
            for y, x in ((y.double(), x.double()) for y, x in pairs)
        ]
        squares = found if not squares else [
            (a + c, b + d) for (a, b), (c, d) in zip(squares, found, strict=True)
        ]  # fmt: skip
    return [error / size for error, size in squares]


def _streams(model: PreTrainedModel, ids_L: Tensor) -> list[Tensor]:
    """Return what comes out of each block, for one window."""
    found: list[Tensor] = []

    def see(_: nn.Module, __: Any, out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)

    with ExitStack() as stack:
        for block in find_blocks(model).values():
            stack.enter_context(block.register_forward_hook(see))
        device = next(model.parameters()).device
        model(input_ids=ids_L[None].to(device), use_cache=False)
    return found


@torch.no_grad()
def one_layer(desk: Desk, *, sparsities: Sequence[float] = (0.3, 0.5, 0.7, 0.9)) -> Rows:
    """Measure perplexity while one kind of layer alone is pruned, in all blocks, by Wanda."""
    layers = desk.all_linears()
    stats = watched(desk.dense, layers, desk.calibration(), Wanda.needs)
    text = desk.entry.protocol.texts[0]
    rows: Rows = {}
    for kind in dict.fromkeys(name.partition(" ")[0] for name in stats):
        chosen = {name: layers[name] for name in stats if name.partition(" ")[0] == kind}
        rows[kind] = {}
        for sparsity in sparsities:
            with _pruned(chosen, stats, sparsity):
                rows[kind][f"{sparsity:.0%}"] = desk.perplexity(desk.dense, text)
        desk.say(f"{kind}: {rows[kind]}")
    return rows


def _pruned(
    layers: Mapping[str, nn.Module], stats: Mapping[str, Any], sparsity: float
) -> ExitStack:
    """Return a context in which these layers of the model are pruned by Wanda."""
    stack = ExitStack()
    for name, layer in layers.items():
        weight_OI = outputs_first(layer)
        mask_OI = Unstructured("row").mask(Wanda()(weight_OI, stats[name]), sparsity)
        stack.callback(weight_OI.copy_, weight_OI.clone())
        weight_OI.masked_fill_(~mask_OI, 0)
    return stack
