"""The paper table: one row per method, a literal composition of parts.

To add a method: write its part, add a row here, add its golden value to the tests. Nothing else.
From outside of the package: ``prunus.register`` adds a row, and an object takes a row's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

from ..base.errors import InputError, UnknownNameError
from ..maths.contracts import BlockPruner, LayerPruner, Pattern, Permutation, Score, Update
from ..maths.grids import Grid
from ..maths.orders import Assignment, Greedy, Heuristic
from ..maths.orders.ordering import Ordering
from ..maths.patterns import NM, Unstructured
from ..maths.pruners import (
    MRP,
    ActivationAware,
    Compose,
    DaSS,
    EachLayer,
    InOrder,
    OnGrid,
    SparseGPT,
)
from ..maths.pruners.units import UnitPruner
from ..maths.refinements import Swaps
from ..maths.scores import OBS, RIA, Magnitude, RelativeImportance, Wanda
from ..maths.shares import BESA, OWL, Allocation, Uniform
from ..maths.updates import Keep, LeastSquares, SparseGPTSweep
from .quantize import with_grid
from .settings import set_field
from .units import STRUCTURED, StructuredMethod, data_free


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        paper: authors, year, title.
        url: where to read it.
        build: the composition; a pattern of None means the method's own comparison groups.
        differs: what differs from the authors' code.
        allocation: how much of each layer goes, unless another is asked for.
        gated: whether it is about gated MLPs, and another method without one.
    """

    paper: str
    url: str
    build: Callable[[Pattern | None], BlockPruner]
    differs: str
    allocation: str = "uniform"
    gated: bool = False

    @property
    def parts(self) -> str:
        """The composition, spelled out."""
        return repr(self.build(None))

    @property
    def needs(self) -> str:
        """What it reads beside the weights."""
        return ", ".join(kind.__name__ for kind in self.build(None).needs) or "nothing (data-free)"


def _scored(score: Score, group: Unstructured) -> Callable[[Pattern | None], BlockPruner]:
    return lambda pattern: EachLayer(Compose(score, pattern or group))


def _sparsegpt(pattern: Pattern | None) -> BlockPruner:
    return EachLayer(SparseGPT(pattern or Unstructured("layer")))


def _mrp(mask: Literal["S", "M"], compensation: Literal["S", "M"]) -> Method:
    own = NM(2, 4) if mask == "M" else Unstructured("layer")  # mask M is for N:M alone
    if mask == compensation == "S":  # "SS is just SparseGPT" (section 4.3.1)
        build = _sparsegpt
    else:

        def build(pattern: Pattern | None) -> BlockPruner:
            return EachLayer(MRP(pattern or own, mask, compensation))

    return Method(
        paper="Zhao et al. 2024, Pruning Foundation Models for High Accuracy without Retraining",
        url="https://arxiv.org/abs/2410.15567",
        build=build,
        differs=f"No code by the authors exists. Mask {mask}, compensation {compensation}; "
        "conjugate gradients with a certified gap for the optimum of eq. 11.",
    )


ALLOCATIONS: Mapping[str, Allocation] = {"uniform": Uniform(), "owl": OWL(), "besa": BESA()}

UPDATES: Mapping[str, Update] = {
    "keep": Keep(),
    "sparsegpt": SparseGPTSweep(),
    "least-squares": LeastSquares(),
}

REFINEMENTS = ("none", "swaps")
PERMUTATIONS = ("none", "fold", "gather", "free")
SEARCHES: Mapping[str, Permutation] = {
    "assignment": Assignment(),
    "heuristic": Heuristic(),
    "greedy": Greedy(),
}

