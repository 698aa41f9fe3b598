"""The decoder blocks of a model and their linear layers, found by structure alone.

No model names: the blocks are the ModuleList that holds the most parameters of the language model
(a model may have a tower for images beside it, which is kept as it is), a layer is an
``nn.Linear``, transformers' ``Conv1D`` or an expert's matrix in it (``experts``), and ``roles``
finds out what each layer is for. A block with more than a twentieth of its weights elsewhere is
refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..base.errors import NumericalError, UnsupportedModelError
from ..base.words import a_few, number_of
from ..maths.contracts import parameter_of
from ..maths.views import Kind, Role
from .experts import Expert, find_stacks, one_by_one
from .products import called
from .weights import Weights

OTHER = 0.05  # of a block's weights may be convolutions or states (Mamba): they stay dense


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear map of a block, seen as ``weight_OI`` whatever the module stores.

    Attributes:
        name: the module's full name, such as ``model.layers.0.mlp.up_proj``.
        block: index of its block.
        module: the ``nn.Linear`` or ``Conv1D``, or the stand-in for an expert.
        role: what it is for; "qkv" and "gate_up" are fused, "up" alone is a plain MLP's first.
        kind: the half of the block that it belongs to.
        site: name of the first layer that reads the same input; statistics are kept per site.
        feeds: the site whose input its output becomes with no other layer between; None for the
            layers that write to the residual stream.
        parts: the rows of each projection that it fuses; one slice where it fuses none.
        by_hand: whether the block multiplies with its weight and never calls it; see ``products``.
        shown_OI: what to look at in place of the module's own weight; None: that.
    """

    name: str
    block: int
    module: nn.Module
    role: Role
    kind: Kind
    site: str
    feeds: str | None = None
    parts: tuple[slice, ...] = (slice(None),)
    by_hand: bool = False
    shown_OI: Tensor | None = None

    @property
    def transposed(self) -> bool:
        """Whether the module stores (I, O)."""
        return _transposed(self.module)

    @property
    def expert(self) -> int | None:
        """The expert's index in its stack; None for a layer that every token passes through."""
        return self.module.index if isinstance(self.module, Expert) else None

    @property
    def parameter(self) -> str:
        """The full name of the parameter that holds the weight."""
        return parameter_of(self.name, self.expert)

    @property
    def weight_OI(self) -> Tensor:
        """A view of the stored weight, outputs first."""
        return outputs_first(self.module) if self.shown_OI is None else self.shown_OI

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        rows, columns = self.weight_OI.shape
        return rows, columns

    @property
    def bias_O(self) -> Tensor | None:
        """A view of the bias, if there is one."""
        bias = getattr(self.module, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def write(self, weight_OI: Tensor) -> None:
        """Store new values, in the module's own dtype and layout."""
        self.weight_OI.copy_(weight_OI)


@dataclass(frozen=True, eq=False)
class Block:
    """One decoder layer of the model. Its weights are available while it is ``at_hand``.

    Attributes:
        index: its position in the model.
        name: of the module.
        module: the decoder layer.
        layers: its linear maps.
        interior: the sites that other layers of the block feed; the others read the residual.
        weights: of the model.
        routers: names of linear maps that send tokens to experts or weigh what those put out. They
            are no layers: they stay dense.
    """

    index: int
    name: str
    module: nn.Module
    layers: tuple[Layer, ...]
    interior: frozenset[str]
    weights: Weights
    routers: tuple[str, ...] = ()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Return a context for forwards whose hooks must see every layer."""
        with ExitStack() as stack:
            if any(layer.expert is not None for layer in self.layers):
                stack.enter_context(one_by_one(self.weights.model))
            stack.enter_context(called(layer.module for layer in self.layers if layer.by_hand))
            yield

    def at_hand(self) -> AbstractContextManager[nn.Module]:
        """Return a context in which the module has its weights."""
        return self.weights.at_hand(self.name)

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies a gate with an up projection."""
        return any(layer.role in ("gate", "gate_up") for layer in self.layers)

    @property
    def sites(self) -> dict[str, Layer]:
        """The first layer of each site, by the site's name."""
        return {layer.site: layer for layer in self.layers if layer.name == layer.site}

    def planned(self, plan: Collection[str]) -> list[Layer]:
        """Return the layers that the plan names, in the order of the module tree."""
        return [layer for layer in self.layers if layer.name in plan]

    def showing(self, weights: Mapping[str, Tensor]) -> Block:
        """Show other weights (O, I), by layer name; the layer's own are left alone."""
        layers = (replace(x, shown_OI=weights.get(x.name, x.shown_OI)) for x in self.layers)
        return replace(self, layers=tuple(layers))


def outputs_first(module: nn.Module) -> Tensor:
    """Return a view (O, I) of the weight of an ``nn.Linear``, a ``Conv1D`` or an expert."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight.T if _transposed(module) else weight


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the decoder blocks and their names, in order.

    Raises:
        UnsupportedModelError: no ModuleList with linear layers, or blocks that share weights.
    """
    inside, decoder = find_language_model(model)
    lists = _lists(decoder, inside)
    if not lists:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no blocks: no list of modules with linear layers in it. "
            "Prunus prunes decoder language models with at least one block."
        )
    # max() keeps the first of equals, and an outer list comes before the lists inside it.
    name = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    blocks = {f"{name}.{i}": block for i, block in enumerate(lists[name])}
    matrices = [p for block in blocks.values() for p in block.parameters() if p.ndim > 1]
    held = [p.data_ptr() for p in matrices if not p.is_meta]
    if len(set(map(id, matrices))) < len(matrices) or len(set(held)) < len(held):
        raise UnsupportedModelError(
            f"The blocks in {name} share weights with one another; prunus would prune them twice. "
            "Models with shared blocks are not handled yet."
        )
    return blocks


