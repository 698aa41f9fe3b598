"""The structured rows of the paper table. ``prunus.methods.table`` puts them beside the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..maths.pruners.units import UnitPruner
from ..maths.scores.units import Flap, Norm, Random, Redundancy, SecondMoment, Taylor, WandaSp

LLM_PRUNER = "Ma et al. 2023 (NeurIPS), LLM-Pruner"
LLM_PRUNER_URL = "https://arxiv.org/abs/2305.11627"
FLAP = "An et al. 2024 (AAAI), Fluctuation-based Adaptive Structured Pruning"
FLAP_URL = "https://arxiv.org/abs/2312.11983"


@dataclass(frozen=True)
class StructuredMethod:
    """A row: as ``prunus.methods.table.Method``, but it removes whole heads and neurons.

    Attributes:
        paper: authors, year, title.
        url: where to read it.
        pruner: the composition.
        differs: what differs from the authors' code.
    """

    paper: str
    url: str
    pruner: UnitPruner
    differs: str

    @property
    def parts(self) -> str:
        """The composition, spelled out."""
        return repr(self.pruner)

    @property
    def allocation(self) -> str:
        """How much goes where, unless asked for otherwise."""
        return self.pruner.allocation

    @property
    def needs(self) -> str:
        """What it reads beside the weights."""
        kinds = []
        for score in (self.pruner.heads, self.pruner.neurons):
            kinds += [kind.__name__ for kind in (*score.first, *score.second)]
            if score.wants != "nothing":
                kinds.append({"maps": "attention maps", "gradients": "gradients"}[score.wants])
        return ", ".join(dict.fromkeys(kinds)) or "nothing (data-free)"


def data_free(pruner: UnitPruner) -> UnitPruner:
    """With no data at all: second moments of an identity covariance, for heads too.

    (Text that the model writes itself, calibration "self", is the paper's data-free variant.)
    """
    if not isinstance(pruner.heads, Redundancy) or not isinstance(pruner.neurons, SecondMoment):
        return pruner
    neurons = replace(pruner.neurons, moment="gaussian", identity=True)
    return replace(pruner, heads=neurons, neurons=neurons)


def _same(make: Callable[[], Random | Norm | WandaSp | Flap | Taylor]) -> UnitPruner:
    return UnitPruner(make(), make())


STRUCTURED: Mapping[str, StructuredMethod] = {
    "goa": StructuredMethod(
        paper="Li et al. 2024, Greedy Output Approximation",
        url="https://arxiv.org/abs/2407.19126",
        pruner=UnitPruner(
            Redundancy(goes="weaker"), SecondMoment(moment="measured"), sequential=True
        ),
        differs="True Jensen-Shannon distance (theirs is √KL(M‖P), and their thresholds belong to "
        "it: heads.distance=authors); a number of heads as well as a threshold; the score of a "
        "neuron is measured as eq. 3 defines it; neurons.moment=gaussian is the closed form that "
        "the paper derives for a linear activation, and neurons.norm=1 neurons.gated=code "
        "neurons.centred=true with that what the code computes. "
        "Of two heads alike the weaker goes (theirs: the first, heads.goes=first). "
        "Grouped-query attention: whole key/value groups.",
    ),
    "random": StructuredMethod(
        paper="Li et al. 2024, Greedy Output Approximation, its random baseline",
        url="https://arxiv.org/abs/2407.19126",
        pruner=_same(Random),
        differs="Units that go are drawn from the run's seed.",
    ),
    "l1": StructuredMethod(
        paper=f"{LLM_PRUNER}, its L1 baseline",
        url=LLM_PRUNER_URL,
        pruner=_same(lambda: Norm(1.0)),
        differs="Float32 sums.",
    ),
    "l2": StructuredMethod(
        paper=f"{LLM_PRUNER}, its L2 baseline",
        url=LLM_PRUNER_URL,
        pruner=_same(lambda: Norm(2.0)),
        differs="Float32 sums.",
    ),
    "wanda-sp": StructuredMethod(
        paper=f"{FLAP}, its Wanda-sp baseline",
        url=FLAP_URL,
        pruner=UnitPruner(WandaSp(), WandaSp(), sequential=True),
        differs="Their loop feeds all-zero rows where there are more samples than it says; none "
        "here.",
    ),
    "flap": StructuredMethod(
        paper=FLAP,
        url=FLAP_URL,
        pruner=UnitPruner(Flap(), Flap(), allocation="adaptive", compensation=True),
        differs="The variance (theirs takes Welford's product with the new mean twice); attention "
        "scores are not squared (heads.squared_attention=true squares them, as their code); the "
        "cost of a head is counted, not 512/3 neurons; the compensation is added to a bias that "
        "is there (theirs overwrites it); any head_dim, key/value groups.",
    ),
    "llm-pruner": StructuredMethod(
        paper=LLM_PRUNER,
        url=LLM_PRUNER_URL,
        pruner=_same(Taylor),
        differs="First order, element by element; --set heads.by=vector --set neurons.by=vector "
        "is their other one. No second order, and no retraining.",
    ),
}
