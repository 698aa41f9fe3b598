"""Activations on disk instead of in memory: ``--spill DIR``."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..base.atomic import try_folder
from ..base.errors import CheckpointError

LOCK = "in-use"


class Scratch:
    """A folder that is removed when nobody holds it any more, at the latest by the next one.

    A lock says whether its process lives, where the system knows such locks. A process that was
    killed leaves its folder, unlocked: whoever makes one beside it removes it. A folder that could
    not be locked has no lock's file, and nobody but its own process removes it.
    """

    def __init__(self, where: Path | None = None) -> None:
        where = where or Path(tempfile.gettempdir())
        for left in where.glob(f"prunus.*/{LOCK}"):
            if (lock := _locked(left)) is not None:
                _remove(left.parent, lock)
        new = Path(tempfile.mkdtemp(prefix=".prunus.", dir=where))
        (new / LOCK).touch()
        lock = _locked(new / LOCK)
        if lock is None:  # a process that knows locks would take this one, and remove the folder
            (new / LOCK).unlink()
        self.path = new.rename(where / new.name[1:])  # seen by others from now on, and locked
        weakref.finalize(self, _remove, self.path, lock)


def check_spill(spill: str | Path) -> Path:
    """Raise CheckpointError if activations cannot be put there; leave nothing of the trial.

    Raises:
        CheckpointError: nothing can be put there.
    """
    folder = Path(spill).expanduser()
    try:
        try_folder(folder.absolute())
    except OSError as error:
        why = error.strerror or error
        raise CheckpointError(
            f"--spill {folder} cannot be used: {why}. Give a folder that can be written to."
        ) from None
    return folder


def _remove(folder: Path, lock: IO[bytes] | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        lock.close()


def _locked(path: Path) -> IO[bytes] | None:
    """Open and lock the file; None if somebody else holds it or nobody can."""
    try:
        import fcntl

        file = open(path, "rb")
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


class Spilled:
    """A list of tensors, one file each, in a folder of its own that is removed with the list."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = Scratch(folder)
        except OSError as error:
            raise CheckpointError(f"--spill {folder} cannot be used: {error}.") from None
        self._count = 0

    def append(self, tensor: Tensor) -> None:
        """Write one more tensor."""
        self._count += 1
        self[self._count - 1] = tensor

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return load_file(self._file(index))["x"]

    def __setitem__(self, index: int, tensor: Tensor) -> None:
        try:
            save_file({"x": tensor.detach().cpu().contiguous()}, self._file(index))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"Activations could not be spilled to {self._folder.path}: {error}. Make room, or "
                "use fewer --samples or a shorter --length."
            ) from None

    def copy(self) -> Spilled:
        """Return a list of the same tensors, in a folder beside."""
        copied = Spilled(self._folder.path.parent)
        for tensor in self:
            copied.append(tensor)
        return copied

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(self._count))

    def _file(self, index: int) -> Path:
        return self._folder.path / f"{index}.safetensors"
