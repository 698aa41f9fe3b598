"""Whether a run fits into memory and onto disks, judged by shapes alone before the first block.

A run is refused only if what it surely holds at once is more than there is. Activations that would
leave little memory go to disk by themselves, as with ``--spill``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.atomic import unfinished
from ..base.errors import RoomError
from ..base.memory import available_on, free_disk, is_in_memory, nearest
from ..maths.stats import Statistic

FULL = 0.9  # of what is available: beyond it, activations go to disk if there is room
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Need:
    """What each process of a run surely holds at once, in bytes.

    Attributes:
        samples: of calibration text in all processes; 0: there is none.
        recovery: of recovery's text, where that is another; 0: it is not.
        length: tokens of each.
        activations: of this process's samples; these may be on disk instead.
        held: memory beside them: a block that is read, its statistics, the copy that is written.
        ids: token ids that are not drawn yet.
        on_device: CUDA memory, of a block and its statistics.
        journal: disk for the output's blocks, while activations may be on disk too.
        written: disk for the output while it is put together, the journal included.
        home: where activations are, if not on disk.
        device: where blocks are pruned.
        wide: whether the model is in float32, so that another dtype takes less.
        beside: processes on this machine.
    """

    samples: int = 0
    length: int = 0
    activations: int = 0
    held: int = 0
    ids: int = 0
    on_device: int = 0
    journal: int = 0
    written: int = 0
    home: torch.device = CPU
    device: torch.device = CPU
    wide: bool = False
    beside: int = 1
    recovery: int = 0

    @property
    def windows(self) -> int:
        """Samples of all texts together."""
        return self.samples + self.recovery

    @property
    def fixed(self) -> int:
        """Bytes of all that is where the activations are, beside them."""
        return self.on_device if self.home.type == "cuda" else self.held + self.ids

    @property
    def total(self) -> int:
        """Bytes beside the activations, and those of the activations."""
        return self.fixed + self.activations


def fit(
    need: Need,
    spill: Path | None,
    output: Path | None,
    say: Callable[[str], None] = lambda message: None,
) -> Path | None:
    """Return the folder for activations: ``spill``, or one chosen here for want of memory.

    ``output`` is where the checkpoint shall be; None: nothing is written. The user is told of what
    is chosen here.

    Raises:
        RoomError: memory or disk will not do; says how much is there and what to change.
    """
    _check_fixed(need)
    chosen = spill
    there = _memory(need, need.home)
    if spill is None and need.activations and need.total > FULL * there:
        chosen = _elsewhere(need)
        if chosen is None and need.total > there:
            raise RoomError(f"{_said(need, there)} {levers(need, there, True)}")
        if chosen is not None:
            say(
                f"the activations of {need.windows:,} samples take {gib(need.activations)}, and "
                f"{gib(there)} of memory are available: they go to disk, into {chosen} "
                "(--spill DIR names another place)"
            )
    _check_disks(need, chosen, output)
    return chosen


def gib(size: float) -> str:
    """Put a size into words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of all numbers of these tensors."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def statistics_bytes(kinds: Iterable[type[Statistic]], features: int) -> int:
    """Bytes of statistics of so many inputs: made on the meta device, which takes no memory."""
    made: list[Any] = [kind(features, torch.device("meta")) for kind in kinds]
    return sum(bytes_of(x for x in vars(one).values() if isinstance(x, Tensor)) for one in made)


def _memory(need: Need, device: torch.device) -> int:
    """Return the bytes that one process may take there; CUDA devices are not shared."""
    return available_on(device) // (1 if device.type == "cuda" else need.beside)


def _check_fixed(need: Need) -> None:
    """Raise RoomError for what no disk can help with."""
    for what, device in ((need.held + need.ids, CPU), (need.on_device, need.device)):
        there = _memory(need, device)
        if what > there:
            beside = replace(need, activations=0, home=device)
            raise RoomError(f"{_said(beside, there)} {levers(need, there, False)}")


