"""Compare a checkpoint with the one that it was made from, file by file and bit by bit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from ..base.words import a_few, number_of
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
from ..storage.widths import widths_of

WIDTHS = {"num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "n_inner",
          "ffn_dim", "ffn_hidden_size", "d_inner", "n_head"}  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """What may differ from the source, by the names in the checkpoint's files.

    Attributes:
        pruned: tensors that hold pruned layers.
        updated: those of them whose kept weights have new values.
        shrunk: those of them that may have lost rows or columns.
        renamed: what the source calls a tensor that it stores under another name.
        apart: tensors of either side that are one on one side and several on the other.
        dropped: tensors that were left out, as the report says.
        reordered: whether channels are in another order, which ``Channels`` compares.
        dtype: dtype that was asked for instead of each tensor's own.
        only_zeros: whether zeros of the source must still be zeros.
        fields: fields of config.json.
    """

    pruned: Collection[str]
    updated: Collection[str]
    shrunk: Collection[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    apart: Collection[str] = ()
    dropped: Collection[str] = ()
    reordered: bool = False
    dtype: str | None = None
    only_zeros: bool = False
    fields: Collection[str] = field(default_factory=set)

    @classmethod
    def of(cls, report: PruningReport, new: Weights, old: Weights, reordered: bool) -> Changes:
        """Read them from a report; the models know what their parameters are called in files."""
        updated = pruned_tensors(report)
        smaller = report.structured is not None
        source = report.source
        renamed, apart = _other_names(new, old)
        return cls(
            pruned=on_disk(new, updated),
            updated=on_disk(new, {name for name, flag in updated.items() if flag}),
            shrunk=on_disk(new, updated) if smaller else (),
            renamed=renamed,
            apart=apart,
            dropped=source.dropped if source else (),
            reordered=reordered,
            dtype=source.dtype if source else None,
            only_zeros=report.only_quantised,
            fields=WIDTHS if smaller else (),
        )

    def source_name(self, name: str) -> str:
        """Return what the source calls a tensor of the checkpoint."""
        return self.renamed.get(name, name)


def pruned_tensors(report: PruningReport) -> dict[str, bool]:
    """Return the model's names of all tensors that were pruned, and whether they were updated.

    Biases and norms that were reconstructed count as updated.
    """
    updated: dict[str, bool] = {}
    for layer in report.layers:
        updated[layer.parameter] = layer.updated or updated.get(layer.parameter, False)
    for part in report.reconstructed:
        updated |= dict.fromkeys(part["vectors"], True)
    if report.structured is not None:  # biases shrink with their layers, or come anew
        updated |= {name.removesuffix("weight") + "bias": flag for name, flag in updated.items()}
    return updated


def on_disk(weights: Weights, names: Collection[str]) -> set[str]:
    """Return what the files call these parameters; one that holds experts has a name for each."""
    model, origin = weights.model, origin_of(weights)
    if widths_of(model) is not None:  # prunus.load reads it, which renames nothing
        return set(names)
    state = model.state_dict()
    shapes = {name: state[name].to("meta") for name in names if name in state}
    found = set(revert_weight_conversion(model, dict(shapes))) | (set(names) - set(state))
    return {origin.own_name(name, model) for name in found} if origin is not None else found


def _other_names(new: Weights, old: Weights) -> tuple[dict[str, str], set[str]]:
    """Return what the source calls tensors otherwise, and the names of those that are merged."""
    renamed: dict[str, str] = {}
    apart: set[str] = set()
    if (widths_of(new.model) is None) == (widths_of(old.model) is None):
        return renamed, apart
    for name in new.model.state_dict():
        ours, theirs = on_disk(new, {name}), on_disk(old, {name})
        if len(ours) == len(theirs) == 1:
            renamed[ours.pop()] = theirs.pop()
        else:
            apart |= ours | theirs | {name}
    return renamed, apart


def compare(new: Origin, old: Origin, changes: Changes, source: str | Path) -> list[str]:
    """Return what differs and was not to differ, one sentence for each kind.

    Args:
        new: files of the checkpoint.
        old: files that it was made from; both decoded, where they are stored in fewer bits.
        changes: what may differ.
        source: name of the source in messages.
    """
    problems = _names(new, old, changes, source) + _dtypes(new, old, changes, source)
    wrong = Differences()
    for name in sorted(new.stored.keys() - set(changes.apart)):
        theirs = changes.source_name(name)
        if theirs in old.stored and (name not in changes.updated or changes.only_zeros):
            was = old.read(theirs)
            wrong.look(name, new.read(name), was, changes)
    return (
        problems
        + wrong.told(source)
        + _fields(new, old, changes, source)
        + _files(new, old, source)
    )


@dataclass
class Differences:
    """Names of tensors that differ from the source and were not to.

    Attributes:
        touched: tensors that were not to be pruned.
        moved: tensors whose kept weights were to keep their values.
        filled: tensors that were to keep their zeros.
        cut: tensors that were to lose nothing but rows or columns.
    """

    touched: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def look(self, name: str, tensor: Tensor, was: Tensor, changes: Changes) -> None:
        """Compare a tensor that may have new values at most where it has zeros."""
        if changes.dtype is not None and was.is_floating_point():
            was = was.to(tensor.dtype)
        if tensor.dtype != was.dtype:
            self.touched.append(name)
        elif name in changes.shrunk:
            if not is_left_of(tensor, was):
                self.cut.append(name)
        elif tensor.shape != was.shape:
            self.touched.append(name)
        elif name not in changes.pruned:
            if not changes.reordered and not same_bits(tensor, was):
                self.touched.append(name)
        elif name in changes.updated:
            if bool((tensor[was == 0] != 0).any()):
                self.filled.append(name)
        elif not changes.reordered and not _same_where_kept(tensor, was):
            self.moved.append(name)

    def told(self, source: object) -> list[str]:
        """Return one sentence for each kind."""
        problems = _told("Not to be pruned, but not as in", source, self.touched)
        if self.moved:
            problems.append(
                f"The kept weights of {a_few(self.moved)} differ from {source}; the report says "
                "that this method keeps them."
            )
        if self.cut:
            problems.append(
                f"{a_few(self.cut)}: not what {source} has there without some rows or columns; "
                "the report says that this method keeps the rest as it is."
            )
        return problems + [f"{name} has values where {source} has zeros." for name in self.filled]


def compare_models(
    new: Weights,
    old: Weights,
    source: str | Path,
    report: PruningReport,
    orders: Orders,
    only: Collection[str] | None = None,
) -> tuple[list[str], str]:
    """Compare through the loader, in the output's dtype, with the source's channels in order.

    ``only`` names the parameters to look at; None: all. Returns what is wrong, and what was
    compared.
    """
    interiors = _interiors(old, orders)
    pruned, smaller = pruned_tensors(report), report.structured is not None
    wrong, others = Differences(), 0

    def fold(block: str) -> None:
        for site, order_I in orders.folded.items():
            if site.startswith(f"{block}."):
                interiors[site].fold(order_I)

    for name, tensor, was in pairs(new, old, fold):
        if only is not None and name not in only:
            continue
        others += name not in pruned
        if smaller and pruned.get(name, False):
            continue
        if was is None or (was.shape != tensor.shape and not (smaller and name in pruned)):
            wrong.touched.append(name)
            continue
        was = was.to(tensor.dtype)
        if name not in pruned:
            if not torch.equal(was, tensor):
                wrong.touched.append(name)
        elif smaller:
            if not is_left_of(tensor, was):
                wrong.cut.append(name)
        elif not pruned[name]:
            kept = tensor != 0
            if not torch.equal(was[kept], tensor[kept]):
                wrong.moved.append(name)
        elif report.only_quantised and bool(tensor[was == 0].any()):
            wrong.filled.append(name)
    return wrong.told(source), f"{others} other tensors, and kept weights, as in {source}"


def _interiors(old: Weights, orders: Orders) -> Mapping[str, Interior]:
    """Return the source's interiors, after its residual stream was put into the new order."""
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


