"""How a comparison judges a model: perplexities, agreement with the dense model, tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import PreTrainedModel

from ..judge.perplexity import Agreement, Evaluation
from ..judge.remembered import Remembered
from ..judge.tasks import Tasks, TaskScore
from ..report import PruningReport
from ..report.report import read_report
from ..run.evaluation import Wanted, carry_out
from ..run.observer import Silent
from ..runtime.load import load
from ..storage.checkpoint import load_model, load_tokenizer
from .grid import PERPLEXITY, Grid

ACCURACY = "acc"  # lm-eval's name
STANDARD_ERROR = "_stderr"


class Said(Silent):
    """Passes sentences on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def say(self, message: str) -> None:
        """Pass it on."""
        self._say(message)


class Judge:
    """Judges every model by the protocol of a grid.

    Args:
        dense: the dense model's path.
        grid: whose protocol it is, and which has the dtype and the device.
        trust: whether code that the checkpoint brings may run.
        say: told of what is wrong with the dense model, and with texts.
    """

    def __init__(
        self, dense: str | Path, grid: Grid, trust: bool, say: Callable[[str], None]
    ) -> None:
        self._path, self._asked, self._trust, self._say = dense, grid.judge, trust, say
        self._dtype = grid.recipe.get("dtype", "auto")
        self._device = grid.recipe.get("device", "auto")
        self._remembered = Remembered()

    def dense(self) -> PreTrainedModel:
        """Load the dense model."""
        return load_model(self._path, dtype=self._dtype, trust_remote_code=self._trust)

    def load(self, folder: Path) -> tuple[PruningReport, PreTrainedModel]:
        """Return the report and the model of a checkpoint."""
        return read_report(folder), load(folder, trust_remote_code=self._trust)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._path, trust_remote_code=self._trust)

    def quality(self, model: PreTrainedModel, *, dense: bool = False) -> dict[str, float]:
        """Return what is measured, by its name; the dense model is not compared with itself."""
        asked = self._asked
        wanted = Wanted(
            texts=list(asked.texts.values()),
            tasks=Tasks.of(asked.tasks, asked.shots, asked.limit, 1) if asked.tasks else None,
            against=self._path if asked.against and asked.text and not dense else None,
            length=asked.length,
            windows=asked.windows,
            tokenizer=self._tokenizer,
            data_dir=asked.data_dir,
            device=self._device,
            trust_remote_code=self._trust,
            observer=Said(self._say) if dense else Silent(),
            remembered=self._remembered,
        )
        found = carry_out(model, wanted)
        quality: dict[str, float] = {}
        for name, result in zip(asked.texts, found.texts, strict=True):
            quality |= of_text(name, result)
        return quality | of_tasks(found.tasks)


def of_text(name: str, found: Evaluation) -> dict[str, float]:
    """Return what was measured on a text, by its name in tables."""
    quality = {f"{PERPLEXITY} {name}": found.perplexity}
    if found.against is not None:
        quality |= {f"{word} {name}": value for word, value in _agreement(found.against).items()}
    return quality


def _agreement(found: Agreement) -> Mapping[str, float]:
    return {
        "KL": found.kl,
        "top token": found.top_token,
        "best five": found.best_five,
        "greedy prefix": found.prefix_mean,
    }


def of_tasks(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Return the measures of all tasks, by lm-eval's names, and the mean of the accuracies."""
    quality = {}
    for score in scores:
        for metric, value in score.values.items():
            name = metric.partition(",")[0]
            if value is not None and not name.endswith(STANDARD_ERROR):
                quality[f"{name} {score.task}"] = value
    accuracies = [x for name, x in quality.items() if name.startswith(f"{ACCURACY} ")]
    if len(accuracies) > 1:
        quality[f"{ACCURACY}, mean"] = mean(accuracies)
    return quality
