"""The paper table: one row per method, a literal composition of parts.

To add a method: write its part, add a row here, add its golden value to the tests. Nothing else.
From outside of the package: ``prunus.register`` adds a row, and an object takes a row's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..base.errors import InputError, UnknownNameError
from ..maths.contracts import BlockPruner, Pattern, Permutation, Score, Update
from ..maths.orders import Assignment, Greedy, Heuristic
from ..maths.patterns import NM, Unstructured
from ..maths.pruners import (
    MRP,
    ActivationAware,
    Compose,
    DaSS,
    EachLayer,
    SparseGPT,
)
from ..maths.pruners.units import UnitPruner
from ..maths.reconstruction import Reconstruction
from ..maths.scores import OBS, RIA, Magnitude, RelativeImportance, Wanda
from ..maths.scores.redundancy import Redundancy
from ..maths.scores.taylor import Taylor
from ..maths.scores.units import (
    Flap,
    Norm,
    Random,
    SecondMoment,
    UnitScore,
    WandaSp,
)
from ..maths.shares import BESA, OWL, Across, Allocation, Evolve, Slope, Uniform
from ..maths.updates import Keep, LeastSquares, SparseGPTSweep


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        paper: authors, year, title.
        url: where to read it.
        build: the composition; a pattern of None means the method's own comparison groups. One
            that removes whole heads and neurons has no pattern.
        differs: what differs from the authors' code.
        allocation: how much of each layer is removed, unless another is asked for.
        gated: whether it is about gated MLPs, and another method without one.
    """

    paper: str
    url: str
    build: Callable[[Pattern | None], BlockPruner | UnitPruner]
    differs: str
    allocation: str = "uniform"
    gated: bool = False

    @property
    def parts(self) -> str:
        """The composition, spelled out."""
        return repr(self.build(None))

    @property
    def needs(self) -> str:
        """What the method reads beside the weights."""
        built = self.build(None)
        if isinstance(built, UnitPruner):
            names = built.reads
        else:
            names = [kind.__name__ for kind in built.needs]
        return ", ".join(names) or "nothing (data-free)"


def _scored(score: Score, group: Unstructured) -> Callable[[Pattern | None], BlockPruner]:
    return lambda pattern: EachLayer(Compose(score, pattern or group))


def _sparsegpt(pattern: Pattern | None) -> BlockPruner:
    return EachLayer(SparseGPT(pattern or Unstructured("layer")))


_OPTIMUM = "The optimum of eq. 11 is found by conjugate gradients, with a certified gap."
_VALUES = {
    "SS": "The paper calls this SparseGPT itself (section 4.3.1), and it is the row sparsegpt: the "
    "kept weights are not at the optimum, and there is no certificate.",
    "SM": _OPTIMUM,
    "MS": "The kept weights get the values of SparseGPT's sweep: not the optimum of eq. 11, and "
    "without a certificate.",
    "MM": _OPTIMUM,
}


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
        differs="The authors published no code. "
        f"Mask {mask}, compensation {compensation}. {_VALUES[mask + compensation]} γ is a fraction "
        "of the mean diagonal, as in SparseGPT, which the paper says it follows; γI as remark 4.1 "
        "prints it is ridge=absolute.",
    )


ALLOCATIONS: Mapping[str, Allocation] = {
    "uniform": Uniform(),
    "owl": OWL(),
    "besa": BESA(),
    "slope": Slope(),
    "evolve": Evolve(),
    "owl+besa": Across(OWL()),
    "slope+besa": Across(Slope()),
    "evolve+besa": Across(Evolve()),
}

UPDATES: Mapping[str, Update] = {
    "keep": Keep(),
    "sparsegpt": SparseGPTSweep(),
    "least-squares": LeastSquares(),
}

RECONSTRUCTIONS: Mapping[str, Reconstruction | None] = {
    "none": None,
    "block": Reconstruction(),
    "half": Reconstruction("half"),
}

REFINEMENTS = ("none", "swaps")
PERMUTATIONS = ("none", "fold", "gather", "free")
SEARCHES: Mapping[str, Permutation] = {
    "assignment": Assignment(),
    "paper": Assignment(Heuristic(snake=False), sweeps=1, exchanges=0),
    "heuristic": Heuristic(),
    "greedy": Greedy(),
}