METHODS: dict[str, Method] = {
    "magnitude": Method(
        paper="Han et al. 2015, Learning both Weights and Connections",
        url="https://arxiv.org/abs/1506.02626",
        build=_scored(Magnitude(), Unstructured("layer")),
        differs="Wanda's and SparseGPT's baselines remove every weight <= a threshold, one more "
        "than asked and all ties; here the count is exact.",
    ),
    "ri": Method(
        paper="Zhang et al. 2024 (ICLR), Plug-and-Play, eq. 2",
        url="https://openreview.net/forum?id=Tr0lPx9woF",
        build=_scored(RelativeImportance(), Unstructured("layer")),
        differs="Float32 sums (theirs in the weight's dtype); exact count.",
    ),
    "wanda": Method(
        paper="Sun et al. 2024 (ICLR), A Simple and Effective Pruning Approach",
        url="https://arxiv.org/abs/2306.11695",
        build=_scored(Wanda(), Unstructured("row")),
        differs="Root mean square over tokens for the L2 norm: the same masks.",
    ),
    "ria": Method(
        paper="Zhang et al. 2024 (ICLR), Plug-and-Play, eq. 3",
        url="https://openreview.net/forum?id=Tr0lPx9woF",
        build=_scored(RIA(), Unstructured("layer")),
        differs="The paper is silent on comparison groups; as their code, per layer (their flag "
        "per_outneuron is --pattern row). Float32 sums; exact count.",
    ),
    "dass": Method(
        paper="Guo et al. (TMLR), Dependency-Aware Semi-Structured Sparsity",
        url="https://openreview.net/forum?id=T50uTgPzHS",
        build=DaSS.with_pattern,
        differs="Attention by Wanda as in the paper's Table 2; their code never prunes it "
        "(--mlp-only).",
        gated=True,
    ),
    "sparsegpt": Method(
        paper="Frantar & Alistarh 2023 (ICML), SparseGPT",
        url="https://arxiv.org/abs/2301.00774",
        build=_sparsegpt,
        differs="The count is exact (theirs removes at least one weight more per column block); "
        "weights of dead inputs go first, within the sparsity.",
    ),
    "besa": Method(
        paper="Xu et al. 2024 (ICLR), Blockwise Parameter-Efficient Sparsity Allocation",
        url="https://arxiv.org/abs/2402.16880",
        build=_scored(Wanda(), Unstructured("row")),
        differs="A plain softmax (theirs, of a sigmoid, holds shares in 0.376 to 0.624), masks by "
        "eq. 5 (theirs: a count), the Frobenius loss of eq. 1 (theirs: by channel); Adam for "
        "Prodigy; the budget is met exactly (theirs: 49.72 %).",
        allocation="besa",
    ),
    "mrp-ss": _mrp("S", "S"),
    "mrp-sm": _mrp("S", "M"),
    "mrp-ms": _mrp("M", "S"),
    "mrp-mm": _mrp("M", "M"),
}

QUANTIZE = "quantize"  # no method of pruning: what `prunus quantize` runs on a pruned model
QUANTIZATION = Method(
    paper="Lin et al. 2024 (MLSys), AWQ: Activation-aware Weight Quantization",
    url="https://arxiv.org/abs/2306.00978",
    build=lambda pattern: ActivationAware(zeros=pattern or Unstructured("layer")),
    differs="Scales by the root mean square and the Gram; not folded into the layers before, "
    "but divided out of the weights again.",
)


def all_rows() -> dict[str, Method | StructuredMethod]:
    """The whole table: with what other packages registered, and with heads and neurons."""
    from .registry import load_plugins

    load_plugins()
    return {**METHODS, **STRUCTURED}


def known_row(name: str) -> Method | None:
    """The row of a name, where it is known by now; None for heads and neurons too."""
    return QUANTIZATION if name == QUANTIZE else METHODS.get(name)


def published(name: str) -> tuple[str | None, str]:
    """Return paper and address of any row; None for an object that is in no table."""
    row = known_row(name) or STRUCTURED.get(name)
    return (None, "") if row is None else (row.paper, row.url)


