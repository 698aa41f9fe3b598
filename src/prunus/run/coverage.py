"""Counts which share of a model a run covers, and what lies in the rest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from ..model.blocks import Block, find_beside
from ..report import Coverage
from .job import Job


def coverage_of(
    model: PreTrainedModel, blocks: Sequence[Block], planned: Collection[str]
) -> Coverage:
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


@dataclass(frozen=True)
class Kind:
    """Tensors of one kind.

    Attributes:
        kind: a role such as q or down; or norms and biases, embeddings, head, other.
        tensors: how many.
        parameters: in all of them.
        pruned: of those, in tensors that the method is given.
    """

    kind: str
    tensors: int
    parameters: int
    pruned: int


def kinds_of(job: Job, planned: Collection[str]) -> list[Kind]:
    """Count every parameter once, by what it is for."""
    layers = {x.parameter: x for block in job.blocks for x in block.layers}
    ends = [job.model.get_input_embeddings(), job.model.get_output_embeddings()]
    tables = {
        id(p): kind
        for module, kind in zip(reversed(ends), ("head", "embeddings"), strict=True)
        if module is not None
        for p in module.parameters()
    }
    inside = tuple(f"{block.name}." for block in job.blocks)
    counts: dict[str, list[int]] = {}
    kind: str
    for name, parameter in job.model.named_parameters():
        layer = layers.get(name)
        if layer is not None:
            kind = layer.role if layer.role != "other" else "other layers of blocks"
            kind = kind if layer.expert is None else f"{kind} of experts"
        elif name.startswith(inside):
            matrix = parameter.ndim > 1 and not name.endswith("bias")
            kind = f"{'routers and other matrices' if matrix else 'norms and biases'} of blocks"
        else:
            kind = tables.get(id(parameter), "others outside of blocks")
        count = counts.setdefault(kind, [0, 0, 0])
        count[0] += 1
        count[1] += parameter.numel()
        count[2] += parameter.numel() if layer is not None and layer.name in planned else 0
    return [Kind(kind, *count) for kind, count in counts.items()]