METHODS: dict[str, Method] = {
    "magnitude": Method(
        paper="Han et al. 2015, Learning both Weights and Connections",
        url="https://arxiv.org/abs/1506.02626",
        build=_scored(Magnitude(), Unstructured("layer")),
        differs="The count is exact. The baselines of Wanda and SparseGPT remove every weight <= a "
        "threshold: one more than requested, and all ties.",
    ),
    "ri": Method(
        paper="Zhang et al. 2024 (ICLR), Plug-and-Play, eq. 2",
        url="https://openreview.net/forum?id=Tr0lPx9woF",
        build=_scored(RelativeImportance(), Unstructured("layer")),
        differs="Sums in float32 (theirs in the weight's dtype). The count is exact.",
    ),
    "wanda": Method(
        paper="Sun et al. 2024 (ICLR), A Simple and Effective Pruning Approach",
        url="https://arxiv.org/abs/2306.11695",
        build=_scored(Wanda(), Unstructured("row")),
        differs="Root mean square over tokens instead of the L2 norm: the masks are the same.",
    ),
    "ria": Method(
        paper="Zhang et al. 2024 (ICLR), Plug-and-Play, eq. 3",
        url="https://openreview.net/forum?id=Tr0lPx9woF",
        build=_scored(RIA(), Unstructured("layer")),
        differs="The paper does not say which weights compete. This follows their code, per layer "
        "(their flag per_outneuron is --pattern row). Sums in float32. The count is exact.",
    ),
    "dass": Method(
        paper="Guo et al. (TMLR), Dependency-Aware Semi-Structured Sparsity",
        url="https://openreview.net/forum?id=T50uTgPzHS",
        build=DaSS.with_pattern,
        differs="Attention is pruned by Wanda, as in the paper's Table 2. Their code never prunes "
        "it (--mlp-only). α is gate_up.score.power; that of the down projection (Table 12) is "
        "down.score.power, 1 by default.",
        gated=True,
    ),
    "sparsegpt": Method(
        paper="Frantar & Alistarh 2023 (ICML), SparseGPT",
        url="https://arxiv.org/abs/2301.00774",
        build=_sparsegpt,
        differs="The count is exact (theirs removes at least one more weight per block of "
        "columns). Weights of dead inputs are removed first, within the sparsity.",
    ),
    "obs": Method(
        paper="Frantar & Alistarh 2023 (ICML), SparseGPT: its scores without its update",
        url="https://arxiv.org/abs/2301.00774",
        build=_scored(OBS("trailing"), Unstructured("layer")),
        differs="No method of that paper, but the order that BESA learns in for the row SparseGPT "
        "of its Table 5 (--pattern row --allocation besa). Dense weights are scored, all at once. "
        "BESA's code divides by the root of the diagonal: score.power=0.5.",
    ),
    "besa": Method(
        paper="Xu et al. 2024 (ICLR), Blockwise Parameter-Efficient Sparsity Allocation",
        url="https://arxiv.org/abs/2402.16880",
        build=_scored(Wanda(), Unstructured("row")),
        differs="A plain softmax (theirs, of a sigmoid, keeps shares within 0.376 to 0.624). Masks "
        "by eq. 5 (theirs: a count, allocation.rule=count). The Frobenius loss of eq. 1 (theirs: "
        "by channel, allocation.norm=channel). Adam instead of Prodigy. At least 64 steps in whole "
        "epochs: one over 128 windows, as theirs (allocation.epochs=1 is one over any number). "
        "The output is compared with the dense block's on the pruned stream, as in their code for "
        "shares of rows; algorithm 1, and their code for shares of layers, take the dense stream "
        "(allocation.reference=dense). The budget is met exactly (theirs: 49.72 %).",
        allocation="besa",
    ),
    "mrp-ss": _mrp("S", "S"),
    "mrp-sm": _mrp("S", "M"),
    "mrp-ms": _mrp("M", "S"),
    "mrp-mm": _mrp("M", "M"),
}


LLM_PRUNER = "Ma et al. 2023 (NeurIPS), LLM-Pruner"
LLM_PRUNER_URL = "https://arxiv.org/abs/2305.11627"
FLAP = "An et al. 2024 (AAAI), Fluctuation-based Adaptive Structured Pruning"
FLAP_URL = "https://arxiv.org/abs/2312.11983"


def _units(pruner: UnitPruner) -> Callable[[Pattern | None], UnitPruner]:
    return lambda pattern: pruner


def _alike(make: Callable[[], UnitScore]) -> Callable[[Pattern | None], UnitPruner]:
    return _units(UnitPruner(make(), make()))


