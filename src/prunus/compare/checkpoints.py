"""The checkpoints of a comparison: made when they are wanted, kept while they may stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..api import prune
from ..base.atomic import unfinished
from ..base.errors import PrunusError
from ..base.words import number_of
from ..judge.resident import forget_peak, peak_bytes
from ..run.observer import Observer
from ..run.progress import watching
from ..run.together import grouped, prune_together
from .grid import Cell

Keep = Literal["none", "best", "all"]
FOLDER = "checkpoints"


@dataclass
class Checkpoints:
    """Makes checkpoints of cells, several on one walk where that is possible.

    Attributes:
        model: the dense model.
        folder: where they lie, each under the key of its run.
        trust: whether code that the checkpoint brings may run.
        say: told what happens, in sentences.
        observer: who is told of every step of a run, by its title; None: as for ``prune``.
        peak: highest resident memory while the last one was made.
    """

    model: str | Path
    folder: Path
    trust: bool
    say: Callable[[str], None]
    observer: Callable[[str], Observer | None]
    peak: int = 0
    _walks: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def plan(self, missing: Sequence[tuple[str, Cell]], together: int) -> None:
        """Note which runs are to be made, by key, and so which of them share a walk."""
        groups = grouped([cell.recipe for _, cell in missing], together)
        walks = [dict(missing[number] for number in group) for group in groups]
        self._walks = {key: walk for walk in walks for key in walk}

    def place(self, key: str) -> Path:
        """Return where the checkpoint of a run lies while it is kept."""
        return self.folder / key

    def make(self, key: str, cell: Cell, title: str) -> Path:
        """Return the checkpoint of a cell, made now unless it is there."""
        folder = self.place(key)
        if folder.exists():
            return folder
        forget_peak()
        if key in self._walks:
            self._walk(self._walks[key])
        going_on = unfinished(folder).exists()
        self.say(f"{title}: {'going on' if going_on else 'pruning'}")
        prune(
            self.model,
            cell.recipe,
            output=folder,
            resume=going_on,
            trust_remote_code=self.trust,
            observer=self.observer(str(cell)),
        )
        self.peak = peak_bytes()
        return folder

    def remove(self, key: str) -> None:
        """Remove the checkpoint of a run, if it is there."""
        if self.place(key).exists():
            shutil.rmtree(self.place(key))

    def _walk(self, walk: dict[str, Cell]) -> None:
        """Prune all runs on a walk up to their last step.

        Where they cannot go together, each goes alone, and says why it cannot when it cannot.
        """
        for key in walk:
            del self._walks[key]
        todo = {self.place(key): cell.recipe for key, cell in walk.items()}
        todo = {output: recipe for output, recipe in todo.items() if not output.exists()}
        self.say(
            f"one walk for {number_of(len(todo), 'run')}: {'; '.join(map(str, walk.values()))}"
        )
        try:
            with watching(self.observer(number_of(len(todo), "run"))) as observer:
                prune_together(self.model, todo, trust_remote_code=self.trust, observer=observer)
        except PrunusError as error:
            self.say(f"each run takes a walk of its own: {error}")
