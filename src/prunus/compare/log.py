"""The runs of a comparison that are done: a JSON object a line, written as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..base.errors import CheckpointError

FILE = "runs.jsonl"


@dataclass(frozen=True)
class Run:
    """One model that was made and judged.

    Attributes:
        key: fingerprint of all that decides what comes out: the model's files, the recipe, how it
            is judged, and the versions of the software.
        row: of the table.
        column: likewise; empty for the dense model.
        seed: of the recipe; None for the dense model.
        recipe: its fields; empty for the dense model.
        quality: what was measured, by its name.
        sparsity: share of the weights, or of the parameters, that was removed.
        token_bytes: bytes of weights that one token reads, zeros left out; None with experts.
        seconds: of pruning.
        judged_seconds: of judging.
        peak_bytes: highest resident memory while pruning.
        calibration: hash of the text; None: none was read.
        versions: of the software.
    """

    key: str
    row: str
    column: str
    seed: int | None
    recipe: dict[str, Any]
    quality: dict[str, float]
    sparsity: float
    token_bytes: int | None
    seconds: float
    judged_seconds: float
    peak_bytes: int
    calibration: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


def key(facts: Mapping[str, Any]) -> str:
    """Return a fingerprint of facts, in 16 hexadecimal digits.

    >>> key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    True
    """
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Log:
    """``runs.jsonl`` in a folder.

    A line that was half written when a run was killed is taken away.

    Raises:
        CheckpointError: another line is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._runs: dict[str, Run] = {}
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole, _, half = text.rpartition("\n")
        if half:
            self.path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                run = TypeAdapter(Run).validate_json(line)
            except ValidationError:
                raise CheckpointError(
                    f"Line {number} of {self.path} is damaged. Remove that line; its run is then "
                    "made again."
                ) from None
            self._runs[run.key] = run

    def get(self, key: str) -> Run | None:
        """Return the run with this fingerprint, if it is done."""
        return self._runs.get(key)

    def add(self, run: Run) -> None:
        """Write a run down."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(run)) + "\n")
        self._runs[run.key] = run