STRUCTURED: Mapping[str, Method] = {
    "goa": Method(
        paper="Li et al. 2024, Greedy Output Approximation",
        url="https://arxiv.org/abs/2407.19126",
        build=_units(
            UnitPruner(
                Redundancy(score="both", goes="weaker"),
                SecondMoment(moment="measured"),
                sequential=True,
            )
        ),
        differs="True Jensen-Shannon distance. (Theirs is √KL(M‖P): heads.distance=authors.) Takes "
        "a number of heads, or a threshold that decides alone (heads.threshold). Given a number, "
        "heads closer than heads.similar are removed first, then those with the lowest second "
        "moment, as section 3.2.2 says; heads.score=similarity and second-moment use one of the "
        "two. Of two similar heads the weaker is removed (theirs: the first, heads.goes=first). In "
        "grouped-query attention whole key/value groups are removed (query_heads=true: query heads "
        "within them). A neuron's second moment is "
        "measured, as eq. 3 defines it, gated or not. The paper's closed form assumes a linear "
        "activation and, for gated products (appendix 7.2), multiplies two such moments; it is "
        "worse in the tables. It is neurons.moment=gaussian; with neurons.norm=1 "
        "neurons.gated=code neurons.centred=true it is what their code computes. Recovery reads "
        "the calibration text (the paper: 1,024 other windows, --recovery-text and "
        "--recovery-samples) and stops at the last pruned block (their --reconstruct_dense: "
        "recovery_behind=true).",
    ),
    "random": Method(
        paper="Li et al. 2024, Greedy Output Approximation, its random baseline",
        url="https://arxiv.org/abs/2407.19126",
        build=_alike(Random),
        differs="The removed units are drawn from the run's seed.",
    ),
    "l1": Method(
        paper=f"{LLM_PRUNER}, its L1 baseline",
        url=LLM_PRUNER_URL,
        build=_alike(lambda: Norm(1.0)),
        differs="Sums in float32.",
    ),
    "l2": Method(
        paper=f"{LLM_PRUNER}, its L2 baseline",
        url=LLM_PRUNER_URL,
        build=_alike(lambda: Norm(2.0)),
        differs="Sums in float32.",
    ),
    "wanda-sp": Method(
        paper=f"{FLAP}, its Wanda-sp baseline",
        url=FLAP_URL,
        build=_units(UnitPruner(WandaSp(), WandaSp(), sequential=True)),
        differs="Their loop adds all-zero rows if there are more samples than it is told. This one "
        "does not.",
    ),
    "flap": Method(
        paper=FLAP,
        url=FLAP_URL,
        build=_units(UnitPruner(Flap(), Flap(), allocation="adaptive", compensation=True)),
        allocation="adaptive",
        differs="The variance is exact (theirs uses Welford's product with the new mean twice). "
        "Attention scores are not squared (their code squares them: heads.squared_attention=true). "
        "The cost of a head is counted, not fixed at 512/3 neurons. The compensation is added to "
        "an existing bias (theirs overwrites it). Any head_dim, and key/value groups.",
    ),
    "llm-pruner": Method(
        paper=LLM_PRUNER,
        url=LLM_PRUNER_URL,
        build=_alike(Taylor),
        differs="First order, element by element. heads.by=vector neurons.by=vector is their "
        "vectorize; heads.order=second neurons.order=second their second order (element²), and "
        "mixed their first and second together. The second order of a vector is that of its sum "
        "(theirs: none). The mean over samples of their gradients' squares, as in their code "
        "(eq. 5: the sum). No retraining.",
    ),
}

QUANTIZE = "quantize"  # no method of pruning: what `prunus quantize` runs on a pruned model
QUANTIZATION = Method(
    paper="Lin et al. 2024 (MLSys), AWQ: Activation-aware Weight Quantization",
    url="https://arxiv.org/abs/2306.00978",
    build=lambda pattern: ActivationAware(zeros=pattern or Unstructured("layer")),
    differs="Scales from the root mean square and the Gram matrix. They are divided out of the "
    "weights again, not folded into the layers before.",
)


def all_rows() -> dict[str, Method]:
    """Return the whole table, with heads and neurons and with rows of other packages."""
    from .registry import load_plugins

    load_plugins()
    return {**METHODS, **STRUCTURED}


def known_row(name: str) -> Method | None:
    """Return the row of a name, if it is known by now; None for heads and neurons too."""
    return QUANTIZATION if name == QUANTIZE else METHODS.get(name)


def published(name: str) -> tuple[str | None, str]:
    """Return paper and address of any row; None for an object that is in no table."""
    row = known_row(name) or STRUCTURED.get(name)
    return (None, "") if row is None else (row.paper, row.url)


def find_row(name: str) -> Method:
    """Return the row of a name; load plug-ins if it is unknown without them.

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
