"""Available memory and disk: what the machine has free, and what cgroups leave of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

UNDER = Path("/")  # where /proc and /sys are
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")
IN_MEMORY = ("tmpfs", "ramfs")  # file systems that take memory, not disk


def available_memory(root: Path = UNDER) -> int:
    """Return the bytes that this process can still take before machine or cgroup run out."""
    return min([int(psutil.virtual_memory().available), *_left(root)])


def available_on(device: torch.device) -> int:
    """Return the bytes free on a CUDA device, with torch's unused ones; on the CPU, of memory."""
    if device.type != "cuda":
        return available_memory()
    free = int(torch.cuda.mem_get_info(device)[0])
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_disk(folder: Path) -> int:
    """Return the bytes that can be written below a folder, which need not exist yet."""
    return int(psutil.disk_usage(str(nearest(folder))).free)


def nearest(folder: Path) -> Path:
    """Return the folder, or the first existing one above it."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def is_in_memory(folder: Path) -> bool:
    """Return whether files there take memory, as in many systems' /tmp."""
    device = os.stat(nearest(folder)).st_dev
    for part in psutil.disk_partitions(all=True):
        try:
            if part.fstype in IN_MEMORY and os.stat(part.mountpoint).st_dev == device:
                return True
        except OSError:  # a mount point of somebody else
            continue
    return False


def _left(root: Path) -> Iterator[int]:
    """Return what each cgroup of this process, and each above, leaves of its limit."""
    for folder, (limit, usage) in _cgroups(root):
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None:
            yield max(most - used + _cached(folder), 0)


def _cgroups(root: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Return the memory controller's folders, from the process's own upwards, with file names.

    In a container the path may be that of the host: then only the mount's own folder is there.
    """
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            mounts, names = [mounted / "memory"], V1
        elif not controllers:
            mounts, names = [mounted, mounted / "unified"], V2
        else:
            continue
        own = Path() if ".." in path else Path(path.lstrip("/"))  # outside of what is mounted
        for mount in mounts:
            for inner in dict.fromkeys((own, *own.parents)):
                yield mount / inner, names


def _cached(folder: Path) -> int:
    """Return the bytes of file pages in the usage, which are freed when memory is wanted."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").split("\n")
    except OSError:
        return 0
    numbers = dict(line.split(" ", 1) for line in lines if " " in line)
    kinds = ("active_file", "inactive_file")
    prefix = "total_" if "total_active_file" in numbers else ""  # of version 1, with those below
    return sum(int(numbers.get(f"{prefix}{kind}", 0)) for kind in kinds)


def _number(path: Path) -> int | None:
    """Read the number in a file; None if it says max, or is missing."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
