"""The tokens that a block's experts receive, and what happens to experts with too few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..maths.contracts import Needs
from ..maths.stats import ENOUGH, Statistics, TokenSample
from .blocks import Block, Layer


def fed(
    block: Block, stats: Mapping[str, Statistics], needs: Needs, min_tokens: int | None
) -> Mapping[str, Statistics]:
    """Return the statistics of all sites; ``Statistics.white`` for experts with too few tokens.

    So every method prunes such an expert in its own comparison groups, by its weights alone.

    Args:
        block: with the layers.
        stats: of its sites.
        needs: what the method reads.
        min_tokens: how many are enough; None: as many as what the method reads is known to take.
    """
    starved = {
        layer.site: layer
        for layer in block.layers
        if layer.expert is not None
        and stats[layer.site][TokenSample].tokens < _enough(needs, layer.shape[1], min_tokens)
    }
    white: dict[int, Statistics] = {}  # one for all of a width: its Gram is factorised once
    replaced: dict[str, Statistics] = {}
    for site, layer in starved.items() if needs else ():
        inputs = layer.shape[1]
        if inputs not in white:
            white[inputs] = Statistics.white(needs, inputs, layer.weight_OI.device)
        replaced[site] = stats[site].without_knowledge(white[inputs])
    return {**stats, **replaced} if replaced else stats


def _enough(needs: Needs, inputs: int, asked: int | None) -> int:
    if asked is not None:
        return asked
    return max((getattr(k, "enough", lambda _: ENOUGH)(inputs) for k in needs), default=0)


def routed(layer: Layer, stats: Statistics) -> dict[str, Any]:
    """Report how many tokens an expert received, and whether they were too few."""
    if layer.expert is None or TokenSample not in stats:
        return {}
    alone = {} if stats.known else {"by_weights_alone": True}
    return {"tokens": stats[TokenSample].tokens, **alone}
