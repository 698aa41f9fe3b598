"""Compares a checkpoint with the one that it was made from, file by file and bit by bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from ..maths.orders.orders import Orders
from ..model.channels import Channels
from ..model.inspect import any_tokens, inspect
from ..model.interior import Interior
from ..model.weights import Weights
from ..report.report import PruningReport
from ..storage.decoding import CLAIMS
from ..storage.origin import Origin, origin_of, read_config
from ..storage.pruned import pairs
from ..storage.shards import NAMED

WIDTHS = {"num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "n_inner",
          "ffn_dim", "ffn_hidden_size", "d_inner", "n_head"}  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """What may differ from the source, by names in the files.

    Attributes:
        pruned: tensors that hold pruned layers.
        updated: those of them whose kept weights have new values.
        shrunk: those of them that may have lost rows or columns.
        dropped: tensors that were left out, and said so.
        reordered: whether channels are in another order, which ``Channels`` compares.
        dtype: asked for instead of each tensor's own.
        only_zeros: whether zeros of the source must be zeros still.
        fields: of config.json.
    """

    pruned: Collection[str]
    updated: Collection[str]
    shrunk: Collection[str] = ()
    dropped: Collection[str] = ()
    reordered: bool = False
    dtype: str | None = None
    only_zeros: bool = False
    fields: Collection[str] = field(default_factory=set)

    @classmethod
    def of(cls, report: PruningReport, new: Weights, reordered: bool) -> Changes:
        """Read them from a report; the model knows what its parameters are called in the files."""
        updated: dict[str, bool] = {}
        for layer in report.layers:
            updated[layer.parameter] = layer.updated or updated.get(layer.parameter, False)
        smaller = report.structured is not None
        if smaller:  # biases shrink with their layers, or come anew
            biases = {name.removesuffix("weight") + "bias": flag for name, flag in updated.items()}
            updated |= biases
        source = report.source
        return cls(
            pruned=on_disk(new, updated),
            updated=on_disk(new, {name for name, flag in updated.items() if flag}),
            shrunk=on_disk(new, updated) if smaller else (),
            dropped=source.dropped if source else (),
            reordered=reordered,
            dtype=source.dtype if source else None,
            only_zeros=report.only_quantised,
            fields=WIDTHS if smaller else (),
        )


def on_disk(weights: Weights, names: Collection[str]) -> set[str]:
    """Return what the files call these parameters; one that holds experts has a name for each."""
    model, origin = weights.model, origin_of(weights)
    state = model.state_dict()
    shapes = {name: state[name].to("meta") for name in names if name in state}
    found = set(revert_weight_conversion(model, dict(shapes))) | (set(names) - set(state))
    return {origin.own_name(name, model) for name in found} if origin is not None else found


def compare(new: Origin, old: Origin, changes: Changes, source: str | Path) -> list[str]:
    """Return what differs and was not to differ, one sentence for each kind.

    Args:
        new: the checkpoint.
        old: what it was made from; both decoded, where they are stored in fewer bits.
        changes: what may differ.
        source: how the other one is called.
    """
    problems = _names(new, old, changes, source) + _dtypes(new, old, changes, source)
    touched: list[str] = []
    moved: list[str] = []
    filled: list[str] = []
    for name in sorted(new.stored.keys() & old.stored.keys()):
        if name in changes.updated and not changes.only_zeros:
            continue
        tensor, was = new.read(name), old.read(name)
        if changes.dtype is not None and was.is_floating_point():
            was = was.to(tensor.dtype)
        if tensor.shape != was.shape or tensor.dtype != was.dtype:
            if name not in changes.shrunk:
                touched.append(name)
        elif name not in changes.pruned:
            if not changes.reordered and not same_bits(tensor, was):
                touched.append(name)
        elif name in changes.updated:
            if bool((tensor[was == 0] != 0).any()):
                filled.append(name)
        elif not changes.reordered and not _same_where_kept(tensor, was):
            moved.append(name)
    problems += _told(touched, "tensors that were not to be pruned differ from", source)
    problems += _moved(moved, source)
    problems += [f"{name} has values where {source} has zeros." for name in filled]
    return problems + _fields(new, old, changes, source) + _files(new, old, source)


def compare_models(
    new: Weights, old: Weights, source: str | Path, report: PruningReport, orders: Orders
) -> tuple[list[str], str]:
    """Compare through the loader, in the output's dtype, with the source's channels in order.

    Returns what is wrong, and what was looked at.
    """
    interiors = _interiors(old, orders)
    pruned: dict[str, bool] = {}
    for layer in report.layers:
        pruned[layer.parameter] = layer.updated or pruned.get(layer.parameter, False)
    problems: list[str] = []
    touched, moved, others = [], [], 0

    def fold(block: str) -> None:
        for site, order_I in orders.folded.items():
            if site.startswith(f"{block}."):
                interiors[site].fold(order_I)

    for name, tensor, was in pairs(new, old, fold):
        others += name not in pruned
        if was is None or was.shape != tensor.shape:
            touched.append(name)
        elif name not in pruned and not torch.equal(was.to(tensor.dtype), tensor):
            touched.append(name)
        elif name in pruned and not pruned[name]:
            kept = tensor != 0
            if not torch.equal(was.to(tensor.dtype)[kept], tensor[kept]):
                moved.append(name)
        elif name in pruned and report.only_quantised and bool(tensor[was == 0].any()):
            problems.append(f"{name} has values where {source} has zeros.")
    problems += _told(touched, "tensors that were not to be pruned differ from", source)
    problems += _moved(moved, source)
    return problems, f"{others} other tensors, and kept weights, as in {source}"


def _interiors(old: Weights, orders: Orders) -> Mapping[str, Interior]:
    """Of the source, whose residual stream is brought into the checkpoint's order."""
    if orders.residual is None and not orders.folded:
        return {}
    ids = any_tokens(old.model)
    blocks, traced = inspect(old.model, ids, old)
    channels = Channels.of(old, blocks, traced, ids, orders.residual is not None)
    channels.check(orders)
    if orders.residual is not None:
        channels.fold_residual(orders.residual)
    return channels.interiors


