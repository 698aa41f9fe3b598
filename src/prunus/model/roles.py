"""The purpose of each linear layer of a block, from the data flow of one small forward.

Every layer's output is cut from the graph and becomes a leaf, so the gradient of a layer's input
with respect to a leaf is nonzero exactly when the one reaches the other with no third layer
between. The leaves hold random numbers, and so do zeros in norms and the like: what a layer is for
does not depend on its values, and a model that was pruned to zeros is seen like any other. From
that alone:

- a site is a set of layers that were given the very same tensor;
- a layer **reads the residual stream** if its input depends on the block's input directly, and
  **writes** to it if the block's output depends on its output directly;
- the input of a writer that mixes tokens belongs to an attention's output projection ("o"); one
  that does not, to an MLP's "down" projection;
- negating "v" or "up" negates what they feed, which is true of no "q", "k" or "gate";
- of the two others before an attention, "q" reaches only its own token's output.

Of the experts of a block, one that was given tokens stands for all: the same code multiplies with
each. A layer that feeds none and has at most one output per expert is a router: it stays dense.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..base.errors import UnsupportedModelError
from ..maths.views import Kind, Role
from .blocks import Block, Layer, check_share
from .experts import Expert
from .nonzero import random_like, without_zeros
from .products import called
from .replay import Call
from .weights import Weights

T = TypeVar("T")


@torch.enable_grad()
def probe_block(
    index: int,
    name: str,
    module: nn.Module,
    linears: Mapping[str, nn.Module],
    call: Call,
    hidden: Tensor,
    weights: Weights,
) -> Block:
    """Return the block with its layers' sites, roles and kinds.

    Args:
        index: its position in the model.
        name: its module name.
        module: the block.
        linears: its linear layers, from ``find_linears``.
        call: a recorded call of it.
        hidden: the hidden states of that call, (1, T, d) with T at least 2.
        weights: of the model.

    Raises:
        UnsupportedModelError: a layer that does not run exactly once; experts that are multiplied
            in a way that ``products`` does not see.
    """
    linears, by_hand = _found(module, linears, call, hidden)
    check_share(name, module, linears)
    run = partial(cut_forward, module, linears, call, hidden, by_hand=by_hand)
    leaf, output, inputs, outputs = run()
    twins = _twins(linears, inputs)
    flow = _flow(leaf, output, _without(inputs, twins), _without(outputs, twins))
    roles, fused = _roles(flow, lambda layer: _odd(flow, layer, run(negate=layer)[2]))
    layers = {
        full: Layer(
            full,
            index,
            linears[full],
            roles[full],
            flow.kind(full),
            flow.site[full],
            flow.feeds.get(full),
            fused.get(full, (slice(None),)),
            full in by_hand,
        )
        for full in linears
        if full not in twins
    }
    routers = _routers(layers, flow, linears)
    layers = _sites_renamed(_without(layers, routers))
    every = {x: _twin(x, linears[x], layers[twins[x]], twins) for x in twins} | layers
    interior = {x.site for n, x in every.items() if layers[twins.get(n, n)].site in flow.producers}
    ordered = tuple(every[full] for full in linears if full in every)
    return Block(index, name, module, ordered, frozenset(interior), weights, routers)


def _found(
    module: nn.Module, linears: Mapping[str, nn.Module], call: Call, hidden: Tensor
) -> tuple[dict[str, nn.Module], set[str]]:
    """Return those that are layers, and which of them the block multiplies by hand.

    A linear map that puts out more than a tensor is a router; a 3-D parameter of which no matrix
    was multiplied holds no experts.

    Raises:
        UnsupportedModelError: to watch what is done by hand changes what the block puts out.
    """
    seen: dict[str, Any] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, args, output: seen.update({name: output})

    with ExitStack() as stack, torch.no_grad():
        for name, linear in linears.items():
            stack.callback(linear.register_forward_hook(note(name)).remove)
        expected = call(module, hidden.clone()).float()
    by_hand = set(linears) - set(seen)
    with called(linears[name] for name in by_hand), torch.no_grad():
        found = call(module, hidden.clone()).float()
    off = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not off <= (1e-3 if hidden.dtype == torch.float32 else 0.03):
        raise UnsupportedModelError(
            f"{next(iter(by_hand))}: watching its products changes the output of its block by "
            f"{off:.2g} of the largest value. This architecture is not handled yet."
        )
    layers = {
        name: linear
        for name, linear in linears.items()
        if isinstance(seen.get(name), Tensor | None)
        and not (isinstance(linear, Expert) and linear.stack.transposed is None)
    }
    return layers, by_hand.intersection(layers)


def _twins(linears: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]) -> dict[str, str]:
    """Name, for every expert but one of each stack, the one that ran in its place.

    Raises:
        UnsupportedModelError: the probing tokens reached no expert that can stand for the others.
    """
    experts = {name: m for name, m in linears.items() if isinstance(m, Expert)}
    ran: dict[int, dict[int, int]] = {}  # by the stack's size: of how many stacks each has run
    for name, expert in experts.items():
        times = ran.setdefault(len(expert.stack.tensor), {})
        times[expert.index] = times.get(expert.index, 0) + (name in inputs)
    shown = {size: max(times, key=lambda i: (times[i], -i)) for size, times in ran.items()}
    chosen = {
        expert.stack: name
        for name, expert in experts.items()
        if expert.index == shown[len(expert.stack.tensor)]
    }
    unseen = [name for name in chosen.values() if name not in inputs]
    if unseen:
        raise UnsupportedModelError(
            f"No expert of {', '.join(unseen[:2])} and its like ran in the probing forward of a "
            "few tokens, so prunus cannot tell their role. Not handled yet."
        )
    return {n: chosen[e.stack] for n, e in experts.items() if n != chosen[e.stack]}


def _without(named: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    return {name: value for name, value in named.items() if name not in names}


def _twin(name: str, linear: nn.Module, seen: Layer, twins: Mapping[str, str]) -> Layer:
    """Make the layer of an expert from the one that stands for it."""
    assert isinstance(linear, Expert)
    index = linear.index
    own = {other: twin for twin, other in twins.items() if twin.endswith(f".{index}")}
    site, feeds = own.get(seen.site, seen.site), own.get(seen.feeds or "", seen.feeds)
    return replace(seen, name=name, module=linear, site=site, feeds=feeds)


def _sites_renamed(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Name sites after their first layer, also where a router came first."""
    first: dict[str, str] = {}
    for name, layer in layers.items():
        first.setdefault(layer.site, name)
    return {name: replace(layer, site=first[layer.site]) for name, layer in layers.items()}


