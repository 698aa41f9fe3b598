"""Report of a run, ``pruning_report.json``: what was asked and what was done, layer by layer."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import TypeAdapter, ValidationError

from .._version import __version__
from ..base.errors import CheckpointError, UnsupportedModelError, first_line
from ..base.words import number_of
from ..maths.grids import Grid
from ..text import Protocol
from .experts import ExpertTokens
from .from_source import FromSource
from .layer import LayerReport
from .units import UnitsReport

FILE = "pruning_report.json"
VERSIONS = {
    "prunus": __version__,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
}
"""The versions of the software that may decide what comes out of a run."""


@dataclass(frozen=True)
class Coverage:
    """Share of the model that the method saw.

    Attributes:
        parameters: number of parameters of the model, tied ones counted once.
        embeddings: those of tokens and positions, and of the head where it is not tied.
        block_weights: weights in the linear layers of all blocks.
        pruned_weights: weights in the layers that the method was given.
        kept: parameters beside the language model, such as in a tower for images: not touched.
        kept_modules: names of the modules that hold these.
    """

    parameters: int
    embeddings: int
    block_weights: int
    pruned_weights: int
    kept: int = 0
    kept_modules: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Pruned weights over all parameters."""
        return self.pruned_weights / self.parameters

    def check(self) -> None:
        """Reject a run that covers too little of the model.

        Raises:
            UnsupportedModelError: less than half of the weights between the embeddings are covered.
        """
        between = self.parameters - self.embeddings - self.kept
        if self.pruned_weights < between / 2:
            raise UnsupportedModelError(
                f"Only {self.pruned_weights:,} of the {between:,} weights between the embeddings "
                f"({self.pruned_weights / between:.0%}) lie in linear layers of blocks that prunus "
                "finds. This architecture is not handled yet."
            )

    def __str__(self) -> str:
        covered = (
            f"{self.share:.1%} of all parameters, {self.pruned_weights / self.block_weights:.1%} "
            "of the weights in blocks"
        )
        if not self.kept:
            return covered
        return f"{covered}; kept as they are: {', '.join(self.kept_modules)} ({self.kept:,})"


@dataclass(frozen=True)
class PruningReport:
    """All facts of a run; the file has the same fields.

    Attributes:
        model: name or path of the model that was pruned.
        method: name of the method in the table.
        pruner: composition of the method's parts, spelled out.
        paper: paper that the method is from; None: an object that is in no table.
        url: address of the paper.
        allocation: what decided how much of each layer was removed, spelled out.
        pattern: pattern that was asked for; None: the method's own groups.
        requested: sparsity that was asked for.
        sparsity: zeros over weights in the layers that were pruned, counted as written; of heads
            and neurons the share of their parameters that was removed.
        coverage: share of the model that those layers are.
        protocol: calibration text; None: none was used.
        recovery_protocol: text that recovery was solved on; None: the calibration text.
        seconds: time of the whole run, the model's answers to prompts included, without loading
            and saving; of one that was interrupted, also what the earlier ones had spent on
            finished blocks.
        layers: one entry per layer.
        experts: how many tokens each expert saw, block by block, where there are any.
        structured: widths before and after; None: single weights were pruned.
        learning: where shares were learned, for each unit its blocks, steps, seconds, and the loss
            (1: that of the uniform mask) in the mean over 16 steps each.
        search: where shares were searched for: over what (``slope`` or ``generation``), the
            ``steps``, and the ``loss`` there: the divergence of a candidate from the dense model in
            nats, the ``uniform`` shares' beside it; the ``tokens`` that judged, and the seconds.
        reconstruction: how blocks were reconstructed, spelled out; None: they were not.
        reconstructed: for each part of a block that was, its steps, seconds, held-out loss before
            the first step and after each pass (1: that of the block as it was pruned), mean loss of
            each pass over the other samples in the same unit, and biases and norms that changed.
        grid: integer grid of the kept weights; None: they are not quantised.
        packed: whether the checkpoint holds integers.
        processes: number of processes that shared the run.
        source: what was taken over from the source's files; None: the source was no folder.
        different: settings that differed between a run and the one that resumed it under
            --allow-different, by name: each value in turn.
        versions: versions of the software that matters.
    """

    model: str
    method: str
    pruner: str
    pattern: str | None
    requested: float
    sparsity: float
    coverage: Coverage
    protocol: Protocol | None
    seconds: float
    layers: list[LayerReport]
    experts: list[ExpertTokens] = field(default_factory=list)
    structured: UnitsReport | None = None
    allocation: str = "Uniform()"
    learning: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] | None = None
    reconstruction: str | None = None
    reconstructed: list[dict[str, Any]] = field(default_factory=list)
    grid: Grid | None = None
    packed: bool = False
    paper: str | None = None
    url: str = ""
    processes: int = 1
    source: FromSource | None = None
    different: dict[str, list[Any]] = field(default_factory=dict)
    recovery_protocol: Protocol | None = None
    versions: dict[str, str] = field(
        default_factory=lambda: {**VERSIONS, "python": platform.python_version()}
    )

    @property
    def only_quantised(self) -> bool:
        """Whether this is a run of ``prunus quantize``, which removes nothing."""
        return self.method == "quantize"

    @property
    def held_out_loss(self) -> float:
        """Return the held-out loss that reconstruction left, in the mean; 1 if nothing was."""
        found = [min(part["held"]) for part in self.reconstructed]
        return sum(found) / len(found) if found else 1.0

    def __repr__(self) -> str:
        """Return one line, without the layers, of which there may be thousands."""
        return (
            f"PruningReport({self.method} on {self.model}: {number_of(len(self.layers), 'layer')}, "
            f"{self.sparsity:.2%} removed, {self.seconds:.1f} s)"
        )

    def to_json(self) -> str:
        """Return the text of ``pruning_report.json``."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    def summary(self) -> dict[str, Any]:
        """Return what ``prunus prune --json`` prints, beside the output folder."""
        return {
            "sparsity": self.sparsity,
            "coverage": self.coverage.share,
            "seconds": self.seconds,
            "method": self.method,
            "pattern": self.pattern,
            "layers": len(self.layers),
            "grid": str(self.grid) if self.grid else None,
            "packed": self.packed,
            **({"held_out_loss": self.held_out_loss} if self.reconstructed else {}),
            **({"experts": [asdict(x) for x in self.experts]} if self.experts else {}),
            "calibration_sha256": self.protocol.sha256 if self.protocol else None,
            **(self.structured.summary() if self.structured else {}),
        }


def read_report(folder: Path) -> PruningReport:
    """Return the report beside a checkpoint, or in a file.

    Raises:
        CheckpointError: there is no report, or it is damaged.
    """
    path = folder if folder.suffix == ".json" else folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        report = TypeAdapter(PruningReport).validate_python(content)
    except FileNotFoundError:
        if not folder.exists():
            raise CheckpointError(f"{folder} does not exist. Give what prunus wrote.") from None
        raise CheckpointError(f"{folder} has no {FILE}: prunus did not write it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path} is damaged: {where}: {first['msg'].lower()}. Copy the checkpoint again."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged: {first_line(error)}. Copy the checkpoint again."
        ) from None
    if not report.layers:
        raise CheckpointError(f"{path} is damaged: it names no layers.")
    return report


def realised_sparsity(layers: Sequence[LayerReport]) -> float:
    """Return zeros over weights of all layers together."""
    weights = [layer.shape[0] * layer.shape[1] for layer in layers]
    zeros = [round(layer.sparsity * n) for layer, n in zip(layers, weights, strict=True)]
    return sum(zeros) / sum(weights)
