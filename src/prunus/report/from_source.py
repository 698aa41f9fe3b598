"""What a model card says of the files that a checkpoint was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FromSource:
    """What a checkpoint has from the files that it was made from, besides its model.

    Attributes:
        decoded: the format that the weights were stored in, such as fp8; None: plain numbers.
        dtype: asked for; None: every tensor keeps its own.
        carried: tensors that the model has no place for, copied bit for bit.
        dropped: such tensors that do not fit the pruned model and were left out.
        files: copied byte for byte.
        left: files that were not copied, with the reason.
    """

    decoded: str | None = None
    dtype: str | None = None
    carried: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def source_section(source: FromSource | None) -> str:
    """Return a section on what was decoded, carried along and left out; empty where nothing was."""
    if source is None:
        return ""
    said = []
    if source.decoded is not None:
        said.append(
            f"The source stores its weights as {source.decoded}; here they are the plain numbers "
            "that it stands for."
        )
    if source.dtype is not None:
        said.append(f"All weights were converted to {source.dtype}, as asked for.")
    if source.carried:
        said.append(
            "The model has no place for these tensors of the source, which were copied unchanged: "
            f"{_listed(source.carried)}."
        )
    if source.dropped:
        said.append(
            "These tensors of the source do not fit the pruned model and were left out: "
            f"{_listed(source.dropped)}."
        )
    if source.left:
        files = _listed([f"{name} ({why})" for name, why in source.left.items()])
        said.append(f"These files of the source were not copied: {files}.")
    return "".join(f"\n\n{text}" for text in said)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more, listed in `pruning_report.json`" if len(names) > 5 else ""
    return ", ".join(f"`{name}`" for name in names[:5]) + more
