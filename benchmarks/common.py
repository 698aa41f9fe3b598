"""What all tables share: one protocol, one run (prune, evaluate), one row of Markdown.

Every run starts from a copy of the same dense model in float32.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

import prunus
from prunus import Result
from prunus.storage.checkpoint import load_model, load_tokenizer
from prunus.text.sources import read_documents
from prunus.text.tokens import calibration_tokens


def protocol(doc: str | None) -> argparse.ArgumentParser:
    """Take the arguments of every table; the defaults are the protocol of docs/results.md."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True, help="what perplexity is measured on")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    return parser


@dataclass(frozen=True)
class Outcome:
    """What one run left.

    Attributes:
        perplexities: one for each kind of window.
        peak_gib: resident memory of the process at its highest so far, before the evaluation.
    """

    model: PreTrainedModel
    report: Any
    perplexities: tuple[float, ...]
    seconds: float
    peak_gib: float

    @property
    def perplexity(self) -> str:
        """All of them, as cells of a row."""
        return " | ".join(f"{each:.2f}" for each in self.perplexities)


class Bench:
    """A dense model, a protocol, and what is scored: (length, how many) of each kind of window."""

    def __init__(self, given: argparse.Namespace, windows: Sequence[tuple[int, int]]) -> None:
        self.dense = load_model(given.model, dtype="float32")
        self.tokenizer = load_tokenizer(given.model)
        self.text, self.windows = given.text, windows
        self.fields = {"calibration": given.calibration, "tokenizer": self.tokenizer}
        self.fields |= {"samples": given.samples, "length": given.length, "seed": given.seed}
        self.sources: dict[str, str] = {}

    def meant(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields with texts in place of their names in a table."""
        text = fields.get("recovery_text")
        if text is not None and text not in self.sources:
            raise SystemExit(f"{text!r} is a row that needs --in-domain SOURCE.")
        return {**fields, **({} if text is None else {"recovery_text": self.sources[text]})}

    def prune(self, **fields: Any) -> Outcome:
        """Prune a copy of the dense model; ``fields`` replace the protocol's."""
        return self.run(lambda model: prunus.prune(model, **{**self.fields, **fields}))

    def run(
        self, change: Callable[[PreTrainedModel], Result], start: PreTrainedModel | None = None
    ) -> Outcome:
        """Change a copy of the dense model, or of another one, and score it."""
        model = copy.deepcopy(self.dense if start is None else start)
        begun = time.perf_counter()
        result = change(model)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return Outcome(model, result.report, self.scores(model), seconds, peak)

    def scores(self, model: PreTrainedModel) -> tuple[float, ...]:
        """Perplexity in each kind of window."""
        return tuple(
            prunus.evaluate(
                model, self.text, length=length, windows=count, tokenizer=self.tokenizer
            ).perplexity
            for length, count in self.windows
        )


def windows_of(
    model: PreTrainedModel,
    tokenizer: Any,
    source: str,
    samples: int = 16,
    length: int = 1024,
    seed: int = 0,
) -> Tensor:
    """Draw the token ids (samples, length) that a run with these arguments reads."""
    documents = read_documents(source, "calibration", None, field=None, tokenizer=tokenizer)
    ids_ST, _ = calibration_tokens(
        model, tokenizer, documents,
        samples=samples, length=length, seed=seed, bos="auto", say=lambda line: None,
    )  # fmt: skip
    return ids_ST


def head(*names: str) -> None:
    """Print the first two lines of a table."""
    row(*names)
    print("|" + "---|" * len(names), flush=True)


def row(*cells: object) -> None:
    """Print one line of it."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
