"""How a comparison judges a model: perplexities, tasks, agreement with the dense model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..api import evaluate
from ..report import PruningReport
from ..report.report import read_report
from ..runtime.load import load
from ..storage.checkpoint import load_model, load_tokenizer
from .grid import PERPLEXITY, Grid


class Judge:
    """Judges every model by the protocol of a grid.

    Args:
        dense: the dense model's path.
        grid: whose protocol it is, and which has the dtype and the device.
        trust: whether code that the checkpoint brings may run.
        say: told what is read.
    """

    def __init__(
        self, dense: str | Path, grid: Grid, trust: bool, say: Callable[[str], None]
    ) -> None:
        self._path, self._asked, self._trust, self._say = dense, grid.judge, trust, say
        self._dtype = grid.recipe.get("dtype", "auto")
        self._device = grid.recipe.get("device", "auto")

    @cached_property
    def dense(self) -> PreTrainedModel:
        """The dense model, loaded when it is first asked for."""
        return load_model(self._path, dtype=self._dtype, trust_remote_code=self._trust)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._path, trust_remote_code=self._trust)

    def load(self, folder: Path) -> tuple[PruningReport, PreTrainedModel]:
        """Return the report and the model of a checkpoint."""
        return read_report(folder), load(folder, trust_remote_code=self._trust)

    def quality(self, model: PreTrainedModel) -> dict[str, float]:
        """Return what is measured, by its name."""
        asked = self._asked
        found = {}
        for name, text in asked.texts.items():
            result = evaluate(
                model,
                text,
                length=asked.length,
                windows=asked.windows,
                tokenizer=self._tokenizer,
                data_dir=asked.data_dir,
                device=self._device,
            )
            found[f"{PERPLEXITY} {name}"] = result.perplexity
        return found
