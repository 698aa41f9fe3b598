"""Which samples are held out, to judge what the others have taught.

Windows that are drawn from few documents overlap. A judge that has a text in common with a teacher
knows what was learned by heart, and then lets too much of it pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

RUN = 32  # tokens in a row that two texts do not have in common by chance
DISTINCT = 8  # a run of fewer different tokens, spaces or an image's, says nothing
FEW = 4  # samples that may always have a run in common


def groups_of(samples: Iterable[Tensor]) -> tuple[int, ...]:
    """Return a number for each sample, the same for those that have text in common.

    That is ``RUN`` tokens in a row, and samples that each have some in common with a third are one
    group too. A run that more than a quarter of the samples have, such as a system prompt, does not
    count.

    Args:
        samples: token ids (T,) of each.

    >>> text = torch.arange(200)
    >>> groups_of([text[:100], text[100:], text[60:160], text[:31]])
    (0, 0, 0, 1)
    """
    found = [_runs(ids_T) for ids_T in samples]
    owner_N = torch.arange(len(found)).repeat_interleave(torch.tensor([len(x) for x in found]))
    _, run_N, counts = torch.cat(found).unique(return_inverse=True, return_counts=True)
    told_N = ((counts > 1) & (counts <= max(len(found) // 4, FEW)))[run_N]
    ends = owner_N[told_N].numpy(), len(found) + run_N[told_N].numpy()
    size = len(found) + len(counts)  # samples, and runs as nodes between them
    edges = coo_array((torch.ones(len(ends[0])), ends), shape=(size, size))
    return _renumbered(connected_components(edges, directed=False)[1][: len(found)])


def _runs(ids_T: Tensor) -> Tensor:
    """Return hashes of the different runs of a sample."""
    if len(ids_T) < RUN:
        return torch.empty(0, dtype=torch.int64)
    runs_NR = ids_T.cpu().to(torch.int64).unfold(0, RUN, 1)
    varied_N = (runs_NR.sort(1).values.diff(dim=1) != 0).sum(1) >= DISTINCT - 1
    generator = torch.Generator().manual_seed(0)
    weight_R = torch.randint(-(2**62), 2**62, (RUN,), generator=generator)
    hash_N: Tensor = ((runs_NR + 1) * weight_R).sum(1)  # modulo 2**64
    return hash_N[varied_N].unique()  # type: ignore[no-any-return]


def _renumbered(labels: Iterable[int]) -> tuple[int, ...]:
    """Return the same groups, numbered as they come."""
    seen: dict[int, int] = {}
    return tuple(seen.setdefault(int(label), len(seen)) for label in labels)


def held_out(groups: Sequence[int], count: int, preferred: Iterable[int]) -> list[int]:
    """Return up to ``count`` samples that have no text in common with any of the others.

    Groups are taken whole, where they fit. Where none fits, it is the smallest, if that is at most
    half of the samples; else the text is too little for such a choice, and the preferred ones are
    taken as they come.

    Args:
        groups: of each sample, from ``groups_of``.
        count: at least 1.
        preferred: all samples, those that are to be taken first in front.

    >>> held_out((0, 1, 2, 3), 2, [3, 2, 1, 0])
    [2, 3]
    >>> held_out((0, 1, 1, 0), 1, [3, 2, 1, 0])
    [0, 3]
    """
    order, found = list(preferred), list[int]()
    members: dict[int, list[int]] = {groups[sample]: [] for sample in order}
    for sample, group in enumerate(groups):
        members[group].append(sample)
    for together in members.values():
        if len(found) + len(together) <= count:
            found += together
    if not found:
        smallest = min(members.values(), key=len)
        found = smallest if 2 * len(smallest) <= len(groups) else order[:count]
    return sorted(found)


def last_quarter(samples: int, groups: Sequence[int] = ()) -> list[int]:
    """Hold out the last quarter of the samples, at least one, as ``held_out`` does.

    Args:
        samples: how many there are.
        groups: of samples that have text in common; none: none have.

    >>> last_quarter(8)
    [6, 7]
    >>> last_quarter(8, (0, 1, 2, 3, 4, 5, 5, 5))
    [3, 4]
    """
    return held_out(groups or range(samples), max(samples // 4, 1), reversed(range(samples)))
