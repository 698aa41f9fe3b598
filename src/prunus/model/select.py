"""The layers to prune: all linear layers of all blocks, unless some are left dense."""

from __future__ import annotations

from collections.abc import Sequence

from ..base.arguments import block_range
from ..base.errors import InputError
from .blocks import Block, Layer


def select_layers(
    blocks: Sequence[Block], *, mlp_only: bool = False, skip_blocks: str | None = None
) -> list[Layer]:
    """Select the layers to prune.

    Args:
        blocks: all blocks of the model.
        mlp_only: leave attention dense (DaSS, Tables 1 and 3).
        skip_blocks: ``"A:B"`` leaves blocks A to B − 1 dense, counted from 0 (DaSS, appendix A.3:
            ``10:30`` of LLaMA2-70B's 80).

    Raises:
        InputError: a range outside the model, or nothing left to prune.
    """
    skipped = (
        block_range("--skip-blocks", skip_blocks, len(blocks))
        if skip_blocks is not None
        else range(0)
    )
    layers = [
        layer
        for block in blocks
        if block.index not in skipped
        for layer in block.layers
        if not mlp_only or layer.kind == "mlp"
    ]
    if not layers:
        raise InputError(
            f"Nothing is left to prune: skip_blocks={skip_blocks!r} and mlp_only={mlp_only} leave "
            f"all {len(blocks)} blocks dense. Prune more of the model."
        )
    return layers
