"""Counts which share of a model a run covers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from ..model.blocks import Block, find_beside
from ..report import Coverage


def coverage_of(model: PreTrainedModel, blocks: Sequence[Block], planned: set[str]) -> Coverage:
    """Count the parameters of the model, of its blocks, and of the planned layers."""
    layers = [layer for block in blocks for layer in block.layers]
    head = model.get_output_embeddings()
    beside = find_beside(model)
    kept = {p for name in beside for p in model.get_submodule(name).parameters()}
    ends = [m for m in model.modules() if m is head or isinstance(m, nn.Embedding)]
    tables = {p: p.numel() for end in ends for p in end.parameters() if p not in kept}
    return Coverage(
        sum(p.numel() for p in model.parameters()),
        sum(tables.values()),
        sum(layer.weight_OI.numel() for layer in layers),
        sum(layer.weight_OI.numel() for layer in layers if layer.name in planned),
        sum(p.numel() for p in kept),
        beside,
    )
