"""The journal of a run: every finished block is on disk at once, so that a run can be resumed.

The folder ``.NAME.unfinished`` beside the output has a shard for each block and ``journal.jsonl``:
first the fingerprint of the run, then a line for each block, appended after its shard is safe.
Whatever ends the run in between leaves a block that is done or one that is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from errno import EACCES, EWOULDBLOCK
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..base.atomic import check_free, kept_safe, put, readable, reason, unfinished
from ..base.errors import CheckpointError
from ..base.words import number_of
from ..model.blocks import Block
from ..report.layer import LayerReport
from .resuming import LINES, Differences, check_same, followed, told

REPORTS = TypeAdapter(list[LayerReport])
DESCENT = "descent"  # how the file of a state begins


@dataclass
class Journal:
    """The finished blocks of a run.

    Attributes:
        folder: where it is kept; the finished checkpoint is built inside and moved out.
        residual: the order of the residual stream, where one was folded.
        blocks: by index, what the journal says of a block.
        outliers: of each block, where they were counted.
        learned: by the first block of a unit, what was noted of its shares.
        searched: by the number of the question, what candidates were judged to be.
        different: what differed between the runs that made it, where they were allowed to.
        held: the open file that keeps other processes away.
        earlier: seconds that earlier runs had spent when they wrote their last line.
        begun: when this run began, by ``time.perf_counter``.
    """

    folder: Path
    residual: Tensor | None
    blocks: dict[int, dict[str, Any]]
    outliers: dict[int, float] | None = None
    learned: dict[int, dict[str, Any]] = field(default_factory=dict)
    searched: dict[int, dict[str, Any]] = field(default_factory=dict)
    different: Differences = field(default_factory=dict)
    held: IO[bytes] | None = None
    earlier: float = 0.0
    begun: float = field(default_factory=time.perf_counter)

    @classmethod
    def open(
        cls,
        output: Path,
        fingerprint: Mapping[str, Any],
        resume: bool,
        say: Callable[[str], None],
        allow_different: bool = False,
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> Journal:
        """Begin a journal, or take up that of an unfinished run with the same fingerprint.

        With ``allow_different`` it may differ in what can change the last bits alone. ``defaults``
        are those of entries that an earlier version's fingerprint lacks.

        Raises:
            CheckpointError: there is an unfinished run and ``resume`` is False; another process
                has it; its journal is damaged, or cannot be written.
            InputError: the unfinished run is another one; says what differs.
        """
        folder = unfinished(output)
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        journal = cls(folder, None, {})
        journal._lock()  # before anything is read, mended or written
        try:
            now = json.loads(json.dumps(fingerprint))
            journal._take_up(output, now, resume, say, allow_different, defaults)
        except BaseException:
            journal.close()
            raise
        return journal

    def _take_up(
        self,
        output: Path,
        fingerprint: dict[str, Any],
        resume: bool,
        say: Callable[[str], None],
        allow_different: bool,
        defaults: Mapping[str, Any],
    ) -> None:
        """Read what an earlier run left, or begin."""
        lines = lines_of(self.folder / LINES)
        if not lines and not any(self.folder.glob("block-*")):  # or killed at birth
            if resume:
                say(f"nothing to resume: {output} has no unfinished run; this one starts it")
            self._append({"fingerprint": fingerprint})
            return
        first = fingerprint_of(lines, self.folder / LINES, resume)
        if different := check_same(first, fingerprint, self.folder, allow_different, defaults):
            say(f"continuing although {told(different)}: the last bits may differ")
            lines.append({"different": different})
            self._append(lines[-1])
        self.different = followed(x["different"] for x in lines if "different" in x)
        residual = next((x["residual"] for x in lines if "residual" in x), None)
        self.residual = None if residual is None else torch.tensor(residual, dtype=torch.int64)
        self.blocks = {x["block"]: x for x in lines if "block" in x}
        counted = next((x["outliers"] for x in lines if "outliers" in x), None)
        self.outliers = None if counted is None else {int(k): v for k, v in counted.items()}
        self.learned = {x["learned"]: x for x in lines if "learned" in x}
        self.searched = {x["searched"]: x for x in lines if "searched" in x}
        self.earlier = max((x["spent"] for x in lines if "spent" in x), default=0.0)
        say(f"resuming after {number_of(len(self.blocks), 'block')}")

    def holds(self, blocks: Iterable[int]) -> bool:
        """Return whether all of these blocks are done."""
        return all(index in self.blocks for index in blocks)

    @property
    def worthwhile(self) -> bool:
        """Whether there is anything that a later run can go on from."""
        descents = any(self.folder.glob(f"{DESCENT}-*"))
        return bool(self.blocks or self.searched or descents) or self.residual is not None

    def order_residual(self, order_I: Tensor) -> None:
        """Note the order that the whole model is in from now on."""
        self.residual = order_I.cpu()
        self._append({"residual": self.residual.tolist()})

    def note_outliers(self, outliers: Mapping[int, float]) -> None:
        """Note what the look at the dense model found."""
        self.outliers = dict(outliers)
        self._append({"outliers": self.outliers})

    def note_searched(self, number: int, notes: Mapping[str, Any]) -> None:
        """Note how candidates were judged, the ``number``-th time."""
        self.searched[number] = {"searched": number, **notes}
        self._append(self.searched[number])

    def note_learned(self, index: int, notes: Mapping[str, Any]) -> None:
        """Note what was learned for the blocks from ``index`` on."""
        self.learned[index] = dict(notes)
        self._append({"learned": index, **notes})

    def write(
        self,
        block: Block,
        reports: list[LayerReport],
        packed: Mapping[str, Tensor],
        notes: Mapping[str, Any],
    ) -> None:
        """Put the block's tensors into its shard, packed ones beside it, then say so.

        ``notes`` are whatever else a later run needs to know of the block.
        """
        if packed:
            write_shard(packed_beside(self.shard(block.index)), dict(packed))
        path = self.put(block)
        line = {
            "block": block.index,
            "sha256": sha256(path),
            "reports": [asdict(report) for report in reports],
            **notes,
        }
        self._append(line)
        self.blocks[block.index] = line
        for path in self.folder.glob(f"{DESCENT}-*"):
            path.unlink()

    def keep_descent(self, index: int, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Put the state of a descent on disk; it goes when the block is written."""
        write_shard(self._descent(index, part), dict(tensors))

    def descent(self, index: int, part: str) -> dict[str, Tensor] | None:
        """Return the state of a descent that was interrupted; None: there was none.

        Raises:
            CheckpointError: its file is damaged.
        """
        path = self._descent(index, part)
        try:
            return load_file(path) if path.exists() else None
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}). Remove that file, and the block begins anew."
            ) from None

    def _descent(self, index: int, part: str) -> Path:
        return self.folder / f"{DESCENT}-{index:05d}-{part}.safetensors"

    def put(self, block: Block) -> Path:
        """Write the tensors of a block that is at hand into its shard."""
        path = self.shard(block.index)
        state = block.module.state_dict()
        write_shard(path, {f"{block.name}.{key}": tensor for key, tensor in state.items()})
        return path

    @contextmanager
    def found(self, block: Block) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]] | None]:
        """Return the notes and tensors of a finished block; None if it is still to do.

        Raises:
            CheckpointError: the shard has other bytes than were written, or whatever is wrong with
                what is inside.
        """
        line = self.blocks.get(block.index)
        if line is None:
            yield None
            return
        path = self.shard(block.index)
        try:
            if sha256(path) != line["sha256"]:
                raise ValueError("other bytes than were written")
            yield line, load_file(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}). Remove {self.folder} and start again."
            ) from None

    def shard(self, index: int) -> Path:
        """Return the file with the tensors of a block."""
        return self.folder / f"block-{index:05d}.safetensors"

    @contextmanager
    def finished(self, output: Path) -> Iterator[Path]:
        """Make a folder that becomes ``output`` on success; then remove the journal.

        Raises:
            CheckpointError: it cannot be written, or ``output`` is taken by now.
        """
        folder = self.folder / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed right here
        try:
            with explained(output):
                folder.mkdir()
                yield folder
                check_free(output)
                put(folder, output)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # its blocks stay, and room is needed
            raise
        self.remove()

    def remove(self) -> None:
        """Remove the journal."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.blocks = {}

    def close(self) -> None:
        """Let other processes have the journal."""
        if self.held is not None:
            self.held.close()

    def _lock(self) -> None:
        """Lock the journal until it is closed or this process ends, where the system can."""
        try:
            import fcntl
        except ImportError:
            return
        with explained(self.folder):
            self.held = open(self.folder / LINES, "ab")
        try:
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (EWOULDBLOCK, EACCES):
                self.held.close()
                raise CheckpointError(f"Another process is writing to {self.folder}.") from None
            # else a network file system without locks: two runs at once would not be noticed

    def _append(self, line: Mapping[str, Any]) -> None:
        spent = self.earlier + time.perf_counter() - self.begun
        with explained(self.folder):
            append_line(self.folder / LINES, {**line, "spent": spent})


@torch.no_grad()
def fill(block: Block, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of a shard into a block that has their shapes."""
    own = block.module.state_dict()
    for name, tensor in tensors.items():
        own[name.removeprefix(f"{block.name}.")].copy_(tensor)


