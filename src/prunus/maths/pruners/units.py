"""A method for heads and neurons: a score for each, and what happens around the removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...base.errors import InputError, UnknownNameError
from ..scores.redundancy import Redundancy
from ..scores.units import UnitScore
from ..views import Unit

DEFAULT = 0.2  # of the parameters in heads and neurons: the paper's first table
ALLOCATIONS = ("uniform", "adaptive")
RECOVERIES = ("none", "before", "after", "both")
TARGETS = ("both", "heads", "neurons")


@dataclass(frozen=True)
class UnitPruner:
    """The scores that choose units, and the repair of the weights that stay.

    Attributes:
        heads: what groups of heads are worth.
        neurons: what neurons are worth.
        sequential: scores are taken of each module on the outputs of the pruned ones before it;
            else all at once, of the dense model.
        allocation: "uniform", the same share of every block; "adaptive", the lowest scores of all
            blocks: divergences as they are, all others standardised.
        recovery: "before": first- and second-level weights are aimed at the dense outputs by ridge
            least squares before the module is pruned (Algorithms 2 to 4); "after": the second
            level's are, at what it put out with all its units (ours); "both"; "none".
        compensation: the bias of the second level takes up the mean of what is removed (FLAP).
        target: "both", "heads" or "neurons".
    """

    heads: UnitScore
    neurons: UnitScore
    sequential: bool = False
    allocation: str = "uniform"
    recovery: str = "none"
    compensation: bool = False
    target: str = "both"

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("allocation", self.allocation, ALLOCATIONS),
            ("recovery", self.recovery, RECOVERIES),
            ("target", self.target, TARGETS),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        if self.compensation and self.recovery in ("after", "both"):
            raise InputError(
                "The bias compensates the mean of what was removed, and least squares after the "
                "removal already accounts for it. Use --set compensation=false, or --recovery none."
            )

    @property
    def units(self) -> tuple[Unit, ...]:
        """The kinds of units that are removed."""
        if self.target == "both":
            return ("heads", "neurons")
        return ("heads",) if self.target == "heads" else ("neurons",)

    def score(self, unit: Unit) -> UnitScore:
        """Return the score of that kind of unit."""
        return self.heads if unit == "heads" else self.neurons

    @property
    def threshold(self) -> Redundancy | None:
        """The score of heads, if its threshold says how many of them are removed."""
        if "heads" in self.units and isinstance(self.heads, Redundancy) and self.heads.decides:
            return self.heads
        return None

    @property
    def comparable(self) -> tuple[Unit, ...]:
        """The kinds of units whose scores compare across blocks as they are."""
        return tuple(unit for unit in self.units if self.score(unit).comparable)

    def wants(self, what: Literal["maps", "gradients"]) -> bool:
        """Return whether any of the scores reads that."""
        return any(self.score(unit).wants == what for unit in self.units)

    @property
    def before(self) -> bool:
        """Whether weights are recovered before the removal."""
        return self.recovery in ("before", "both")

    @property
    def after(self) -> bool:
        """Whether the second level is solved again after the removal."""
        return self.recovery in ("after", "both")

    @property
    def reads(self) -> list[str]:
        """Names of what the scores read beside the weights, each once."""
        names = []
        for score in (self.heads, self.neurons):
            names += [kind.__name__ for kind in (*score.first, *score.second)]
            if score.wants != "nothing":
                names.append({"maps": "attention maps", "gradients": "gradients"}[score.wants])
        return list(dict.fromkeys(names))

    @property
    def reads_text(self) -> bool:
        """Whether the method needs calibration."""
        scores = [self.score(unit) for unit in self.units]
        read = any(score.first or score.second or score.wants != "nothing" for score in scores)
        return read or self.compensation or self.recovery != "none"
