"""Which files of a folder count: those that transformers loads, or one sentence says why not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError
from prunus.storage.checkpoint import load_model, load_weights
from prunus.storage.shards import INDEX, SINGLE, check_shards

NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path):
    """The tiny Llama in two shards and an index."""
    shutil.copytree(MODELS / "llama", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / SINGLE)
    (tmp_path / "m" / SINGLE).unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({n: tensors[n] for n in held}, tmp_path / "m" / file, {"format": "pt"})
    index(tmp_path / "m", {n: file for file, held in halves.items() for n in held})
    return tmp_path / "m"


def index(folder, weight_map, **more):
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map, **more}
    (folder / INDEX).write_text(json.dumps(content))


def weight_map(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def other(folder, file, scale=2.0):
    """Another save of the model, in one file."""
    tensors = load_file(MODELS / "llama" / SINGLE)
    save_file({n: scale * x for n, x in tensors.items()}, folder / file, {"format": "pt"})


def as_transformers(folder):
    """In memory and streamed, every tensor is what transformers loads."""
    expected = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).state_dict()
    found = load_model(folder).state_dict()
    streamed = load_weights(folder, stream=True)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert torch.equal(streamed.read(name), tensor), name
    return expected


def test_one_file_beside_an_index_wins(folder):
    other(folder, SINGLE)
    plain = load_file(MODELS / "llama" / SINGLE)
    assert torch.equal(as_transformers(folder)[NORM], 2 * plain[NORM])
    assert set(check_shards(folder).values()) == {folder / SINGLE}


def test_what_config_names_wins_over_both(folder, monkeypatch):
    monkeypatch.setattr("prunus.judge.reload.check", lambda *args: None)
    other(folder, SINGLE)
    other(folder, "mine.safetensors", 3.0)
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "mine.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    plain = load_file(MODELS / "llama" / SINGLE)
    assert torch.equal(as_transformers(folder)[NORM], 3 * plain[NORM])
    assert set(check_shards(folder).values()) == {folder / "mine.safetensors"}
    prunus.prune(folder, method="magnitude", output=folder.parent / "out")  # has its own name
    pruned = AutoModelForCausalLM.from_pretrained(folder.parent / "out").state_dict()
    assert torch.equal(pruned[NORM], 3 * plain[NORM])


def test_other_files_beside_the_shards_do_not_count(folder):
    plain = as_transformers(folder)
    for name in ("consolidated.safetensors", "model.fp16.safetensors"):
        other(folder, name)
    (folder / "pytorch_model.bin").write_bytes(b"no")
    (folder / "pytorch_model.bin.index.json").write_text('{"metadata": {}, "weight_map": {}}')
    assert all(torch.equal(plain[n], x) for n, x in as_transformers(folder).items())
    assert {x.name for x in check_shards(folder).values()} == {"a.safetensors", "b.safetensors"}


def test_what_the_index_leaves_out_of_a_shard_is_read(folder):
    named = weight_map(folder)
    index(folder, {n: file for n, file in named.items() if "layers.1.mlp" not in n})
    assert set(check_shards(folder)) == set(named)
    as_transformers(folder)


def test_a_tensor_that_its_shard_does_not_hold_is_named(folder):
    for extra, why in ((NORM, "(?:a|b).safetensors does"), ("model.ghost", "no other file")):
        named = weight_map(folder)
        files = {"a.safetensors": "b.safetensors", "b.safetensors": "a.safetensors"}
        index(folder, {**named, extra: files[named.get(extra, "a.safetensors")]})
        with pytest.raises(CheckpointError, match=rf"holds {extra}, which it does not \({why}"):
            prunus.prune(folder, method="magnitude")
        index(folder, named)


def test_a_tensor_in_two_shards_is_named(folder):
    held = load_file(folder / "b.safetensors")
    name = next(n for n, file in weight_map(folder).items() if file == "a.safetensors")
    held[name] = load_file(folder / "a.safetensors")[name] * 2
    save_file(held, folder / "b.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{name} is in two files, a\.\w+ and b\."):
        load_model(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {"x": 1}}',
                                     '{"metadata": {}, "weight_map": {}}', "[]"])  # fmt: skip
def test_an_index_that_transformers_cannot_read_is_damaged(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "why"),
    [("model.fp16.safetensors", "a variant: rename it"), ("consolidated.safetensors", "Mistral's")],
)
def test_what_else_is_there_is_said_where_nothing_counts(folder, name, why):
    for file in (INDEX, "a.safetensors", "b.safetensors"):
        (folder / file).unlink()
    other(folder, name)
    with pytest.raises(CheckpointError, match=why):
        load_model(folder)


def test_links_as_in_a_hub_cache_are_followed(folder, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = tmp_path / "blobs" / str(number)
        file.rename(blob)
        (tmp_path / "snapshot" / file.name).symlink_to(blob)
    as_transformers(tmp_path / "snapshot")
    (tmp_path / "snapshot" / "b.safetensors").resolve().unlink()  # a blob that was cleaned up
    with pytest.raises(CheckpointError, match=r"has no b\.safetensors"):
        load_model(tmp_path / "snapshot")