def is_left_of(tensor: Tensor, was: Tensor) -> bool:
    """Whether a tensor is ``was`` without some rows or some columns, the rest in the same order."""
    if tensor.ndim != was.ndim:
        return False
    if tensor.ndim > 1 and tensor.shape[1] != was.shape[1]:
        tensor, was = tensor.T, was.T
    if tensor.shape[1:] != was.shape[1:]:
        return False
    dense = iter(_row_bytes(was))
    return all(any(row == other for other in dense) for row in _row_bytes(tensor))


def _row_bytes(tensor: Tensor) -> list[bytes]:
    flat = tensor.detach().contiguous().reshape(len(tensor), tensor[:1].numel())
    return [row.tobytes() for row in flat.view(torch.uint8).numpy()]


def _same_where_kept(tensor: Tensor, was: Tensor) -> bool:
    kept = tensor != 0
    return same_bits(tensor[kept], was[kept])


def _told(what: str, source: object, names: list[str], thing: str = "tensor") -> list[str]:
    counted = number_of(len(names), thing)
    return [f"{what} {source}: {counted} ({a_few(names)})"] if names else []


def _names(new: Origin, old: Origin, changes: Changes, source: object) -> list[str]:
    here = {changes.source_name(name): name for name in new.stored.keys() - set(changes.apart)}
    there = old.stored.keys() - set(changes.apart)
    anew = set(changes.shrunk) & set(changes.updated)  # a bias where there was none
    lost = sorted(there - here.keys() - set(changes.dropped))
    added = sorted({here[name] for name in here.keys() - there} - anew)
    problems = _told("Missing, though in", source, lost)
    return problems + _told("Not in", source, added)


