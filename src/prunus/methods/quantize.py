"""A method on a grid: which methods may come before it, and what can be packed."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ..base.errors import InputError
from ..maths.contracts import BlockPruner, LayerPruner
from ..maths.grids.grid import Grid
from ..maths.pruners import ActivationAware, Compose, DaSS, EachLayer, InOrder, OnGrid
from ..maths.updates import Keep


def with_grid(
    name: str,
    pruner: BlockPruner,
    grid: Grid | None,
    when: Literal["before", "after"] | None = None,
    pack: bool = False,
) -> BlockPruner:
    """Return the pruner of the method ``name``, with its kept weights on the grid.

    Raises:
        InputError: a grid that it cannot keep, or none where it needs one.
    """
    if isinstance(pruner, ActivationAware):
        return _afterwards(pruner, grid, when, pack)
    if grid is None:
        return pruner
    gathers = pruner.ordering is not None and pruner.ordering.realisation == "gather"
    if gathers and (grid.group or pack):
        raise InputError(
            "With --permutation gather the order of pruned inputs is not the stored one, so "
            "neither --group nor --pack can be used. Use --permutation fold, or --group 0 "
            "without --pack."
        )
    if when == "before":
        _check_keeps(name, pruner)
    return OnGrid(pruner, grid, when or "after", pack)


def _afterwards(
    pruner: ActivationAware, grid: Grid | None, when: str | None, pack: bool
) -> ActivationAware:
    if grid is None:
        raise InputError("quantize needs a grid: --bits 2 to 8, and --group where it is not 128.")
    if when is not None:
        raise InputError("--quantize before or after is for `prunus prune`.")
    if pack and pruner.scales:
        raise InputError(
            "Weights with input scales divided out lie on no integer grid, so --pack cannot store "
            "them. Use --no-scales (clipping is packed), or leave --pack out."
        )
    return replace(pruner, grid=grid, pack=pack)


def _check_keeps(name: str, pruner: BlockPruner) -> None:
    """Check that the method keeps values that are on the grid before they are pruned."""
    parts: list[LayerPruner] = []
    if isinstance(pruner, EachLayer):
        parts = [pruner.pruner]
    elif isinstance(pruner, DaSS):
        parts = [*pruner.rules]
    inner = [part.pruner if isinstance(part, InOrder) else part for part in parts]
    if not inner or not all(isinstance(x, Compose) and isinstance(x.update, Keep) for x in inner):
        raise InputError(
            f"{name} gives the kept weights new values, which would leave the grid. Use --quantize "
            "after, or a method that keeps them: magnitude, ri, wanda, ria, dass."
        )
