"""What a resumed run takes over from the unfinished one, and in what the two may differ.

The model, the recipe and the text must be the same. The number of threads is taken over. A version,
the device or the number of processes may change the last bits of a sum and nothing else, so the run
continues with different ones only on request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..base.atomic import unfinished
from ..base.errors import InputError
from ..base.team import Team

LINES = "journal.jsonl"
HARMLESS = ("threads", "device", "number of processes", "prunus", "torch", "transformers")
Differences = dict[str, list[Any]]
"""By name, what it was in each run in turn."""


@contextmanager
def threads_of(output: Path | None, team: Team, say: Callable[[str], None]) -> Iterator[None]:
    """Compute with as many threads as the unfinished run of ``output``; then as before.

    Sums over another number of threads differ in their last bits. ``output`` is None where there
    is nothing to resume. The first process reads the journal for all.
    """
    own = torch.get_num_threads()
    noted = begun_with(output).get("threads") if output is not None and team.first else None
    threads = team.told(noted if isinstance(noted, int) and noted > 0 else None) or own
    if threads != own:
        say(f"computing with {threads} threads instead of {own}, as the unfinished run did")
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def begun_with(output: Path) -> dict[str, Any]:
    """Return the fingerprint of the unfinished run of ``output``; empty if there is none."""
    try:
        with open(unfinished(output) / LINES, encoding="utf-8") as file:
            first = json.loads(file.readline())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):  # whoever opens the journal says what it is
        return {}
    return first if isinstance(first, dict) else {}


def blocks_done(output: Path) -> set[int]:
    """Return the blocks that the unfinished run of ``output`` has done."""
    try:
        lines = (unfinished(output) / LINES).read_text(encoding="utf-8").split("\n")[:-1]
        return {line["block"] for line in map(json.loads, lines) if "block" in line}
    except (OSError, ValueError, TypeError):  # as above
        return set()


def check_same(
    first: Mapping[str, Any],
    now: Mapping[str, Any],
    folder: Path,
    allowed: bool,
    defaults: Mapping[str, Any],
) -> Differences:
    """Return in what the run in ``folder`` and this one differ, if the difference is ``allowed``.

    ``defaults`` stand for what the version that began the run did not know yet.

    Raises:
        InputError: it may not go on; says what differs.
    """
    pairs = {
        name: [x.get(name, defaults.get(name)) for x in (first, now)] for name in {**first, **now}
    }
    found = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    for name in found:
        if name not in HARMLESS:
            raise InputError(
                f"The unfinished run in {folder} differs from this one: its {name} was "
                f"{found[name][0]!r}, now it is {found[name][1]!r}. Use the same, or remove that "
                "folder."
            )
    if found and not allowed:
        raise InputError(
            f"The unfinished run in {folder} was started differently: {told(found)}. Continue as "
            "it was started, for the same bytes; or give --allow-different "
            "(allow_different=True), which may change the last bits."
        )
    return found


def told(different: Differences) -> str:
    """Put differences into words."""
    return ", ".join(
        f"its {name} was {' then '.join(map(repr, values[:-1]))}, now it is {values[-1]!r}"
        for name, values in different.items()
    )


def followed(earlier: Iterable[Mapping[str, list[Any]]]) -> Differences:
    """Merge the differences of several runs, each with the one that began it."""
    found: Differences = {}
    for different in earlier:
        for name, (first, now) in different.items():
            values = found.setdefault(name, [first])
            if values[-1] != now:
                values.append(now)
    return found
