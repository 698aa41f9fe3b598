"""What kind a tensor is of, by its name: the same part of all blocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key to sort names by, block 10 behind block 9."""
    return [(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"(\d+)", name)]


def block_of(name: str) -> int | None:
    """Return the number of a tensor's block, the first in its name; None outside of blocks."""
    return next((int(x) for x in name.split(".") if x.isdigit()), None)


def kinds_of(names: Iterable[str]) -> dict[str, str]:
    """Return the kind of every tensor: its name without numbers, as short as it is clear.

    >>> kinds_of(["h.0.mlp.up.weight", "h.0.mlp.up.bias", "h.1.mlp.up.weight", "wte.weight"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'h.0.mlp.up.weight': 'up', 'h.0.mlp.up.bias': 'up.bias', 'h.1.mlp.up.weight': 'up',
     'wte.weight': 'wte'}
    """
    paths = {name: _path(name) for name in names}
    shared = Counter(end for path in set(paths.values()) for end in _ends(path))
    return {
        name: next((x for x in _ends(path) if shared[x] == 1), ".".join(path))
        for name, path in paths.items()
    }


def _path(name: str) -> tuple[str, ...]:
    """Return the parts of a name that are no numbers; ``weight`` at its end says nothing."""
    parts = tuple(part for part in name.split(".") if not part.isdigit())
    return parts[:-1] if len(parts) > 1 and parts[-1] == "weight" else parts


def _ends(path: tuple[str, ...]) -> Iterator[str]:
    """Yield the ends of a path, the shortest first: a module at least, not ``bias`` alone."""
    least = 2 if path[-1] in ("bias", "scale") and len(path) > 1 else 1
    for length in range(least, len(path) + 1):
        yield ".".join(path[-length:])
