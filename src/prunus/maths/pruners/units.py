"""A method for heads and neurons: a score for each, and what happens around the removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...base.errors import InputError, UnknownNameError
from ..scores.redundancy import Redundancy
from ..scores.taylor import Taylor
from ..scores.units import UnitScore
from ..views import Unit

DEFAULT = 0.2  # of the parameters in heads and neurons: the paper's first table
ALLOCATIONS = ("uniform", "adaptive")
RECOVERIES = ("none", "before", "after", "both")
RECOVERY_TARGETS = ("output", "stream")
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
        recovery_target: what the second level is aimed at. "output": as above. "stream": at what
            brings the residual stream behind the module to the dense one, so that it also makes up
            for what came in wrong (ours).
        recovery_behind: blocks behind the pruned ones are recovered too, as "before" does; their
            inputs have drifted. The authors' --reconstruct_dense.
        compensation: the bias of the second level takes up the mean of what is removed (FLAP).
        target: "both", "heads" or "neurons".
        query_heads: in grouped-query attention query heads are removed alone, as many from each
            key/value group of a block, and keys and values stay; else whole groups go.
    """

    heads: UnitScore
    neurons: UnitScore
    sequential: bool = False
    allocation: str = "uniform"
    recovery: str = "none"
    recovery_target: str = "output"
    recovery_behind: bool = False
    compensation: bool = False
    target: str = "both"
    query_heads: bool = False

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("allocation", self.allocation, ALLOCATIONS),
            ("recovery", self.recovery, RECOVERIES),
            ("recovery_target", self.recovery_target, RECOVERY_TARGETS),
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
    def curved(self) -> bool:
        """Whether any of the scores reads the gradients of single samples."""
        scores = [self.score(unit) for unit in self.units]
        return any(isinstance(score, Taylor) and score.order != "first" for score in scores)

    @property
    def before(self) -> bool:
        """Whether weights are recovered before the removal."""
        return self.recovery in ("before", "both")

    @property
    def after(self) -> bool:
        """Whether the second level is solved again after the removal."""
        return self.recovery in ("after", "both")

    @property
    def reads_dense(self) -> bool:
        """Whether recovery runs the samples through the dense blocks too."""
        return self.before or self.to_stream or self.recovery_behind

    @property
    def to_stream(self) -> bool:
        """Whether the second level is aimed at the dense residual stream."""
        return self.recovery != "none" and self.recovery_target == "stream"

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
    def scores_text(self) -> bool:
        """Whether the scores, or what compensates by biases, need calibration."""
        scores = [self.score(unit) for unit in self.units]
        read = any(score.first or score.second or score.wants != "nothing" for score in scores)
        return read or self.compensation

    @property
    def reads_text(self) -> bool:
        """Whether the method needs calibration."""
        return self.scores_text or self.recovery != "none"
