"""Checkpoints in the formats of other runtimes."""

from .gguf import Exported, write_gguf

__all__ = ["Exported", "write_gguf"]
