"""Writes that happen as a whole or not at all: under a temporary name, renamed at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOSPC, ENOSYS, ENOTSUP
from pathlib import Path

from safetensors import SafetensorError

from .errors import CheckpointError


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """Make a folder under a temporary name; rename it to ``output`` on success, else remove it.

    Raises:
        CheckpointError: ``output`` exists and is no empty folder, or cannot be made.
    """
    with _renamed(Path(output)) as folder:
        yield folder


@contextmanager
def new_file(output: str | Path) -> Iterator[Path]:
    """Do the same for a file, which the caller makes; even an empty folder is in the way."""
    with _renamed(Path(output), Path(output).name) as path:
        yield path


@contextmanager
def _renamed(output: Path, name: str = "") -> Iterator[Path]:
    check_free(output, file=bool(name))
    with no_new_parents(output):
        folder = _temporary(output)
        try:
            yield folder / name
            check_free(output, file=bool(name))
            put(folder / name, output)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{output} could not be written: {reason(error)}.") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def put(made: Path, output: Path) -> None:
    """Give the result its name, in place of an empty folder if there is one."""
    if made.is_dir() and output.is_dir():
        output.rmdir()  # not every system renames onto a folder
    made.rename(output)


def reason(error: Exception) -> str:
    """Return why something could not be written; a full disk is named as such."""
    said = str(error)
    full = getattr(error, "errno", None) == ENOSPC or "No space left" in said
    if full or " requested and " in said:  # numpy counts what a full disk did not take
        return "No space left on device"
    return said.rstrip(".")


def check_room(output: Path, needed: int) -> None:
    """Raise CheckpointError if the disk of ``output`` has less than ``needed`` bytes free."""
    place = next(folder for folder in output.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{output} takes {_size(needed)}, and its disk has {_size(free)} left: "
            f"{_size(needed - free)} are missing. Free some space, or choose another --output."
        )


def _size(count: int) -> str:
    """Format the size of a file for people."""
    if count < 10**6:
        return f"{count / 10**3:.1f} kB"
    return f"{count / 10**6:.1f} MB" if count < 10**9 else f"{count / 10**9:.2f} GB"


def check_output(output: str | Path, file: bool = False) -> None:
    """Raise CheckpointError if ``output`` is taken or cannot be made: before the work.

    An empty folder is free, unless a ``file`` shall come there.
    """
    output = Path(output)
    check_name(output)
    check_free(output, file)
    try:
        try_folder(output.absolute().parent, output.name)
    except OSError as error:
        raise _unwritable(output, error) from None


def check_name(path: Path) -> None:
    """Raise CheckpointError for a path that Python could not decode, which no message can show."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise CheckpointError(
            f"{shown} has characters that this terminal's encoding does not know. Set "
            "PYTHONUTF8=1, or a UTF-8 locale such as LC_ALL=C.UTF-8."
        ) from None


def kept_safe(descriptor: int) -> None:
    """Ask the system to put a file on the disk; some network file systems cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP, ENOSYS):
            raise


def readable(path: Path) -> None:
    """Let others read a file or folder, where the file system has permissions."""
    with suppress(PermissionError, NotImplementedError):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _unwritable(output: Path, error: OSError) -> CheckpointError:
    """Return the error for a path, without the temporary name, which nobody gave."""
    why = error.strerror or error
    return CheckpointError(f"{output} cannot be written: {why}. Choose another place for it.")


def try_folder(folder: Path, name: str = "prunus") -> None:
    """Raise OSError if the nearest existing folder accepts no such name; nothing is left."""
    near = next(place for place in (folder, *folder.parents) if place.exists())
    Path(tempfile.mkdtemp(prefix=f".{name}.", dir=near)).rmdir()


@contextmanager
def no_new_parents(output: Path) -> Iterator[None]:
    """Remove the folders above ``output`` that were made inside, if they end up empty."""
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # it is not empty, or was never made
                folder.rmdir()


def unfinished(output: Path) -> Path:
    """Return the folder of a run that is to become ``output``."""
    return output.parent / f".{output.name}.unfinished"


def check_free(output: Path, file: bool = False) -> None:
    """Raise CheckpointError if something would be overwritten."""
    if not os.path.lexists(output) or (not file and _is_empty(output)):
        return
    left = unfinished(output)
    beside = f" {left} is left of a run that was killed at its end; remove it too."
    raise CheckpointError(
        f"{output} exists. Choose another --output, or remove it first; nothing is overwritten."
        f"{beside if left.exists() else ''}"
    )


def _is_empty(output: Path) -> bool:
    """Return whether it is an empty folder that a finished one can replace.

    Raises:
        CheckpointError: it is empty and has to stay.
    """
    if output.is_symlink() or not output.is_dir():
        return False
    try:
        if any(output.iterdir()):
            return False
    except OSError:  # nobody knows what is in there
        return False
    if output.is_mount() or output.samefile(Path.cwd()):
        what = "where a disk is mounted" if output.is_mount() else "the folder that you are in"
        raise CheckpointError(
            f"{output} is {what}; a finished checkpoint replaces its folder. Give a new folder "
            f"inside it: {output / 'pruned'}."
        )
    return True


def _temporary(output: Path) -> Path:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        readable(folder)  # mkdtemp's 0700 is for secrets
    except OSError as error:
        raise _unwritable(output, error) from None
    return folder
