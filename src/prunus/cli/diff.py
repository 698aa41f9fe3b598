"""``prunus diff``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.words import number_of
from .console import command, print_json, print_line, print_table
from .options import Json

if TYPE_CHECKING:
    from ..judge.diff import Difference, File, Group, Lone

EXAMPLES = """
**Examples**

`prunus diff org/model pruned` — exit 0 if both are the same model, 1 if not

`prunus diff ./model pruned --blocks` (a row for each kind of tensor in each block)

`prunus diff model.gguf pruned --tensors --json`
"""
FEW = 8  # names in a line
COLUMNS = ["", "", "zeros A", "zeros B", "new", "back", "changed", "by", "pattern"]


@command
def run(
    old: Annotated[str, typer.Argument(metavar="A", help="A folder, a hub id, or a GGUF.")],
    new: Annotated[str, typer.Argument(metavar="B", help="Likewise, such as what A became.")],
    blocks: Annotated[
        bool, typer.Option("--blocks", help="A row for each kind of tensor in each block.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="A row for each tensor.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the checkpoints bring.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what changed between two checkpoints, whoever made them: config, files, weights.

    Of each kind of tensor: zeros before and after and their pattern, zeros that are new, zeros that
    came back as values, and of the kept values the share that changed, and by how much.
    """
    from ..judge.diff import diff
    from ..run.progress import bars

    with bars("{task.fields[now]}") as drawing:
        task = drawing.add_task("tensors", total=None, now="opening")

        def seen(done: int, total: int, name: str) -> None:
            drawing.update(task, completed=done, total=total, now=name)

        found = diff(old, new, trust_remote_code=trust_remote_code, seen=seen)
        drawing.update(task, completed=len(found.tensors), now="done")
    if json:
        print_json(found.to_dict(blocks=blocks, tensors=tensors))
    else:
        _print(found, blocks, tensors)
    if not found.same:
        raise typer.Exit(1)


def _print(found: Difference, blocks: bool, tensors: bool) -> None:
    for letter, side in (("A", found.old), ("B", found.new)):
        size = f"{number_of(side.tensors, 'tensor')}, {number_of(side.weights, 'weight')}"
        print_line(f"{letter}  {side.given} ({side.form}): {size}")
    print_line()
    for line in (*_config(found), *_files(found.files), *_names(found)):
        print_line(line)
    print_line()
    groups = found.by_tensor() if tensors else found.grouped(blocks)
    shown = [group for group in groups if group.differing or any(group.zeros)]
    if shown:
        print_table(COLUMNS, map(_row, shown))
        for line in _notes(shown):
            print_line(line)
    quiet = [f"{group.label} × {group.tensors}" for group in groups if group not in shown]
    if quiet:
        print_line(f"  as they were, without zeros: {', '.join(quiet)}")
    print_line()
    for line in _verdict(found):
        print_line(line)


def _config(found: Difference) -> Iterator[str]:
    yield f"config: {len(found.fields)} fields differ" if found.fields else "config: the same"
    for x in found.fields:
        if x.old is None:
            yield f"  + {x.name}: {x.new!r}"
        elif x.new is None:
            yield f"  - {x.name}: {x.old!r}"
        else:
            yield f"    {x.name}: {x.old!r} → {x.new!r}"


def _files(files: Sequence[File] | None) -> Iterator[str]:
    if files is None:
        yield "files: not compared; a GGUF has its tokenizer inside"
        return
    for kind, title in (("tokenizer", "tokenizer"), ("other", "other files"), ("note", "notes")):
        own = [f"{x.name} {x.change}" for x in files if x.kind == kind]
        yield f"{title}: {', '.join(own) or 'the same'}"


def _names(found: Difference) -> Iterator[str]:
    names = found.names
    yield f"tensors: {len(names.pairs)} in both"
    for title, lone in (("only in A", found.removed), ("only in B", found.added)):
        if lone:
            yield f"  {title}: {_few([_lone(x) for x in lone])}"
    if names.prefix:
        yield f"  names of one of them begin with {names.prefix}"
    if names.renamed:
        yield f"  renamed: {_few([f'{was} → {name}' for name, was in names.renamed.items()])}"
    for name, twin in names.copies.items():
        yield f"  {name} is stored only in one of them, as a copy of {twin}"
    for (was, now), count in found.other_dtypes.items():
        yield f"  {was} → {now}: {number_of(count, 'tensor')}"


def _lone(x: Lone) -> str:
    return f"{x.name} ({x.look.dtype} {' × '.join(map(str, x.look.shape))})"


def _few(names: Collection[str]) -> str:
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(list(names)[:FEW]) + more


def _row(group: Group) -> list[str]:
    counts = group.counts
    was, now = (", ".join(_patterns(x)) for x in group.patterns)
    return [
        group.label,
        str(group.tensors),
        *(f"{share:.2%}" for share in group.shares),
        _short(counts.new_zeros),
        _short(counts.returned),
        f"{counts.changed / counts.kept:.1%}" if counts.changed else "",
        f"{counts.relative:.1e}" if counts.changed else "",
        now if was in (now, "dense") else f"{was} → {now}",
    ]


def _short(count: int) -> str:
    """Return a number in at most five letters; "" for 0."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count or "")


def _patterns(found: dict[str, int]) -> list[str]:
    """Return patterns, with their numbers where there are several."""
    return list(found) if len(found) == 1 else [f"{n} × {name}" for name, n in found.items()]


def _notes(groups: Sequence[Group]) -> Iterator[str]:
    """Yield what is to be said of tensors beside numbers, each with the kinds that have it."""
    for note in dict.fromkeys(note for group in groups for note in group.notes):
        own = [f"{x.label} × {x.notes[note]}" for x in groups if note in x.notes]
        yield f"  {note}: {_few(own)}"


def _verdict(found: Difference) -> Iterator[str]:
    """Yield what a reviewer wants to know first."""
    every = found.whole
    counts = every.counts
    for letter, count in zip("AB", every.nonfinite, strict=True):
        if count:
            yield f"{letter} holds NaN or inf: {number_of(count, 'value')}."
    if found.same:
        yield "The same model."
    elif found.same_weights:
        yield "The same weights."
    else:
        yield f"{every.differing} of {every.tensors} tensors differ."
    if counts.new_zeros or counts.returned:
        yield f"{counts.new_zeros:,} zeros are new, {counts.returned:,} came back as values."
    if counts.changed:
        by = f"by {counts.relative:.2e} of their norm, by {counts.largest:.3g} at most"
        how = "are rounded" if found.only_rounded else "changed"
        yield f"{counts.changed:,} of {counts.kept:,} kept values {how}: {by}."
    elif not found.same_weights and counts.kept:
        same = "the same numbers" if found.other_dtypes else "bit-identical"
        yield f"All {counts.kept:,} values that were kept are {same}."
