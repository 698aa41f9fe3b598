"""The journal of answers: each is on disk at once, so that a run can be resumed among them.

``answers.jsonl`` in the folder of the unfinished run: first a fingerprint of all that decides the
answers, then a line for each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.atomic import unfinished
from ..base.words import number_of
from .journal import append_line, explained, fingerprint_of, lines_of
from .resuming import check_same, told

FILE = "answers.jsonl"


@dataclass
class AnswerJournal:
    """The answers of a run so far.

    Attributes:
        path: the file; None: nothing is written, as for a model in memory.
        answers: by the number of the prompt, its token ids, whether it ended, and its seconds.
    """

    path: Path | None = None
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        output: Path,
        fingerprint: Mapping[str, Any],
        resume: bool,
        allow_different: bool,
        say: Callable[[str], None],
        purpose: str = "",
    ) -> AnswerJournal:
        """Begin a journal, or take up that of an unfinished run with the same fingerprint.

        Raises:
            CheckpointError: there is one and ``resume`` is False, or it cannot be read or written.
            InputError: the unfinished run asks, or answers, otherwise; says what differs.
        """
        folder = unfinished(output)
        journal = cls(folder / f"{purpose}{FILE}")
        assert journal.path is not None
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lines = lines_of(journal.path)
        if not lines:
            journal._append({"fingerprint": dict(fingerprint)})
            return journal
        first = fingerprint_of(lines, journal.path, resume)
        now = json.loads(json.dumps(fingerprint))
        if different := check_same(first, now, folder, allow_different, {}):
            say(f"continuing although {told(different)}: later answers may differ")
        journal.answers = {line["prompt"]: line for line in lines[1:] if "prompt" in line}
        say(f"resuming: {number_of(len(journal.answers), 'answer')} from before")
        return journal

    def add(self, number: int, answer: Mapping[str, Any]) -> None:
        """Put an answer on the disk."""
        self.answers[number] = {"prompt": number, **answer}
        self._append(self.answers[number])

    @contextmanager
    def kept(self, say: Callable[[str], None]) -> Iterator[None]:
        """Say what is kept if this ends early; leave nothing where nothing was answered."""
        try:
            yield
        except BaseException:
            if self.path is not None and self.answers:
                say(f"kept: {number_of(len(self.answers), 'answer')}; --resume goes on from there")
            elif self.path is not None:
                self.path.unlink(missing_ok=True)
                with suppress(OSError):  # there is more in it
                    self.path.parent.rmdir()
            raise

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.path is not None:
            with explained(self.path):
                append_line(self.path, line)


def has_answers(folder: Path) -> bool:
    """Whether an unfinished run has answers that are worth keeping."""
    return any(len(lines_of(path)) > 1 for path in folder.glob(f"*{FILE}"))
