"""Proof that a written checkpoint is what it claims, from the files alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..base.arguments import typed
from . import claims, layers, units, unreported
from . import reload as reload_check
from . import source as source_check
from .verification import Subject, Verification

__all__ = ["Verification", "verify"]

Check = Callable[[Subject, Verification], None]


@typed
def verify(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    pattern: str | None = None,
    reload: bool = True,
    trust_remote_code: bool = False,
) -> Verification:
    """Check the files of a pruned checkpoint.

    Of single weights: the counts of zeros per comparison group, N:M in the stored order, finite
    values, the report against the tensors, no format claim that loaders would act on. Of heads and
    neurons: the shapes of all layers and the widths of all blocks. With ``source``: every tensor
    that was not to be pruned is unchanged. At last a reload in a fresh process, with finite logits.

    Args:
        folder: what ``prunus prune --output`` wrote.
        source: the checkpoint that it was made from.
        pattern: demand this pattern of every pruned layer, instead of what the report claims.
        reload: start the fresh process.
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        CheckpointError: not a checkpoint, or too damaged to be looked into.
    """
    subject = Subject.of(Path(folder).expanduser(), source, pattern, trust_remote_code)
    found = Verification()
    for check in _checks(subject):
        check(subject, found)
    found.in_files = bool(found.problems)
    if reload:
        reload_check.check(subject, found)
    return found


def _checks(subject: Subject) -> Iterator[Check]:
    """Yield the checks of the files that apply, those on which later ones build first."""
    if subject.report is None:
        yield unreported.check
    elif subject.report.structured is None:
        yield claims.check
        yield layers.check
    else:
        yield claims.check
        yield units.check
    if subject.source is not None:
        yield source_check.check