def _said(need: Need, there: int) -> str:
    """Say what the run holds where its activations are, and what is there."""
    cuda = need.home.type == "cuda"
    parts = {
        f"the activations of {need.windows:,} samples of {need.length:,} tokens": need.activations,
        f"the token ids of {need.windows:,} samples": 0 if cuda else need.ids,
        "a block with its statistics": need.on_device if cuda else need.held,
    }
    named = [f"{name} {gib(size)}" for name, size in parts.items() if size]
    return (
        f"This run does not fit into {'CUDA memory' if cuda else 'memory'}. It holds "
        f"{' and '.join(named)}; {gib(there)} are available{_each(need)}."
    )


def _each(need: Need) -> str:
    return f" to each of the {need.beside} processes of this machine" if need.beside > 1 else ""


def levers(need: Need, there: int, spilling: bool, total: int | None = None) -> str:
    """Say what to change.

    Args:
        need: of the run.
        there: what is available.
        spilling: whether activations on disk would help.
        total: what is needed, where more is known than that.
    """
    found = []
    moving = need.activations + need.ids
    if need.recovery and moving:
        found.append("fewer --samples and --recovery-samples")
    elif need.samples and moving:
        left = there - ((total or need.total) - moving)
        few = int(left * 0.95 * need.samples / moving)
        few -= few % 10 ** max(len(str(few)) - 2, 0)  # two digits are enough
        if few > 0 or spilling:
            found.append(f"fewer --samples{f' ({few:,} would fit)' if few > 0 else ''}")
    if need.windows:
        found.append("a shorter --length")
    if spilling:
        found.append(
            f"--spill DIR on a disk with {gib(need.activations * need.beside)} free "
            f"({_why_not(Path(tempfile.gettempdir()))})"
        )
    if need.wide:
        found.append("--dtype bfloat16")
    if need.beside > 1:
        found.append("fewer processes")
    if not found:
        return "Free memory, or use a larger machine."
    return f"Use {', '.join(found[:-1])}{' or ' if found[1:] else ''}{found[-1]}."


def _why_not(folder: Path) -> str:
    if is_in_memory(folder):
        return f"{folder} is in memory itself"
    return f"{folder} has {gib(free_disk(folder))}"


def _elsewhere(need: Need) -> Path | None:
    """Return the system's temporary folder, if it is a disk with room for the activations."""
    folder = Path(tempfile.gettempdir())
    if is_in_memory(folder) or need.activations * need.beside > FULL * free_disk(folder):
        return None
    return folder


def _check_disks(need: Need, spill: Path | None, output: Path | None) -> None:
    """Raise RoomError if a disk is too small for activations or output; they may share one."""
    spilled = need.activations * need.beside if spill is not None else 0
    if spill is not None and spilled > free_disk(spill):
        raise RoomError(
            f"--spill {spill} has {gib(free_disk(spill))} free, and the activations of "
            f"{need.windows:,} samples of {need.length:,} tokens take {gib(spilled)}. "
            f"{levers(need, free_disk(spill) // need.beside + need.fixed, False)[:-1]}, or another "
            "folder."
        )
    if output is None:
        return
    free, before = free_disk(output.parent), _size(output)
    one = spill is not None and _disk(spill) == _disk(output.parent)
    most = max(need.written, need.journal + spilled if one else 0)
    if most > free + before:
        beside = f", with the activations in {spill}," if most > need.written else ""
        raise RoomError(
            f"{output} takes {gib(most)} of disk while it is made{beside} and {gib(free)} are free "
            "there. Make room, or choose another --output."
        )


def _disk(folder: Path) -> int:
    return nearest(folder).stat().st_dev


def _size(output: Path) -> int:
    """Bytes that an unfinished run has written already."""
    return sum(x.stat().st_size for x in unfinished(output).glob("*") if x.is_file())
