"""What changed between two checkpoints: fields, files, names, zeros and values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..base.arguments import typed
from ..report.report import FILE as REPORT
from ..storage.checkpoint import TOKENIZER
from ..storage.opened import Opened, open_checkpoint
from ..storage.packed import FILE as PACKED
from ..storage.shards import NAMED
from .alignment import Alignment, align
from .changes import Counts, Look, TensorChange, looked_at
from .comparison import differing
from .reordered import Reordering
from .tensor_kinds import block_of, kinds_of, natural

NOTES = (
    REPORT,
    PACKED,
    "recipe.yaml",
    "answers.jsonl",
    "*.md",
    "LICENSE*",
)  # files that change no model
BOOKKEEPING = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype",
               "quantization_config")  # fields that say nothing of what a GGUF holds  # fmt: skip

Seen = Callable[[int, int, str], None]
"""Called before every tensor with (done, total, name)."""


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints.

    Attributes:
        given: as it was named.
        form: ``safetensors``, ``packed``, ``GGUF``, or the format that it was decoded from.
        tensors: how many it stores.
        weights: numbers in all of them.
    """

    given: str
    form: str
    tensors: int
    weights: int

    @classmethod
    def of(cls, opened: Opened) -> Side:
        """Describe a checkpoint."""
        return cls(opened.given, opened.form, len(opened.stored), opened.weights)


@dataclass(frozen=True)
class Field:
    """A field of config.json that differs; None on a side that does not have it."""

    name: str
    old: Any
    new: Any

    def to_dict(self) -> dict[str, Any]:
        """Return the field for ``--json``; infinities, which JSON lacks, as words."""
        said: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str), parse_constant=str)
        return said


@dataclass(frozen=True)
class File:
    """A file beside the weights that differs.

    Attributes:
        name: path in the folder.
        change: ``added``, ``removed``, ``changed``, or ``rewritten``: other bytes, the same JSON.
        kind: ``tokenizer``, ``note`` (a report or a text that changes no model) or ``other``.
    """

    name: str
    change: str
    kind: str

    @property
    def counts(self) -> bool:
        """Whether a model, or its use, may differ by it."""
        return self.kind != "note" and self.change != "rewritten"


@dataclass(frozen=True)
class Lone:
    """A tensor that one checkpoint has and the other has not."""

    name: str
    look: Look


