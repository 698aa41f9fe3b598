"""A GGUF that is read quicker is read the same, and the package is left as it was."""

import gguf
import numpy
import pytest

import prunus
from helpers.models import MODELS
from prunus.storage.gguf_reading import quick


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    prunus.write_gguf(MODELS / "llama", path)
    return path


def contents(reader):
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {x.name: (x.tensor_type, x.shape.tolist()) for x in reader.tensors}


def test_the_same_fields_and_tensors(file):
    before = gguf.GGUFReader(file)
    with quick("model.gguf"):
        reader = gguf.GGUFReader(file)
    assert type(reader.data) is numpy.ndarray
    assert contents(reader) == contents(before)
    for one, other in zip(reader.tensors, before.tensors, strict=True):
        assert numpy.array_equal(one.data, other.data)


def test_the_package_is_left_as_it_was(file):
    own = gguf.GGUFReader, gguf.get_tensor_name_map
    with quick("model.gguf"):
        assert gguf.GGUFReader is not own[0]
        table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is table
    with pytest.raises(OSError, match="none"), quick("model.gguf"):
        raise OSError("none")
    assert own == (gguf.GGUFReader, gguf.get_tensor_name_map)
    with quick(None):
        assert own == (gguf.GGUFReader, gguf.get_tensor_name_map)
