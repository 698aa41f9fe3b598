"""GGUF in parts: all are read, whichever is named; what is missing or foreign is named."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from transformers import AutoModelForCausalLM

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError, InputError
from prunus.run.observer import Silent
from prunus.storage.checkpoint import find, load_model, load_tokenizer
from prunus.storage.gguf import write_gguf
from prunus.storage.gguf_parts import parts

LLAMA = MODELS / "llama"
IDS = torch.randint(0, 500, (1, 24), generator=torch.Generator().manual_seed(0))
KINDS = {"no": GGUFValueType.UINT16, "count": GGUFValueType.UINT16,
         "tensors.count": GGUFValueType.INT32}  # fmt: skip


def split(whole, count, said=None, alignment=32):
    """The file in parts beside it, as llama.cpp's gguf-split lays them out; their paths."""
    reader = GGUFReader(whole)
    tensors = [list(x) for x in np.array_split(np.arange(len(reader.tensors)), count)]
    made = []
    for part in range(count):
        path = whole.with_name(f"{whole.stem}-{part + 1:05}-of-{count:05}.gguf")
        writer = GGUFWriter(path, "llama")
        writer.add_custom_alignment(alignment)
        for key, field in reader.fields.items() if part == 0 else ():
            if not key.startswith("GGUF.") and key != "general.architecture":
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
        numbers = {"no": part, "count": count, "tensors.count": len(reader.tensors)}
        for key, value in {**numbers, **(said or {})}.items():
            writer.add_key_value(f"split.{key}", value, KINDS[key])
        for i in tensors[part]:
            tensor = reader.tensors[i]
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.append(path)
    return made


@pytest.fixture
def whole(tmp_path):
    write_gguf(LLAMA, tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


def in_parts(whole, **more):
    made = split(whole, 3, **more)
    whole.unlink()
    return made


@pytest.mark.parametrize("alignment", [32, 64])
def test_any_part_and_the_folder_are_the_whole_model(whole, alignment, tmp_path, monkeypatch):
    expected = load_model(whole).state_dict()
    length = len(load_tokenizer(whole))
    made = in_parts(whole, alignment=alignment)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for named in (made[0], made[2], tmp_path):
        model = load_model(named)
        assert set(model.state_dict()) == set(expected)
        assert all(torch.equal(expected[n], x) for n, x in model.state_dict().items())
        assert len(load_tokenizer(named)) == length
        del model
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_split_model_is_pruned_verified_planned_scored_and_exported(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.judge.reload.check", lambda *args: None)
    source, text = in_parts(whole)[1], tmp_path / "text.txt"
    text.write_text("The plum tree stood in the garden, and nobody had pruned it for years. " * 40)
    run = {"method": "wanda", "samples": 2, "length": 32, "calibration": str(text)}
    assert prunus.plan(source, output=tmp_path / "out", **run).peak_bytes > 0
    result = prunus.prune(source, output=tmp_path / "out", **run)
    assert result.report.sparsity == 0.5
    assert "temporary" not in (tmp_path / "out" / "config.json").read_text()
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    dense = load_model(source).state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor[tensor != 0], dense[name][tensor != 0])
    assert prunus.verify(tmp_path / "out", source=source, reload=False).ok
    assert prunus.evaluate(source, str(text), windows=1, length=64).perplexity > 1
    write_gguf(tmp_path / "out", tmp_path / "again.gguf", tokenizer=source)
    assert len(GGUFReader(tmp_path / "again.gguf").tensors) == len(
        [x for part in parts(source) for x in GGUFReader(part).tensors]
    )


def test_a_missing_part_is_named(whole):
    made = in_parts(whole)
    made[1].unlink()
    for named in (made[0], made[2], made[0].parent):
        with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf is missing from"):
            find(named)


def test_two_models_in_one_folder_are_listed_by_their_first_parts(whole):
    made = split(whole, 2)
    with pytest.raises(CheckpointError, match=r"\(m-00001-of-00002\.gguf, m\.gguf\)"):
        find(made[0].parent)


@pytest.mark.parametrize(
    ("said", "why"),
    [({"count": 4}, "says that it is part 0 .* of 4"), ({"tensors.count": 99}, "declares 99")],
)
def test_parts_that_say_otherwise_are_refused(whole, said, why):
    made = in_parts(whole, said=said)
    with pytest.raises(CheckpointError, match=why):
        load_model(made[0])


def test_a_part_of_another_model_is_refused(whole):
    made = in_parts(whole)
    shutil.copy(made[0], made[1])
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf says that it is part 0"):
        load_model(made[0])


def test_too_little_room_is_said_first(whole, monkeypatch):
    made = in_parts(whole)
    monkeypatch.setattr(
        "prunus.storage.gguf_parts.disk_usage", lambda _: SimpleNamespace(free=1000)
    )
    with pytest.raises(CheckpointError, match=r"3 parts .* as one file .* where 0\.0 GiB are free"):
        load_model(made[0])


def test_a_part_that_is_cut_off_is_refused(whole):
    made = in_parts(whole)
    made[1].write_bytes(made[1].read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf cannot be read as a part"):
        load_model(made[0])


class Ends(Silent):
    """Ends a run at its second block."""

    def block(self, index, total, name, step):
        if index == 1:
            raise KeyboardInterrupt


def test_a_part_that_changed_ends_a_resume(whole, tmp_path):
    made = in_parts(whole)
    run = {"method": "magnitude", "output": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(made[0], observer=Ends(), **run)
    content = bytearray(made[2].read_bytes())
    content[-1] ^= 1
    made[2].write_bytes(content)
    with pytest.raises(InputError, match=made[2].name):
        prunus.prune(made[0], resume=True, **run)
