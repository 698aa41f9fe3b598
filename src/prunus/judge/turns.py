"""Processes that hold a model each and take turns, one running while the others wait."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import CheckpointError
from ..storage.checkpoint import folder_of
from .ways import LLAMA_CPP, Way


class Child:
    """Process that holds one model; ``timed`` is the code that it runs.

    Attributes:
        way: how it runs.
        place: the folder or file that it loads.
        facts: what it says of its model.
    """

    def __init__(self, way: Way, asked: Mapping[str, Any]) -> None:
        self.way = way
        found = way.model if way.kind == LLAMA_CPP else folder_of(way.model)
        self.place = Path(found).expanduser().absolute()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prunus.judge.timed"],
            cwd=Path(__file__).parents[2],  # not the user's folder, whose files -m could import
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        own = {"kind": way.kind, "model": str(self.place), "dtype": way.dtype}
        try:
            self.facts = self.ask({**asked, **own})
        except BaseException:
            self.close()
            raise

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to an order."""
        stdin, stdout = self._process.stdin, self._process.stdout
        try:
            print(json.dumps(order), file=stdin, flush=True)
        except BrokenPipeError:
            pass  # its last answer says why
        line = stdout.readline() if stdout else ""
        answer = json.loads(line) if line else {"error": "its process ended (out of memory?)"}
        if "error" in answer:
            raise CheckpointError(
                f"{self.way.model} cannot be measured as {self.way.label}: {answer['error']}"
            )
        return dict(answer)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def rotated(turn: int, ways: int) -> list[int]:
    """Return who runs when: who begins changes with every turn, the direction with every round.

    So none is always first, and none always follows the same other.

    >>> [rotated(turn, 3) for turn in range(6)]
    [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1], [1, 0, 2], [2, 1, 0]]
    """
    turn_round, first = divmod(turn, ways)
    step = -1 if turn_round % 2 else 1
    return [(first + step * place) % ways for place in range(ways)]


def turns(
    children: Sequence[Child], order: Mapping[str, Any], repeats: int
) -> Iterator[list[dict[str, float]]]:
    """Yield what each turn measured of every child, after one that is thrown away."""
    for turn in range(repeats + 1):  # the first warms caches up
        found = {at: children[at].ask(order) for at in rotated(turn, len(children))}
        if turn:
            yield [found[at] for at in range(len(children))]