@dataclass
class Group:
    """Tensors that are summed up: of one kind, in all blocks or in one.

    Attributes:
        label: what they are, such as ``q_proj``, or ``3 q_proj`` in block 3.
        tensors: how many there are.
        differing: how many have other values, another order of channels, or another shape.
        weights: numbers in them, in the old checkpoint and in the new one.
        zeros: of these.
        nonfinite: NaN and inf among these.
        patterns: patterns of their matrices, old and new, each with the number of matrices.
        counts: sums over all that could be compared place by place.
        notes: orders, shapes and rounding, each with the number of tensors.
    """

    label: str
    tensors: int = 0
    differing: int = 0
    weights: list[int] = field(default_factory=lambda: [0, 0])
    zeros: list[int] = field(default_factory=lambda: [0, 0])
    nonfinite: list[int] = field(default_factory=lambda: [0, 0])
    patterns: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))
    counts: Counts = field(default_factory=Counts)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def shares(self) -> list[float]:
        """Zeros over weights, old and new; 0 where there are no weights."""
        return [z / max(w, 1) for z, w in zip(self.zeros, self.weights, strict=True)]

    def add(self, row: TensorChange) -> None:
        """Add a tensor."""
        self.tensors += 1
        self.differing += not row.same_values
        for i, look in enumerate((row.old, row.new)):
            self.weights[i] += look.weights
            self.zeros[i] += look.zeros
            self.nonfinite[i] += look.nonfinite
            for pattern, number in look.patterns.items():
                self.patterns[i][pattern] = self.patterns[i].get(pattern, 0) + number
        if row.counts is not None:
            self.counts.add(row.counts)
        for note in row.notes:
            self.notes[note] = self.notes.get(note, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """Return the group for ``--json``."""
        return {**asdict(self), "shares": self.shares, "counts": self.counts.to_dict()}


@dataclass(frozen=True)
class Difference:
    """Everything that differs between an old checkpoint and a new one.

    Attributes:
        old: the checkpoint that is compared with.
        new: the checkpoint that is looked at.
        fields: fields of config.json that differ.
        files: files beside the weights that differ; None: a GGUF has them inside.
        names: how the tensors of the two belong together.
        added: tensors that only the new one has.
        removed: tensors that only the old one has.
        tensors: all others, each with what changed in it.
    """

    old: Side
    new: Side
    fields: Sequence[Field]
    files: Sequence[File] | None
    names: Alignment
    added: Sequence[Lone]
    removed: Sequence[Lone]
    tensors: Sequence[TensorChange]

    @property
    def same_weights(self) -> bool:
        """Whether both have the same tensors with the same values, in whatever dtype and form."""
        return not (self.added or self.removed) and all(x.same_values for x in self.tensors)

    @property
    def other_dtypes(self) -> dict[tuple[str, str], int]:
        """Pairs of dtypes, old and new, with the number of tensors; a GGUF has types of its own."""
        if "GGUF" in (self.old.form, self.new.form):
            return {}
        pairs = ((x.old.dtype, x.new.dtype) for x in self.tensors)
        return dict(Counter((a, b) for a, b in pairs if a != b))

    @property
    def only_rounded(self) -> bool:
        """Whether all values that changed and are no zeros were rounded to a narrower dtype."""
        counts = [x.counts for x in self.tensors if x.counts is not None and x.counts.changed]
        return bool(counts) and all(x.rounded for x in counts)

    @property
    def same(self) -> bool:
        """Whether both are the same model: weights, dtypes, names, config, tokenizer, other files.

        How it is stored (shards, packed or dense, a prefix of all names, a second copy of a tied
        tensor) and notes about it (report, recipe, model card) may differ.
        """
        return (
            self.same_weights
            and not (self.fields or self.names.renamed or self.other_dtypes)
            and not any(file.counts for file in self.files or ())
        )

    @property
    def whole(self) -> Group:
        """All tensors of both, summed up."""
        return self._summed(lambda row: "all")[0] if self.tensors else Group("all")

    def grouped(self, blocks: bool = False) -> list[Group]:
        """Return the tensors summed up by kind, or by block and kind."""
        if not blocks:
            return self._summed(lambda row: row.kind)
        return self._summed(lambda x: x.kind if x.block is None else f"{x.block} {x.kind}")

    def by_tensor(self) -> list[Group]:
        """Return every tensor as a group of its own."""
        return self._summed(lambda row: row.name)

    def _summed(self, label: Callable[[TensorChange], str]) -> list[Group]:
        groups: dict[str, Group] = {}
        for row in self.tensors:
            groups.setdefault(label(row), Group(label(row))).add(row)
        return list(groups.values())

    def to_dict(self, blocks: bool = False, tensors: bool = False) -> dict[str, Any]:
        """Return all of it for ``--json``, single blocks and tensors where they are asked for."""
        found = {
            "same": self.same,
            "same_weights": self.same_weights,
            "only_rounded": self.only_rounded,
            "old": asdict(self.old),
            "new": asdict(self.new),
            "config": [x.to_dict() for x in self.fields],
            "files": None if self.files is None else [asdict(x) for x in self.files],
            "dtypes": [
                {"old": a, "new": b, "tensors": n} for (a, b), n in self.other_dtypes.items()
            ],
            "prefix": self.names.prefix,
            "renamed": {was: name for name, was in self.names.renamed.items()},
            "copies": self.names.copies,
            "added": [{"name": x.name, **asdict(x.look)} for x in self.added],
            "removed": [{"name": x.name, **asdict(x.look)} for x in self.removed],
            "kinds": [group.to_dict() for group in self.grouped()],
        }
        if blocks:
            found["blocks"] = [group.to_dict() for group in self.grouped(blocks=True)]
        if tensors:
            found["tensors"] = [row.to_dict() for row in self.tensors]
        return found


@typed
def diff(
    old: str | Path,
    new: str | Path,
    *,
    trust_remote_code: bool = False,
    seen: Seen | None = None,
) -> Difference:
    """Compare two checkpoints, tensor by tensor; whoever made them.

    Tensors are mapped from their files and compared one by one, so memory holds a few copies of the
    largest one. Weights in formats of few bits are decoded to a temporary folder first; a GGUF is
    loaded for that.

    >>> diff("model", "pruned").same_weights

    Args:
        old: a folder, a hub id, a GGUF, a packed checkpoint.
        new: likewise, such as a model that was pruned from ``old``.
        trust_remote_code: run code that the checkpoints bring.
        seen: called before every tensor.

    Raises:
        CheckpointError: not a checkpoint, or damaged.
        UnsupportedModelError: an adapter, a pipeline, no language model.
    """
    theirs = open_checkpoint(old, trust_remote_code=trust_remote_code)
    ours = open_checkpoint(new, trust_remote_code=trust_remote_code)
    names = align(ours, theirs)
    found = Difference(
        Side.of(theirs),
        Side.of(ours),
        _fields(ours, theirs, trust_remote_code),
        _files(ours, theirs),
        names,
        [Lone(name, _look(ours, name)) for name in names.added],
        [Lone(name, _look(theirs, name)) for name in names.removed],
        _tensors(ours, theirs, names.pairs, seen or (lambda done, total, name: None)),
    )
    return found


def _tensors(new: Opened, old: Opened, pairs: Mapping[str, str], seen: Seen) -> list[TensorChange]:
    """Compare all pairs, those outside of blocks first: embeddings show orders of channels."""
    kinds, orders, found = kinds_of(pairs), Reordering(), []
    by_block = sorted(pairs, key=lambda name: (block_of(name) is not None, natural(name)))
    for number, name in enumerate(by_block):
        seen(number, len(by_block), name)
        ours, theirs = new.read(name), old.read(pairs[name])
        counts, order, note = looked_at(ours, theirs, orders)
        after = Look.at(ours, new.stored[name].dtype, name in new.transposed)
        dtype, transposed = old.stored[pairs[name]].dtype, pairs[name] in old.transposed
        if counts is not None and counts.none and not (order or note):
            before = replace(after, dtype=dtype)
        else:
            before = Look.at(theirs, dtype, transposed)
        found.append(
            TensorChange(
                name, pairs[name], kinds[name], block_of(name), before, after, counts, order, note
            )
        )
    return found


def _look(side: Opened, name: str) -> Look:
    return Look.at(side.read(name), side.stored[name].dtype, name in side.transposed)


def _fields(new: Opened, old: Opened, trust_remote_code: bool) -> list[Field]:
    """Compare config.json, and with a GGUF what transformers makes of either."""
    if new.folder is not None and old.folder is not None:
        found = differing(new.config, old.config, {NAMED})
    else:
        found = differing(
            new.config_as_loaded(trust_remote_code),
            old.config_as_loaded(trust_remote_code),
            BOOKKEEPING,
        )
    return [Field(name, was, now) for name, now, was in found]


def _files(new: Opened, old: Opened) -> list[File] | None:
    if new.folder is None or old.folder is None:
        return None
    ours, theirs = new.files(), old.files()
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            found.append(File(name, "added", _kind(name)))
        elif name not in ours:
            found.append(File(name, "removed", _kind(name)))
        elif ours[name].read_bytes() != theirs[name].read_bytes():
            same = name.endswith(".json") and _json(ours[name]) == _json(theirs[name])
            found.append(File(name, "rewritten" if same else "changed", _kind(name)))
    return found


def _kind(name: str) -> str:
    last = name.rpartition("/")[2]
    if any(fnmatch(last, pattern) for pattern in NOTES):
        return "note"
    return "tokenizer" if any(fnmatch(last, pattern) for pattern in TOKENIZER) else "other"


def _json(path: Path) -> Any:
    """Return what a JSON file says; its bytes where it is none."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return path.read_bytes()
