"""The names of ways to run a model, and which of them can run here."""

import re

import pytest

from prunus.base.errors import CheckpointError, InputError, UnknownNameError
from prunus.judge import ways as module
from prunus.judge.ways import WAYS, counts, disk_bytes, names, ways_of


def dtypes(asked, dtype="auto"):
    return {way.label: (way.dtype, way.own_dtype) for way in ways_of(asked, "p", "d", dtype, "cpu")}


def test_each_way_has_a_checkpoint_and_a_dtype():
    found = ways_of(["pruned", "int8", "csr", "pruned=other"], "p", "d", "auto", "cpu")
    assert [(way.label, way.model) for way in found] == [
        ("dense", "d"),
        ("pruned", "p"),
        ("int8", "d"),
        ("csr", "p"),
        ("pruned=other", "other"),
    ]
    packed = ["packed-fp32", "packed-bf16", "packed-fp16", "packed-int8", "packed-int4"]
    own = {f"packed-{x}": (y, True) for x, y in
           [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")]}  # fmt: skip
    files = {"dense": ("auto", False), "packed-int8": ("auto", False)}
    assert dtypes(packed) == {**files, **own, "packed-int4": ("auto", False)}
    assert set(dtypes(packed, "float32").values()) == {("float32", False)}  # it was asked for
    assert dtypes(["csr"], "bfloat16")["csr"] == ("float32", True)


def test_the_dense_model_is_always_there_and_once():
    assert list(dtypes(["dense", "pruned"])) == ["dense", "pruned"]


@pytest.mark.parametrize(
    ("asked", "device", "message"),
    [
        (["pruned", "pruned"], "cpu", "pruned is there twice"),
        (["dense"], "cpu", "nothing to compare the dense model with. Name a way: pruned, packed-"),
        ([], "cpu", "nothing to compare"),
        (["2:4"], "cpu", "sparse tensor cores, and this is the CPU. Give --device cuda"),
        (["int8"], "cuda:0", "int8 is measured on the CPU alone"),
        (["dense=x"], "cpu", "the dense model is named by --dense. Write dense."),
        (["pruned="], "cpu", "it names no checkpoint. Write pruned=FOLDER."),
    ],
)
def test_ways_that_cannot_run_are_refused_before_any_work(asked, device, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ways_of(asked, "p", "d", "auto", device)


def test_an_unknown_way_names_all():
    with pytest.raises(UnknownNameError) as error:
        ways_of(["int9"], "p", "d", "auto", "cpu")
    assert all(way in str(error.value) for way in WAYS)


def test_what_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed: pip install llama-cpp-python"):
        ways_of(["llama.cpp=x.gguf"], "p", "d", "auto", "cpu")
    monkeypatch.setattr(module, "has_dynamic_int8", lambda: False)
    with pytest.raises(InputError, match="which this torch no longer has"):
        ways_of(["int8"], "p", "d", "auto", "cpu")
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    with pytest.raises(InputError, match=r"llama.cpp=FILE.gguf"):
        ways_of(["llama.cpp"], "p", "d", "auto", "cpu")
    (tmp_path / "x.bin").touch()
    with pytest.raises(CheckpointError, match=r"reads a .gguf file; got .*x.bin"):
        ways_of([f"llama.cpp={tmp_path / 'x.bin'}"], "p", "d", "auto", "cpu")


def test_names_and_numbers_come_as_lists_or_with_commas():
    assert names("pruned, csr") == names(["pruned", "csr"]) == ["pruned", "csr"]
    assert counts("batch", "1, 4,16") == counts("batch", (1, 4, 16)) == [1, 4, 16]
    for wrong in ("", "1,,2", "1,1", [0], [], None, 1.5j, ["x"]):
        with pytest.raises(InputError, match="batch is a whole number of at least 1"):
            counts("batch", wrong)
    with pytest.raises(InputError, match=r"Ways to run are names; got \[5\]"):
        names([5])


def test_bytes_on_disk(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"123")
    (tmp_path / "y").write_bytes(b"4567")
    (tmp_path / "z").symlink_to(tmp_path / "y")  # as in the hub's cache
    assert disk_bytes(tmp_path) == 11
    assert disk_bytes(tmp_path / "y") == 4
