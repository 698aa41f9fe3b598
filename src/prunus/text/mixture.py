"""Several sources as one calibration text, each with its share of the windows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import InputError
from .files import exists
from .known import HUB

ALONE = ("builtin", "self", "none", *HUB)  # names that are no paths
SHARED = re.compile(r"(.+?):(\d+\.?\d*|\.\d+)(?:,|$)")


@dataclass(frozen=True)
class Part:
    """One of the sources.

    Attributes:
        source: a known name, ``self`` or a path.
        share: of the windows, relative to the others'.
    """

    source: str
    share: float = 1.0


def parts_of(source: str) -> list[Part]:
    """Return the sources that ``c4:0.5,prompts.jsonl:0.5`` names; else the one that it is.

    A share ends a source only where a comma or nothing follows, so paths may have commas and
    colons. A path that exists as a whole is one source, whatever is in its name.

    >>> [part.share for part in parts_of("c4:3,a,b.jsonl:1")]
    [3.0, 1.0]

    Raises:
        InputError: sources without shares; shares of 0; ``none`` among others; one named twice.
    """
    if source in ALONE or _exists(source):
        return [Part(source)]
    found = [Part(name, float(share)) for name, share in SHARED.findall(source)]
    if not found or SHARED.sub("", source):
        pieces = [piece.rpartition(":")[0] or piece for piece in source.split(",")]
        if len(pieces) > 1 and all(piece in ALONE or _exists(piece) for piece in pieces):
            raise InputError(
                f"{source} names several sources. Give each its share of the windows, such as "
                f"{','.join(f'{piece}:{1 / len(pieces):.2g}' for piece in pieces)}."
            )
        return [Part(source)]
    names = [part.source for part in found]
    wrong = next((part for part in found if part.share <= 0), None)
    if wrong is not None:
        raise InputError(f"{source}: the share of {wrong.source} is 0. Leave that source out.")
    if "none" in names or len(set(names)) < len(names):
        raise InputError(f"{source}: give every source once, with its share, and none alone.")
    return found


def counts_of(parts: Sequence[Part], samples: int) -> list[int]:
    """Split the windows by largest remainders; equal ones go to the first. None gets 0.

    >>> counts_of([Part("a", 0.5), Part("b", 0.25), Part("c", 0.25)], 7)
    [3, 2, 2]

    Raises:
        InputError: fewer windows than sources.
    """
    if samples < len(parts):
        raise InputError(
            f"{len(parts)} calibration sources need a window each, at least; --samples is "
            f"{samples}. Give more, or fewer sources."
        )
    whole = sum(part.share for part in parts)
    exact = [samples * part.share / whole for part in parts]
    counts = [int(count) for count in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: samples - sum(counts)]:
        counts[i] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def order_of(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Deal the samples of several sources evenly: (source, number in it) of each place.

    So the last quarter, which some methods hold out, and the parts of several processes have the
    same mixture as the whole.

    >>> order_of([4, 2])
    [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]
    """
    places = [((k + 0.5) / n, i, k) for i, n in enumerate(counts) for k in range(n)]
    return [(i, k) for _, i, k in sorted(places)]


def _exists(path: str) -> bool:
    return bool(path) and exists(Path(path).expanduser())
