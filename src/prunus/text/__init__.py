"""Calibration text: sources, the papers' sampling protocol, text that the model writes itself."""

from .documents import Documents
from .sampling import Protocol, sample_windows
from .self_generated import generate
from .sources import read_documents

__all__ = ["Documents", "Protocol", "generate", "read_documents", "sample_windows"]