def same_bits(tensor: Tensor, was: Tensor) -> bool:
    """Whether two tensors of one dtype and shape have the same bytes, NaN or not."""
    both = (x.contiguous().reshape(-1).view(torch.uint8) for x in (tensor, was))
    return torch.equal(*both)


def _same_where_kept(tensor: Tensor, was: Tensor) -> bool:
    kept = tensor != 0
    return same_bits(tensor[kept], was[kept])


def _told(names: list[str], what: str, source: object) -> list[str]:
    return [f"{len(names)} {what} {source}: {_few(names)}"] if names else []


def _moved(names: list[str], source: object) -> list[str]:
    if not names:
        return []
    return [
        f"The kept weights of {_few(names)} differ from {source}; the report says that this method "
        "keeps them."
    ]


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _names(new: Origin, old: Origin, changes: Changes, source: object) -> list[str]:
    lost = sorted(set(old.stored) - set(new.stored) - set(changes.dropped))
    added = sorted(set(new.stored) - set(old.stored) - set(changes.shrunk))
    problems = _told(lost, "tensors are missing that are in", source)
    return problems + _told(added, "tensors are not in", source)


def _dtypes(new: Origin, old: Origin, changes: Changes, source: object) -> list[str]:
    if changes.dtype is not None:
        return []
    both = new.stored.keys() & old.stored.keys()
    cast = sorted(name for name in both if new.stored[name].dtype != old.stored[name].dtype)
    return _told(cast, "tensors have another dtype than in", source)


def _fields(new: Origin, old: Origin, changes: Changes, source: object) -> list[str]:
    """Fields of config.json that differ, but for what must."""
    now, was = read_config(new.folder), read_config(old.folder)
    free = {*CLAIMS, NAMED, *changes.fields}
    if changes.dtype is not None:
        free |= {"dtype", "torch_dtype"}
    if "architectures" not in was:
        free.add("architectures")
    if _separate_head(old):
        free |= {"tie_word_embeddings", "text_config"}
    differ = [key for key in {**was, **now} if key not in free and now.get(key) != was.get(key)]
    return _told(sorted(differ), "fields of config.json differ from", source)


def _separate_head(origin: Origin) -> bool:
    """Whether a head is stored beside embeddings that config.json ties it to."""
    said: Mapping[str, object] = read_config(origin.folder)
    text = said.get("text_config")
    tied = said.get("tie_word_embeddings")
    if isinstance(text, dict):
        tied = tied or text.get("tie_word_embeddings")
    return bool(tied) and any(name.endswith("lm_head.weight") for name in origin.tensors)


def _files(new: Origin, old: Origin, source: object) -> list[str]:
    """Files beside the weights that are not the source's, byte for byte."""
    differ = [
        name
        for name in old.taken_over(True).files
        if not (new.folder / name).is_file()
        or (new.folder / name).read_bytes() != (old.folder / name).read_bytes()
    ]
    return _told(differ, "files beside the weights are not as in", source)
