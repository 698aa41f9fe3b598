"""What is verified, and what verification finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.errors import CheckpointError, PatternError
from ..maths.contracts import Pattern
from ..maths.orders.orders import Orders
from ..maths.patterns import OneOf, parse_pattern
from ..report.report import FILE as REPORT
from ..report.report import PruningReport, read_report
from ..storage.checkpoint import find


@dataclass
class ZerosOfKind:
    """What was found in the layers of one kind, such as ``q_proj``.

    Attributes:
        patterns: patterns that were found, each with the number of layers that have it.
        zeros: in all of these layers.
        weights: in all of these layers, zero or not.
    """

    patterns: dict[str, int] = field(default_factory=dict)
    zeros: int = 0
    weights: int = 0

    @property
    def sparsity(self) -> float:
        """Zeros over weights; 0 where there are none."""
        return self.zeros / max(self.weights, 1)

    def add(self, pattern: str, zeros: int, weights: int) -> None:
        """Add a layer."""
        self.patterns[pattern] = self.patterns.get(pattern, 0) + 1
        self.zeros, self.weights = self.zeros + zeros, self.weights + weights

    def to_dict(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {"patterns": self.patterns, "sparsity": self.sparsity}


@dataclass
class Verification:
    """Findings of a verification.

    Attributes:
        problems: one sentence for each problem; empty if the checkpoint is sound.
        sparsity: zeros over weights in the pruned layers, counted in the files; of a model that
            lost heads and neurons the share of their parameters that was removed.
        patterns: patterns that were checked, each with the number of layers that have it.
        kinds: what was found in each kind of layer, where there is no report that says so.
        checks: what was checked.
        in_files: whether something is wrong in the files themselves, not only with the reload.
    """

    problems: list[str] = field(default_factory=list)
    sparsity: float = 0.0
    patterns: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, ZerosOfKind] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    in_files: bool = False

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def pattern(self) -> str:
        """All patterns, separated by commas."""
        return ", ".join(self.patterns)

    def count(self, pattern: str) -> None:
        """Note that one more layer has a pattern."""
        self.patterns[pattern] = self.patterns.get(pattern, 0) + 1

    def check_finite(self, name: str, tensor: Tensor) -> None:
        """Note a problem if a tensor holds NaN or inf."""
        known = tensor.float() if tensor.itemsize == 1 else tensor  # torch asks no float8
        if not bool(known.isfinite().all()):
            self.problems.append(f"{name} holds NaN or inf.")


@dataclass(frozen=True)
class Subject:
    """A checkpoint that is to be verified, and what is asked about it.

    Attributes:
        folder: folder of the checkpoint.
        report: its report; None: it has none.
        source: checkpoint that it was made from; None: it is not compared.
        demanded: pattern that every layer must have; None: the one that the report claims.
        trust_remote_code: run code that the checkpoint brings.
    """

    folder: Path
    report: PruningReport | None
    source: str | Path | None = None
    demanded: Pattern | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(
        cls, folder: Path, source: str | Path | None, pattern: str | None, trust_remote_code: bool
    ) -> Subject:
        """Read the report, if there is one.

        Raises:
            CheckpointError: the folder holds no checkpoint, or files are missing or damaged.
            UnsupportedModelError: an adapter, a pipeline, no causal language model.
            PatternError: no such pattern, or one that leaves a choice.
        """
        if not folder.exists():
            raise CheckpointError(f"{folder} does not exist. Give the folder of a checkpoint.")
        if not find(folder).is_folder:
            raise CheckpointError(
                f"{folder} is a GGUF, and verify looks into safetensors. prunus diff compares a "
                "GGUF with the checkpoint that it was made from."
            )
        report = read_report(folder) if (folder / REPORT).exists() else None
        return cls(folder, report, source, _one(pattern), trust_remote_code)

    @cached_property
    def orders(self) -> Orders:
        """Orders of the channels, as the folder lists them."""
        return Orders.read(self.folder)


def _one(pattern: str | None) -> Pattern | None:
    """Return the pattern that is demanded of all layers, if one is."""
    demanded = parse_pattern(pattern) if pattern else None
    if isinstance(demanded, OneOf):
        raise PatternError(
            f"--pattern {pattern} leaves a choice, and verify demands one pattern of all layers. "
            "Leave it out to check what the report claims, or to find what is there."
        )
    return demanded
