"""Random numbers in place of zeros, for looks at a block that must not depend on its values.

What a layer is for belongs to the architecture. But nothing passes through a matrix of zeros, a
norm whose weight is zero or a gate that is shut: no gradient, and no error of a wrong order of
channels. So whoever looks at a block puts random numbers there for a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .experts import Expert

Moves = Mapping[str, Sequence[tuple[int, Tensor]]]
"""By parameter, axes and the orders that their channels are in by now."""


def random_like(tensor: Tensor, seed: int) -> Tensor:
    """Return standard normal numbers of the same shape, dtype and device, fixed by the seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator).to(tensor)


def filled(tensor: Tensor, seed: int = 0) -> Tensor:
    """Return the tensor with standard normal numbers in place of its zeros."""
    return torch.where(tensor == 0, random_like(tensor, seed), tensor)


@contextmanager
def without_zeros(
    module: nn.Module,
    *,
    but: Iterable[nn.Module] = (),
    vectors_only: bool = False,
    moves: Moves | None = None,
) -> Iterator[None]:
    """Replace the module's zeros by random numbers; restore them at the end.

    All else keeps its value. A parameter without zeros is not copied. The same zeros get the same
    numbers each time, also after channels have changed places, if ``moves`` says which.

    Args:
        module: with its weights at hand.
        but: modules and experts within it whose own parameters stay.
        vectors_only: leave matrices as they are.
        moves: by the parameter's name in the module.
    """
    kept = _own(but)
    before: list[tuple[nn.Module, str, nn.Parameter]] = []
    changed: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for path, owner in module.named_modules():
        for leaf, parameter in owner.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            if id(parameter) in kept or (vectors_only and parameter.ndim > 1):
                continue
            if id(parameter) not in changed:
                seed, moved = len(changed), (moves or {}).get(name, ())
                values = _values(parameter, seed, moved)
                changed[id(parameter)] = parameter if values is None else values
            before.append((owner, leaf, parameter))
    try:
        for owner, leaf, parameter in before:
            setattr(owner, leaf, changed[id(parameter)])
        yield
    finally:
        for owner, leaf, parameter in before:
            setattr(owner, leaf, parameter)


def _own(modules: Iterable[nn.Module]) -> set[int]:
    """Return the modules' own parameters, by id."""
    found = set()
    for module in modules:
        if isinstance(module, Expert):
            found.add(id(module.stack.tensor))
        found |= {id(parameter) for parameter in module.parameters(recurse=False)}
    return found


@torch.no_grad()
def _values(
    parameter: nn.Parameter, seed: int, moved: Sequence[tuple[int, Tensor]]
) -> nn.Parameter | None:
    """Return the parameter without zeros; None if it has none.

    Vectors scale or shift, so they get numbers from 1/2 to 3/2. So does a -1 in them, which is
    nothing to norms that multiply with 1 + weight (Gemma's). Matrices get normal numbers as large
    as what else is in them, or as those of a new layer.
    """
    if parameter.is_meta or not parameter.is_floating_point():
        return None
    vector = parameter.ndim < 2
    off = (parameter == 0) | (parameter == -1) if vector else parameter == 0
    zeros = int(off.sum())
    if not zeros:
        return None
    generator = torch.Generator().manual_seed(seed)
    if vector:
        values = 0.5 + torch.rand(parameter.shape, generator=generator)
    else:
        total = float(torch.linalg.vector_norm(parameter, dtype=torch.float32))
        others = parameter.numel() - zeros
        scale = total / others**0.5 if others else parameter.shape[-1] ** -0.5
        values = scale * torch.randn(parameter.shape, generator=generator)
    for axis, order in moved:
        values = values.index_select(axis, order.cpu())
    result = torch.where(off, values.to(parameter), parameter)
    return nn.Parameter(result, requires_grad=False)