def _dtypes(new: Origin, old: Origin, changes: Changes, source: object) -> list[str]:
    if changes.dtype is not None:
        return []
    names = {name: changes.source_name(name) for name in new.stored}
    both = {name: theirs for name, theirs in names.items() if theirs in old.stored}
    cast = sorted(
        n for n, theirs in both.items() if new.stored[n].dtype != old.stored[theirs].dtype
    )
    return _told("Of another dtype than in", source, cast)


def _fields(new: Origin, old: Origin, changes: Changes, source: object) -> list[str]:
    """Return the fields of config.json that differ and must not."""
    now, was = read_config(new.folder), read_config(old.folder)
    free = {*CLAIMS, NAMED, *changes.fields}
    if changes.dtype is not None:
        free |= {"dtype", "torch_dtype"}
    if "architectures" not in was:
        free.add("architectures")
    if _separate_head(old):
        free |= {"tie_word_embeddings", "text_config"}
    names = sorted(name for name, _, _ in differing(now, was, free))
    return _told("Its config.json is not as in", source, names, "field")


def differing(
    now: Mapping[str, Any], was: Mapping[str, Any], free: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields that differ: name, what it is and was; None where it is not there.

    Also those of the configs of parts, such as a text model. ``free`` may differ.
    """
    for key in {**was, **now}:
        new, old = now.get(key), was.get(key)
        if key in free or new == old:
            continue
        if isinstance(new, dict) and isinstance(old, dict):
            yield from ((f"{key}.{part}", n, o) for part, n, o in differing(new, old, free))
        else:
            yield key, new, old


def _separate_head(origin: Origin) -> bool:
    """Whether a head is stored beside embeddings that config.json ties it to."""
    said: Mapping[str, object] = read_config(origin.folder)
    text = said.get("text_config")
    tied = said.get("tie_word_embeddings")
    if isinstance(text, dict):
        tied = tied or text.get("tie_word_embeddings")
    return bool(tied) and any(name.endswith("lm_head.weight") for name in origin.tensors)


def _files(new: Origin, old: Origin, source: object) -> list[str]:
    """Return the files beside the weights that are not the source's, byte for byte."""
    differ = [
        name
        for name in old.taken_over(True).files
        if not (new.folder / name).is_file()
        or (new.folder / name).read_bytes() != (old.folder / name).read_bytes()
    ]
    return _told("Not as in", source, differ, "file")