def sha256(path: Path) -> str:
    """Hash a file, one piece at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def packed_beside(shard: Path) -> Path:
    """Return the file that replaces the shard's quantised weights in a packed checkpoint."""
    return shard.with_suffix(".packed")


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file as a whole or not at all, even after a power cut."""
    part = path.with_suffix(".part")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with explained(path):
        try:
            save_file(tensors, part, metadata={"format": "pt"})
            readable(part)
            with open(part, "rb") as file:
                kept_safe(file.fileno())
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written: {reason(error)}. Make room (finished blocks are kept, "
            "and --resume continues from there), or choose another --output."
        ) from error


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Put a line of JSON on the disk, at the end of a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        kept_safe(file.fileno())


def fingerprint_of(lines: Sequence[Mapping[str, Any]], path: Path, resume: bool) -> dict[str, Any]:
    """Return the fingerprint with which a journal of an unfinished run begins.

    Raises:
        CheckpointError: it is not to be resumed, or there is none.
    """
    if not resume:
        raise CheckpointError(
            f"An unfinished run is in {path.parent}. Continue with --resume, or remove that folder."
        )
    first = lines[0].get("fingerprint") if lines else None
    if not isinstance(first, dict):
        raise CheckpointError(f"{path} is damaged. Remove {path.parent} and start again.")
    return first


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Read all whole lines; a line that was cut off at the end is ignored."""
    lines: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(
            f"{path} cannot be read. Remove {path.parent} and start again."
        ) from None
    for line in text.split("\n")[:-1]:
        try:
            lines.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise CheckpointError(
                f"{path} is damaged. Remove {path.parent} and start again."
            ) from None
    if not text.endswith("\n") and text:  # cut off: what follows must not continue that line
        with explained(path):
            os.truncate(path, len(text[: text.rfind("\n") + 1].encode()))
    return lines