def _routers(
    layers: Mapping[str, Layer], flow: _Flow, linears: Mapping[str, nn.Module]
) -> tuple[str, ...]:
    """Find linear maps from the stream to scores of experts, or to one shared expert's gate."""
    stacks = [len(m.stack.tensor) for m in linears.values() if isinstance(m, Expert)]
    return tuple(
        name
        for name, layer in layers.items()
        if layer.expert is None
        and layer.role == "other"
        and layer.feeds is None
        and layer.site not in flow.producers
        and layer.shape[0] <= max(stacks, default=0)
    )


@dataclass
class _Flow:
    """Which layer's output reaches which site's input, with no layer between."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    site: dict[str, str]
    producers: dict[str, list[str]]
    mixing: set[str]
    writers: set[str]

    @property
    def feeds(self) -> dict[str, str]:
        """The interior site that each layer feeds."""
        return {layer: site for site, layers in self.producers.items() for layer in layers}

    def kind(self, layer: str) -> Kind:
        """Return attention if the layer's site, or one that it feeds in turn, mixes tokens."""
        sites, site = [self.site[layer]], self.feeds.get(layer)
        while site is not None and site not in sites:
            sites.append(site)
            site = self.feeds.get(site)
        return "attention" if self.mixing.intersection(sites) else "mlp"