def find_row(name: str) -> Method:
    """The row of a name. Plug-ins are loaded when it is not known without them.

    Raises:
        UnknownNameError: no such method.
        InputError: the name of an object that was given in Python.
    """
    if known_row(name) is None and "." in name:  # no name in the table has a dot
        raise InputError(
            f"The method {name} was an object of Python, which a recipe names and cannot hold. "
            "Give the object again: prunus.prune(model, recipe, method=…); or give it a name with "
            "prunus.register."
        )
    if known_row(name) is None:
        rows = all_rows()
        if name not in METHODS:
            raise UnknownNameError("method", name, rows)
    return known_row(name) or METHODS[name]


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
    """The pruner of a row, with another update, a refinement, some fields set, orders, a grid.

    >>> build_method("ria", settings={"score.power": 0.4})

    ``row`` is that of an object from outside, which has a name but is not in the table.

    Raises:
        UnknownNameError: no such method.
        InputError: a setting that names no field, or a value of another type.
    """
    pruner = (row or find_row(name)).build(pattern)
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
    """How much of each layer goes. BESA learns in the order of the method's own score, if any.

    Args:
        method: a row.
        pruner: what ``build_method`` made of it.
        name: uniform, owl or besa; None: the method's own.
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
    if isinstance(found, BESA):
        score = part.score if isinstance(part, Compose) else found.score
        rows = part is not None and part.pattern == Unstructured("row")
        found = replace(found, score=score, per="row" if rows else "layer", grid=grid)
    for path, value in (settings or {}).items():
        found = set_field(found, path, path.split(".")[1:], value)
    return found


def build_structured(
    name: str,
    settings: Mapping[str, Any] | None = None,
    allocation: str | None = None,
    recovery: str | None = None,
    mlp_only: bool = False,
    text: bool = True,
) -> UnitPruner:
    """The pruner of a structured row, with some fields set; without ``text`` the data-free one.

    >>> build_structured("goa", {"heads.threshold": 0.2}, recovery="after")
    """
    pruner = STRUCTURED[name].pruner if text else data_free(STRUCTURED[name].pruner)
    for path, value in (settings or {}).items():
        pruner = set_field(pruner, path, path.split("."), value)
    if mlp_only and pruner.target == "heads":
        raise InputError("target=heads prunes heads alone, and --mlp-only leaves them. Drop one.")
    if mlp_only:
        pruner = replace(pruner, target="neurons")
    allocation, recovery = allocation or pruner.allocation, recovery or pruner.recovery
    return replace(pruner, allocation=allocation, recovery=recovery)


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
    """Every LayerPruner that the pruner is made of, changed."""
    if isinstance(pruner, EachLayer):
        return replace(pruner, pruner=change(pruner.pruner))
    if isinstance(pruner, DaSS):
        return DaSS(cast(Compose, change(pruner.gate_up)), cast(Compose, change(pruner.rest)))
    raise InputError(f"{name} prunes whole blocks by its own rule; no update or refinement fits.")


def _updated(name: str, update: str, part: LayerPruner) -> LayerPruner:
    if update not in UPDATES:
        raise UnknownNameError("update", update, UPDATES)
    if not isinstance(part, Compose):
        raise InputError(
            f"{name} chooses weights and updates them together, so --update does not apply. "
            "Use it with magnitude, ri, wanda, ria, dass, or a Compose of your own."
        )
    return replace(part, update=UPDATES[update])


def _refined(refine: str, part: LayerPruner) -> LayerPruner:
    """Exchanges against the values that the kept weights will have."""
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
    """With the orders that keep the most of its own score; of OBS, where it has none."""
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
    if not isinstance(part.pattern, NM) or part.pattern.along != "input":
        raise InputError(
            f"--permutation is for N:M along inputs, such as --pattern 2:4; {name} has the pattern "
            f"{part.pattern}."
        )
    score = part.score if isinstance(part, Compose) else OBS()
    for kind in (*part.needs, *score.needs):
        if not hasattr(kind, "reordered"):
            raise InputError(
                f"{kind.__name__} has no reordered(order_I), which --permutation needs. Add it."
            )
    if permutation == "free":
        return EachLayer(InOrder(part, score, found))
    realisation = cast(Literal["fold", "gather"], permutation)
    return EachLayer(part, Ordering(realisation, score, part.pattern, found))
