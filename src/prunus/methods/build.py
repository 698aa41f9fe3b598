"""From a name and settings to a composition of parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, cast

from ..base.errors import InputError, UnknownNameError
from ..maths.contracts import BlockPruner, LayerPruner, Pattern
from ..maths.grids import Grid
from ..maths.orders.ordering import Ordering
from ..maths.patterns import NM, OneOf, Unstructured
from ..maths.pruners import MRP, Compose, DaSS, EachLayer, InOrder, OnGrid, SparseGPT
from ..maths.pruners.units import UnitPruner
from ..maths.reconstruction import Reconstruction
from ..maths.refinements import Swaps
from ..maths.scores import OBS
from ..maths.scores.redundancy import Redundancy
from ..maths.scores.units import SecondMoment
from ..maths.shares import BESA, Across, Allocation, Evolve, Slope, Split, Uniform
from ..maths.updates import Keep
from .quantize import with_grid
from .settings import set_field, set_fields
from .table import (
    ALLOCATIONS,
    PERMUTATIONS,
    RECONSTRUCTIONS,
    REFINEMENTS,
    SEARCHES,
    STRUCTURED,
    UPDATES,
    Method,
    find_row,
)  # fmt: skip


class Composition(NamedTuple):
    """The composition that a recipe spells.

    Attributes:
        pruner: of single weights, block by block; or of heads and neurons.
        allocation: how much of each layer is removed; one of heads and neurons has its own.
        sparsity: how much is removed in all.
        reconstruction: of blocks, when their layers are pruned; None: they stay as they are.
    """

    pruner: BlockPruner | UnitPruner
    allocation: Allocation
    sparsity: float
    reconstruction: Reconstruction | None = None

    @property
    def units(self) -> UnitPruner | None:
        """The pruner, if it removes heads and neurons."""
        return self.pruner if isinstance(self.pruner, UnitPruner) else None

    @property
    def weights(self) -> BlockPruner:
        """The pruner of single weights."""
        assert not isinstance(self.pruner, UnitPruner)
        return self.pruner

    @property
    def reads_text(self) -> bool:
        """Whether the method needs calibration."""
        if self.units is not None:
            return self.units.reads_text
        learns = self.reconstruction is not None or not isinstance(self.allocation, Uniform)
        return bool(self.weights.needs) or learns


def build_method(
    name: str,
    pattern: Pattern | None = None,
    settings: Mapping[str, Any] | None = None,
    update: str | None = None,
    refine: str | None = None,
    permutation: str | None = None,
    search: str | None = None,
    grid: Grid | None = None,
    quantize: Literal["before", "after"] | None = None,
    pack: bool = False,
    row: Method | None = None,
) -> BlockPruner:
    """Build the pruner of a row, with another update, a refinement, set fields, orders, a grid.

    >>> build_method("ria", settings={"score.power": 0.4})

    ``row`` is that of an object from outside, which has a name but is not in the table.

    Raises:
        UnknownNameError: no such method.
        InputError: a setting that names no field, or a value of another type.
    """
    pruner = cast(BlockPruner, (row or find_row(name)).build(pattern))
    if update is not None:
        pruner = _on_parts(name, pruner, partial(_updated, name, update))
    if refine is not None:
        pruner = _on_parts(name, pruner, partial(_refined, refine))
    settings = dict(settings or {})
    later = {path: settings.pop(path) for path in [*settings] if path.startswith("permutation.")}
    pruner = _with_settings(pruner, settings)
    ordered = _ordered(name, permutation or "none", search, pruner)
    if later and permutation in (None, "none"):
        raise InputError(f"--set {next(iter(later))} is for a run with --permutation.")
    return with_grid(name, _with_settings(ordered, later), grid, quantize, pack)


def build_allocation(
    method: str,
    pruner: BlockPruner,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    grid: Grid | None = None,
    row: Method | None = None,
) -> Allocation:
    """Build an allocation. It takes weights in the order of the method's own score, if it has one.

    Args:
        method: a row.
        pruner: what ``build_method`` made of it.
        name: in the table of allocations; None: the method's own.
        settings: the allocation's fields, as ``allocation.steps``.
        grid: on which weights are put before they are pruned; BESA learns how to clip for it.
        row: of an object from outside.

    Raises:
        UnknownNameError: no such allocation.
        InputError: a setting that names no field, or a value of another type.
    """
    name = name or (row or find_row(method)).allocation
    if name not in ALLOCATIONS:
        raise UnknownNameError("allocation", name, ALLOCATIONS)
    found = ALLOCATIONS[name]
    inner = pruner.pruner if isinstance(pruner, OnGrid) else pruner
    part = inner.pruner if isinstance(inner, EachLayer) else None
    found = _ordered_by(found, part, grid)
    for path, value in (settings or {}).items():
        found = set_field(found, path, path.split(".")[1:], value)
    return found


def _ordered_by(found: Allocation, part: LayerPruner | None, grid: Grid | None) -> Allocation:
    """Have an allocation that tries masks make those of the method."""
    if isinstance(found, Across):
        split, inside = _ordered_by(found.split, part, None), _ordered_by(found.inside, part, grid)
        return Across(cast(Split, split), cast(BESA, inside))
    if isinstance(found, BESA | Slope | Evolve) and isinstance(part, Compose):
        found = replace(found, score=part.score)
    if isinstance(found, BESA):
        rows = part is not None and part.pattern == Unstructured("row")
        found = replace(found, per="row" if rows else "layer", grid=grid)
    return found


def build_reconstruction(
    name: str | None, settings: Mapping[str, Any] | None = None
) -> Reconstruction | None:
    """Build the reconstruction of blocks or halves, with some fields set; None for none.

    Raises:
        UnknownNameError: no such span.
        InputError: a setting that names no field, or a value of another type.
    """
    name = name or "none"
    if name not in RECONSTRUCTIONS:
        raise UnknownNameError("reconstruction", name, RECONSTRUCTIONS)
    found = RECONSTRUCTIONS[name]
    if found is None and settings:
        raise InputError(f"--set {next(iter(settings))} is for a run with --reconstruct.")
    within = {path.partition(".")[2]: value for path, value in (settings or {}).items()}
    return None if found is None else set_fields(found, within, "reconstruct.")


def build_units(
    name: str,
    settings: Mapping[str, Any] | None = None,
    allocation: str | None = None,
    recovery: str | None = None,
    mlp_only: bool = False,
    text: bool = True,
) -> UnitPruner:
    """Build the pruner of a row that removes heads and neurons, with some fields set.

    Without ``text`` it is the one that reads none.

    >>> build_units("goa", {"heads.threshold": 0.2}, recovery="after")
    """
    pruner = cast(UnitPruner, STRUCTURED[name].build(None))
    pruner = pruner if text else data_free(pruner)
    pruner = cast(UnitPruner, set_fields(pruner, settings or {}))
    if mlp_only and pruner.target == "heads":
        raise InputError(
            "target=heads prunes only heads, but --mlp-only leaves them dense. Drop one."
        )
    if mlp_only:
        pruner = replace(pruner, target="neurons")
    allocation, recovery = allocation or pruner.allocation, recovery or pruner.recovery
    pruner = replace(pruner, allocation=allocation, recovery=recovery)
    for path in settings or {}:
        if path.startswith("recovery_") and pruner.recovery == "none":
            raise InputError(f"--set {path} is for a run with --recovery before, after or both.")
    return pruner


def _with_settings(pruner: BlockPruner, settings: Mapping[str, Any]) -> BlockPruner:
    for path, value in settings.items():
        names = path.split(".")
        if isinstance(pruner, EachLayer) and pruner.ordering and names[0] == "permutation":
            part = "ordering" if names[1:] == ["rows"] else "permutation"
            if part == "ordering" and pruner.ordering.realisation != "fold":
                raise InputError(f"--set {path} is for --permutation fold, whose order it limits.")
            at = names[1:] if part == "ordering" else names
            pruner = replace(pruner, ordering=set_field(pruner.ordering, path, at, value))
        elif isinstance(pruner, EachLayer):
            pruner = replace(pruner, pruner=set_field(pruner.pruner, path, names, value))
        else:
            pruner = set_field(pruner, path, names, value)
    return pruner


def _on_parts(
    name: str, pruner: BlockPruner, change: Callable[[LayerPruner], LayerPruner]
) -> BlockPruner:
    """Change every LayerPruner that the pruner is made of."""
    if isinstance(pruner, EachLayer):
        return replace(pruner, pruner=change(pruner.pruner))
    if isinstance(pruner, DaSS):
        return DaSS(*(cast(Compose, change(rule)) for rule in pruner.rules))
    raise InputError(
        f"{name} prunes whole blocks by its own rule, so no update or refinement fits."
    )


def _updated(name: str, update: str, part: LayerPruner) -> LayerPruner:
    if update not in UPDATES:
        raise UnknownNameError("update", update, UPDATES)
    if not isinstance(part, Compose):
        raise InputError(
            f"{name} chooses weights and updates them together, so --update does not apply. "
            "Use it with magnitude, ri, wanda, ria, dass, or a Compose of your own."
        )
    return replace(part, update=UPDATES[update])


def updates_itself(name: str, row: Method | None = None) -> bool:
    """Return whether the method gives kept weights values of its own, so that no update fits."""
    pruner = (row or find_row(name)).build(None)
    part = pruner.pruner if isinstance(pruner, EachLayer) else pruner
    return not isinstance(part, Compose | DaSS)


def _refined(refine: str, part: LayerPruner) -> LayerPruner:
    """Add exchanges against the values that the kept weights will have."""
    if refine not in REFINEMENTS:
        raise UnknownNameError("refinement", refine, REFINEMENTS)
    if refine == "none":
        return part
    stay = isinstance(part, Compose) and isinstance(part.update, Keep)
    if not isinstance(part, Compose | SparseGPT | MRP):
        raise InputError(
            f"{type(part).__name__} chooses weights by its own rule, so --refine does not apply. "
            "Leave it out, or compose a score: Compose(score, pattern)."
        )
    return replace(part, refinement=Swaps("dense" if stay else "compensated"))


def _ordered(name: str, permutation: str, search: str | None, pruner: BlockPruner) -> BlockPruner:
    """Add the orders that keep most of the method's own score, or of OBS if it has none."""
    if permutation not in PERMUTATIONS:
        raise UnknownNameError("permutation", permutation, PERMUTATIONS)
    if search is not None and search not in SEARCHES:
        raise UnknownNameError("search", search, SEARCHES)
    if permutation == "none":
        if search is not None:
            raise InputError("--search is for a run with --permutation fold, gather or free.")
        return pruner
    if not isinstance(pruner, EachLayer):
        raise InputError(f"{name} prunes some layers along outputs; no --permutation fits all.")
    part, found = pruner.pruner, SEARCHES[search or "assignment"]
    pattern = _grouped(name, part.pattern)
    score = part.score if isinstance(part, Compose) else OBS()
    for kind in (*part.needs, *score.needs):
        if not hasattr(kind, "reordered"):
            raise InputError(
                f"{kind.__name__} has no reordered(order_I), which --permutation needs. Add it."
            )
    if permutation == "free":
        return EachLayer(InOrder(part, score, found))
    realisation = cast(Literal["fold", "gather"], permutation)
    return EachLayer(part, Ordering(realisation, score, pattern, found))


def _grouped(name: str, pattern: Pattern) -> NM:
    """Return the N:M that an order is searched for; of a choice, the one in the middle."""
    options = pattern.options if isinstance(pattern, OneOf) else (pattern,)
    found = [x for x in options if isinstance(x, NM) and x.along == "input"]
    if len(found) < len(options):
        raise InputError(
            f"--permutation is for N:M along inputs, such as --pattern 2:4; {name} has the pattern "
            f"{pattern}."
        )
    if len({x.of for x in found}) > 1:
        raise InputError(
            f"--permutation puts channels into groups of one size, and the patterns {pattern} have "
            "several. Give a choice with one M, such as 4:16,8:16,12:16."
        )
    return sorted(found, key=lambda x: x.sparsity)[len(found) // 2]


def data_free(pruner: UnitPruner) -> UnitPruner:
    """Return the pruner without data: second moments of an identity covariance, for heads too.

    (Text that the model writes itself, calibration "self", is the paper's data-free variant.)
    """
    if not isinstance(pruner.heads, Redundancy) or not isinstance(pruner.neurons, SecondMoment):
        return pruner
    neurons = replace(pruner.neurons, moment="gaussian", identity=True)
    return replace(pruner, heads=neurons, neurons=neurons)