def cut_forward(
    module: nn.Module,
    linears: Mapping[str, nn.Module],
    call: Call,
    hidden: Tensor,
    negate: str | None = None,
    by_hand: Collection[str] = (),
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Run one forward with every layer's output cut off: random, and one negated.

    Returns the block's input and output, and each layer's input and, as a leaf, its output.
    """
    seeds = {name: seed for seed, name in enumerate(linears)}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def cut(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name in inputs:
                raise UnsupportedModelError(f"{name} runs twice in one forward; not handled yet.")
            leaf = random_like(output, seeds[name])
            if negate == name:
                leaf.neg_()
            inputs[name], outputs[name] = args[0], leaf.requires_grad_()
            return leaf.clone()  # a clone: the block may work on it in place

        return hook

    hidden = hidden.detach().clone().requires_grad_()
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(without_zeros(module, but=linears.values()))
        stack.enter_context(called(linears[name] for name in by_hand))
        for name, linear in linears.items():
            stack.callback(linear.register_forward_hook(cut(name)).remove)
        output = call(module, hidden.clone())
    unseen = [n for n, m in linears.items() if n not in inputs and not isinstance(m, Expert)]
    if unseen:
        raise UnsupportedModelError(
            f"{', '.join(unseen[:4])} did not run in the probing forward. Blocks that skip layers, "
            "and lists of experts that are modules, are not handled yet."
        )
    return hidden, output, inputs, outputs


def _flow(
    hidden: Tensor, output: Tensor, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> _Flow:
    # All inputs are alive here, so one address, shape and version is one tensor.
    first: dict[tuple[object, ...], str] = {}
    site = {
        name: first.setdefault((x.data_ptr(), x.shape, x._version), name)
        for name, x in inputs.items()
    }
    flow = _Flow(inputs, outputs, site, {}, set(), set())
    for name in first.values():
        touched = reached(inputs[name], [hidden, *outputs.values()])
        if touched[0]:  # the residual stream itself: nobody's interior
            continue
        flow.producers[name] = [n for n, hit in zip(outputs, touched[1:], strict=True) if hit]
        if any(reached(_last_token(inputs[name]), list(outputs.values()), earlier=True)):
            flow.mixing.add(name)
    written = reached(output, list(outputs.values()))
    flow.writers = {name for name, hit in zip(outputs, written, strict=True) if hit}
    return flow


def reached(target: Tensor, leaves: list[Tensor], earlier: bool = False) -> list[bool]:
    """Tell for each leaf whether ``target`` depends on it (on tokens before the last one)."""
    if target.grad_fn is None:
        return [False] * len(leaves)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(target.shape, generator=generator).to(target)
    gradients = torch.autograd.grad(target, leaves, direction, retain_graph=True, allow_unused=True)
    if earlier:
        return [g is not None and bool(g.flatten(0, -2)[:-1].any()) for g in gradients]
    return [g is not None and bool(g.any()) for g in gradients]


def _last_token(activation: Tensor) -> Tensor:
    """Return the last token's features; some blocks fold batch and tokens together."""
    return activation.flatten(0, -2)[-1]


def _roles(
    flow: _Flow, odd: Callable[[str], bool]
) -> tuple[dict[str, Role], dict[str, tuple[slice, ...]]]:
    """Assign roles by the rules at the top, and the rows of each half of a fused gate and up."""
    roles: dict[str, Role] = dict.fromkeys(flow.inputs, "other")
    fused: dict[str, tuple[slice, ...]] = {}
    for site, producers in flow.producers.items():
        readers = [name for name in flow.inputs if flow.site[name] == site]
        if len(readers) != 1 or readers[0] not in flow.writers:
            continue
        neurons = flow.inputs[site].shape[-1]
        widths = [flow.outputs[name].shape[-1] for name in producers]
        if site in flow.mixing:
            roles[site] = "o"
            if len(producers) == 1:
                roles[producers[0]] = "qkv"
            elif len(producers) == 3:
                roles.update(_attention_roles(flow, site, producers, odd))
            continue
        roles[site] = "down"
        if widths == [neurons]:
            roles[producers[0]] = "up"
        elif widths == [2 * neurons]:
            roles[producers[0]] = "gate_up"
            fused[producers[0]] = _halves(flow, site, producers[0])
        elif widths == [neurons, neurons]:
            up = next((p for p in producers if odd(p)), producers[1])
            roles.update({p: "up" if p == up else "gate" for p in producers})
    return roles, fused


def _attention_roles(
    flow: _Flow, site: str, producers: list[str], odd: Callable[[str], bool]
) -> dict[str, Role]:
    leaves = [flow.outputs[name] for name in producers]
    earlier = reached(_last_token(flow.inputs[site]), leaves, earlier=True)
    roles: dict[str, Role] = {}
    for name, mixes in zip(producers, earlier, strict=True):
        roles[name] = "q" if not mixes else "v" if odd(name) else "k"
    return roles if len(set(roles.values())) == 3 else dict.fromkeys(producers, "other")


def _odd(flow: _Flow, layer: str, negated: Mapping[str, Tensor]) -> bool:
    """Tell whether negating the layer's output negated the input that it feeds."""
    before = flow.inputs[flow.feeds[layer]].detach().float()
    after = negated[flow.feeds[layer]].detach().float()
    return bool((after + before).abs().max() <= 1e-3 * before.abs().max())


def _halves(flow: _Flow, site: str, layer: str) -> tuple[slice, slice]:
    """Find the rows of the halves of a fused gate and up: consecutive or alternating."""
    target, leaf = flow.inputs[site], flow.outputs[layer]
    neurons = target.shape[-1]
    loudest = int(target.detach().abs().flatten(0, -2).sum(0).argmax())
    (gradient,) = torch.autograd.grad(target[..., loudest].sum(), leaf, retain_graph=True)
    rows = gradient.flatten(0, -2).any(0).nonzero().flatten().tolist()
    for halves in (
        (slice(0, neurons), slice(neurons, 2 * neurons)),
        (slice(0, None, 2), slice(1, None, 2)),
    ):
        if rows == [range(2 * neurons)[half][loudest] for half in halves]:
            return halves
    raise UnsupportedModelError(
        f"{layer} fuses the gate and up projections in an order that prunus does not know "
        f"(neuron {loudest} reads rows {rows[:6]}). Not handled yet."
    )