def find_language_model(model: nn.Module) -> tuple[str, nn.Module]:
    """Find the part of the model that holds its decoder blocks, and its name in transformers."""
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    found = ((name, module) for name, module in model.named_modules() if module is decoder)
    name, decoder = next(found, ("", model))
    return (name, decoder) if _lists(decoder, name) else ("", model)


def _lists(module: nn.Module, prefix: str) -> dict[str, nn.ModuleList]:
    """Yield lists of modules with linear layers in them, by full name."""
    return {
        name: inner
        for name, inner in module.named_modules(prefix=prefix)
        if isinstance(inner, nn.ModuleList) and any(map(_is_linear, inner.modules()))
    }


def context_length(model: PreTrainedModel) -> int | None:
    """Return the longest sequence that the model takes, if its config says so."""
    config = model.config.get_text_config()
    found: int | None = getattr(config, "max_position_embeddings", None)
    return found


def find_beside(model: nn.Module) -> list[str]:
    """Name the parts beside the language model of a multimodal one: towers and projectors."""
    if not isinstance(model, PreTrainedModel) or model.config.get_text_config() is model.config:
        return []
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names, path, whole = [], "", model
    for step in find_language_model(model)[0].split("."):
        for name, part in whole.named_children():
            if name != step and any(True for _ in part.parameters()):
                if ends.isdisjoint(map(id, part.modules())):
                    names.append(f"{path}{name}")
        whole, path = getattr(whole, step, whole), f"{path}{step}."
    return names


def check_outside(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Check that the head is the language model's only large linear layer outside of blocks.

    Projections into and out of the blocks may: they are left dense, as embeddings are.

    Raises:
        UnsupportedModelError: outside lies more than a tenth of what is inside.
    """
    inside = {id(m) for block in blocks.values() for m in block.modules()}
    inside |= {id(m) for name in find_beside(model) for m in model.get_submodule(name).modules()}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    outside = {
        name: int(module.weight.numel())
        for name, module in model.named_modules()
        if _is_linear(module) and id(module) not in inside and module is not head
    }
    weights = sum(p.numel() for block in blocks.values() for p in block.parameters())
    if sum(outside.values()) > weights / 10:
        raise UnsupportedModelError(
            f"Outside of the blocks lie {number_of(len(outside), 'linear layer')} "
            f"({a_few(list(outside))}) that would silently stay dense. This architecture is not "
            "handled yet."
        )


def find_linears(name: str, block: nn.Module) -> dict[str, nn.Module]:
    """Find a block's linear layers by full name, and its experts: ``….gate_up_proj.3``.

    Raises:
        UnsupportedModelError: more than a twentieth of the block's weights is in other matrices.
    """
    linears: dict[str, nn.Module] = {}
    for path, module in block.named_modules():
        if _is_linear(module):
            linears[f"{name}.{path}"] = module
        for stack in find_stacks(path, module):
            for index in range(len(stack.tensor)):
                linears[f"{name}.{stack.name}.{index}"] = Expert(stack, index)
    check_share(name, block, linears)
    for layer, module in linears.items():
        weight = module.weight
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise UnsupportedModelError(
                f"{layer} is quantised ({getattr(weight, 'dtype', type(weight).__name__)}). "
                "Prune the unquantised checkpoint."
            )
    return linears


def check_share(name: str, block: nn.Module, linears: Mapping[str, nn.Module]) -> None:
    """Raise UnsupportedModelError if more than a twentieth of a block is in other matrices."""
    held = [m.stack.tensor if isinstance(m, Expert) else m.weight for m in linears.values()]
    known = set(map(id, held))
    parameters = dict(block.named_parameters())
    other = [n for n, p in parameters.items() if p.ndim > 1 and id(p) not in known]
    total = sum(p.numel() for p in parameters.values())  # 0 in a block that was switched off
    share = sum(parameters[n].numel() for n in other) / max(total, 1)
    if share > OTHER:
        raise UnsupportedModelError(
            f"{name} ({type(block).__name__}) has {share:.0%} of its weights outside of linear "
            f"layers and experts: {a_few(other, 4)}. Such "
            "blocks are not handled yet: a part of them would silently stay dense."
        )


def check_finite(linears: Mapping[str, nn.Module]) -> None:
    """Raise NumericalError with the first layer whose weight holds NaN or inf."""
    for layer, module in linears.items():
        if not bool(torch.isfinite(outputs_first(module)).all()):
            raise NumericalError(
                f"{layer}.weight holds NaN or inf. The checkpoint is damaged or overflowed when it "
                "was converted; get a sound one, or load it in float32."
            )


def check_outside_finite(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Raise NumericalError if embeddings, last norm or head hold NaN or inf."""
    inside = tuple(f"{name}." for name in blocks)
    for name, parameter in model.named_parameters():
        if not name.startswith(inside) and not parameter.is_meta:
            if not bool(parameter.isfinite().all()):
                raise NumericalError(
                    f"{name} holds NaN or inf. The checkpoint is damaged or overflowed when it was "
                    "converted; get a sound one."
                )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _transposed(module: nn.Module) -> bool:
    return module.transposed if isinstance(module, Expert) else isinstance(module, Conv1D)
