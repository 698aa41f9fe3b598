"""The gguf package, quicker: it reads a file of SmolLM2's size in a third of its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@contextmanager
def quick(gguf_file: str | None) -> Iterator[None]:
    """Have a GGUF, if it is one, read quicker for as long as this lasts; what is read is the same.

    The package slices a memory map once for each word of the vocabulary, which takes numpy far
    longer than slicing an array over the same bytes. And transformers asks for the table of tensor
    names once for each module of a model; it depends on the architecture alone.
    """
    if gguf_file is None or find_spec("gguf") is None:
        yield
        return
    gguf: Any = import_module("gguf")
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = _plain(reader), cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def _plain(reader: Any) -> Any:
    """Return the reader with its map of the file as a plain array over it."""
    import numpy

    class Plain(reader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._plain_data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain_data = mapped.view(numpy.ndarray)

    return Plain
