"""What a checkpoint takes over from its source, and what the model card says about that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FromSource:
    """What a checkpoint takes over from the files of its source, besides the model.

    Attributes:
        decoded: the format that the weights were stored in, such as fp8; None: plain numbers.
        dtype: the dtype that was asked for; None: every tensor keeps its own.
        carried: tensors that the model has no place for, copied bit for bit.
        dropped: such tensors that do not fit the pruned model and were left out.
        files: files that were copied byte for byte.
        left: files that were not copied, with the reason.
    """

    decoded: str | None = None
    dtype: str | None = None
    carried: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def source_section(source: FromSource | None) -> Iterator[str]:
    """Yield a paragraph on each of what was decoded, carried along and left out."""
    if source is None:
        return
    if source.decoded is not None:
        yield (
            f"The source stores its weights as {source.decoded}; here they are the plain numbers "
            "that it stands for."
        )
    if source.dtype is not None:
        yield f"All weights were converted to {source.dtype}, as asked for."
    if source.carried:
        yield (
            "The model has no place for these tensors of the source, which were copied unchanged: "
            f"{_listed(source.carried)}."
        )
    if source.dropped:
        yield (
            "These tensors of the source do not fit the pruned model and were left out: "
            f"{_listed(source.dropped)}."
        )
    if source.left:
        files = _listed([f"{name} ({why})" for name, why in source.left.items()])
        yield f"These files of the source were not copied: {files}."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more, listed in `pruning_report.json`" if len(names) > 5 else ""
    return ", ".join(f"`{name}`" for name in names[:5]) + more
