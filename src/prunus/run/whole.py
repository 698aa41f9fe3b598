"""Whether a model that is read as a whole fits into memory: by its files' headers alone."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import RoomError
from ..base.memory import available_memory
from ..storage.checkpoint import Source, find
from ..storage.sizes import loaded_bytes
from ..storage.widths import FILE as WIDTHS
from .room import gib


def check_whole(checkpoint: str | Path, dtype: str, streamed: bool, beside: int = 1) -> None:
    """Raise RoomError if it is not ``streamed`` block by block and cannot be in memory.

    A GGUF, and blocks of different widths, never are.

    Args:
        checkpoint: as it was given.
        dtype: that it is read in.
        streamed: whether it would be read block by block if it can.
        beside: processes of this machine that read it.
    """
    source = find(checkpoint)
    folder = Path(source.location)
    never = source.gguf_file or (folder / WIDTHS).exists()
    if streamed and not never:
        return
    size, there = loaded_bytes(source, dtype), available_memory() // beside
    if size > there:
        each = f" to each of {beside} processes" if beside > 1 else ""
        raise RoomError(
            f"{checkpoint} is read as a whole here, and takes {gib(size)} of memory; {gib(there)} "
            f"are available{each}. {_levers(source, dtype, streamed, bool(never))}"
        )


def _levers(source: Source, dtype: str, streamed: bool, never: bool) -> str:
    levers = [] if dtype in ("bfloat16", "float16") else ["--dtype bfloat16"]
    if not never and not streamed:
        levers.append(
            "what is read block by block: with --output, another method than llm-pruner, "
            "--calibration of a text instead of self, and no --answers"
        )
    if source.gguf_file:
        levers.append("a folder of safetensors, which is read block by block")
    return f"Use {', or '.join(levers)}." if levers else "Use a machine with more memory."
