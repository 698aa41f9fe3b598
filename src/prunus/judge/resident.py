"""Memory of this process: what it holds now, and at most since a moment."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import psutil
import torch

CPU = torch.device("cpu")


def forget_peak(device: torch.device = CPU) -> None:
    """Start the peak afresh from what is held now, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that of the whole life


def peak_bytes(device: torch.device = CPU) -> int:
    """Return the peak of CUDA memory, or of the resident set: VmHWM, which exec starts afresh."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rest_bytes(device: torch.device = CPU) -> int:
    """Return what is held now, after handing back what Python and the allocator keep unused."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
    return int(psutil.Process().memory_info().rss)
