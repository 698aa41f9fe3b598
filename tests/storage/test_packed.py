"""Packed checkpoints: written, loaded and run as the dense ones; damaged ones end in a sentence."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import CheckpointError, InputError, PrunusError
from prunus.cli.main import app
from prunus.maths.packed import Values
from prunus.model.blocks import outputs_first
from prunus.runtime.packed_linear import PackedLinear
from prunus.runtime.packed_model import load_packed
from prunus.storage.packed import read_packed

FAST = {"samples": 2, "length": 48, "calibration": "builtin"}
IDS = torch.arange(3, 40)[None]
pytestmark = pytest.mark.filterwarnings("ignore:prunus was installed without")


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt", "gpt_neox", "phi3"])
def pruned(request, tmp_path_factory):
    """A pruned checkpoint of each way to store a linear layer: fused, Conv1D, with biases."""
    folder = tmp_path_factory.mktemp(request.param) / "pruned"
    prunus.prune(MODELS / request.param, method="wanda", sparsity=0.5, output=folder, **FAST)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama") / "pruned"
    prunus.prune(MODELS / "llama", method="wanda", sparsity=0.5, output=folder, **FAST)
    return folder


def text(model):
    with torch.inference_mode():
        return model.generate(IDS, max_new_tokens=24, do_sample=False)[0].tolist()


def packed_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear)}


def test_the_same_text_as_the_dense_model(pruned, tmp_path):
    dense = prunus.load(pruned)
    made = prunus.write_packed_checkpoint(pruned, tmp_path / "packed")
    for model in (prunus.load(tmp_path / "packed"), prunus.load(pruned, packed="float32")):
        layers = packed_layers(model)
        assert len(layers) == made.layers > 0
        for name, layer in layers.items():
            assert torch.equal(layer.weight, outputs_first(dense.get_submodule(name)))
        assert text(model) == text(dense)
        with torch.inference_mode():
            batch = torch.cat((IDS, IDS.flip(1)))
            assert torch.allclose(model(batch).logits, dense(batch).logits, atol=1e-3)


@pytest.mark.parametrize("values", ["bf16", "int8", "int4"])
def test_fewer_bits_stay_near(llama, values, tmp_path):
    made = prunus.write_packed_checkpoint(llama, tmp_path / "packed", values=values)
    found, dense = prunus.load(tmp_path / "packed"), prunus.load(llama)
    assert str(Values.of(values)) == made.values
    with torch.inference_mode():
        logits = found(IDS).logits, dense(IDS).logits
    agree = (logits[0].argmax(-1) == logits[1].argmax(-1)).float().mean()
    assert agree >= {"bf16": 0.95, "int8": 0.95, "int4": 0.7}[values]
    assert made.packed_bytes < made.dense_bytes * {"bf16": 0.4, "int8": 0.3, "int4": 0.25}[values]


def test_perplexity_is_that_of_the_dense_model(llama, tmp_path):
    prunus.write_packed_checkpoint(llama, tmp_path / "packed")
    found = [
        prunus.evaluate(folder, "builtin", length=64, windows=2).perplexity
        for folder in (llama, tmp_path / "packed")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_blocks_of_different_widths(tmp_path):
    prunus.prune(MODELS / "llama", method="flap", sparsity=0.3, output=tmp_path / "narrow", **FAST)
    assert (tmp_path / "narrow" / "widths.json").exists()
    prunus.prune(
        tmp_path / "narrow", method="wanda", sparsity=0.5, output=tmp_path / "both", **FAST
    )
    prunus.write_packed_checkpoint(tmp_path / "both", tmp_path / "packed")
    assert text(prunus.load(tmp_path / "packed")) == text(prunus.load(tmp_path / "both"))


def test_channels_in_another_order_at_run_time(tmp_path):
    prunus.prune(
        MODELS / "llama", method="ria", pattern="2:4", permutation="gather",
        output=tmp_path / "gather", **FAST,
    )  # fmt: skip
    prunus.write_packed_checkpoint(tmp_path / "gather", tmp_path / "packed")
    expected = text(prunus.load(tmp_path / "gather"))
    assert text(prunus.load(tmp_path / "packed")) == expected
    assert text(prunus.load(tmp_path / "gather", packed="float32")) == expected


def test_weights_are_mapped_not_copied(llama, tmp_path):
    prunus.write_packed_checkpoint(llama, tmp_path / "packed")
    layer = next(iter(packed_layers(prunus.load(tmp_path / "packed")).values()))
    place = layer.packed_values.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if start <= place < end:
            assert "packed-00001.safetensors" in line
            return
    pytest.fail("the values lie in no mapping")


def test_the_folder_has_all_else(llama, tmp_path):
    prunus.write_packed_checkpoint(llama, tmp_path / "packed")
    there = {p.name for p in (tmp_path / "packed").iterdir()}
    assert {p.name for p in llama.iterdir()} - there == {"model.safetensors"}
    assert there - {p.name for p in llama.iterdir()} == {"packed.json", "packed-00001.safetensors"}
    with pytest.raises(OSError, match=r"model\.safetensors"):  # other programs do not take it
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


def test_where_a_packed_checkpoint_does_not_go(llama, tmp_path):
    folder = tmp_path / "packed"
    prunus.write_packed_checkpoint(llama, folder)
    with pytest.raises(CheckpointError, match="Give the checkpoint that it was exported from"):
        prunus.prune(folder, method="wanda", output=tmp_path / "again", **FAST)
    with pytest.raises(CheckpointError, match="is packed, which"):
        prunus.write_packed_checkpoint(folder, tmp_path / "again")
    with pytest.raises(InputError, match="packed already"):
        prunus.load(folder, packed="int8")
    with pytest.raises(InputError, match="leave sparse out"):
        prunus.load(folder, sparse="2:4")
    with pytest.raises(InputError, match="which save_pretrained cannot write"):
        prunus.load(folder).save_pretrained(tmp_path / "saved")


def test_a_model_without_zeros_is_refused(tmp_path):
    with pytest.raises(InputError, match="No linear layer has at least 30% zeros"):
        prunus.write_packed_checkpoint(MODELS / "llama", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    with pytest.raises(InputError, match="Prune the model first"):
        prunus.load(MODELS / "llama", packed="bf16")


def test_the_command(llama, tmp_path):
    run = CliRunner().invoke
    output = str(tmp_path / "packed")
    done = run(app, ["export", str(llama), "--to", "packed", "--output", output, "--json",
                     "--values", "int8", "--group", "32"])  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["values"] == "int8, groups of 32"
    assert found["kept"] / found["weights"] == pytest.approx(0.5, abs=0.01)
    again = run(app, ["export", str(llama), "--to", "packed", "--output", output])
    assert again.exit_code == 2
    wrong = run(app, ["export", str(llama), "--to", "gguf", "--output", "x", "--values", "int8"])
    assert wrong.exit_code == 2
    assert "--values does not apply to --to gguf" in wrong.output


@pytest.mark.parametrize("version", [2, "1", None])
def test_versions_that_are_not_known(llama, tmp_path, version):
    prunus.write_packed_checkpoint(llama, tmp_path / "packed")
    path = tmp_path / "packed" / "packed.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    with pytest.raises(CheckpointError, match="this prunus reads 1"):
        prunus.load(tmp_path / "packed")


def changed(folder, number):
    """Damage one of the files in one of many ways."""
    choose = random.Random(number)
    name = choose.choice(["packed.json", "packed-00001.safetensors", "packed-00001.safetensors"])
    path = folder / name
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little") if name != "packed.json" else len(content)
    kind = choose.randrange(5)
    at = choose.randrange(header if kind < 3 else len(content))
    if kind == 0:  # a bit of the header, or of the index
        content[at] ^= 1 << choose.randrange(8)
    elif kind == 1:  # a digit for another
        digits = [i for i in range(header) if 48 <= content[i] <= 57]
        content[choose.choice(digits)] = choose.choice(b"0123456789")
    elif kind == 2:
        del content[at : at + choose.randrange(1, 9)]
    elif kind == 3:  # cut off
        del content[at:]
    else:  # bits of anything
        for _ in range(choose.randrange(1, 9)):
            content[choose.randrange(len(content))] = choose.randrange(256)
    path.write_bytes(content)
    return path


@pytest.mark.filterwarnings("ignore")
def test_thousands_of_damaged_files_end_in_a_sentence_or_in_a_model(tmp_path):
    """Never in another exception, nor in a process that dies of what it read."""
    model, _ = load_tiny("gpt2")
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "Conv1D":
                module.weight *= torch.rand_like(module.weight) > 0.6
    model.save_pretrained(tmp_path / "sparse")
    folder, refused = tmp_path / "packed", []
    prunus.write_packed_checkpoint(tmp_path / "sparse", folder, values="int4", group=32)
    whole = {p.name: p.read_bytes() for p in folder.glob("packed*")}
    for number in range(2000):
        path = changed(folder, number)
        try:
            files = read_packed(folder)
            tensors = files.read()
            for name in files.layers:
                files.take(name, tensors).dense()
            if number % 20 == 0:
                with torch.inference_mode():
                    load_packed(folder, "auto")(IDS[:, :3])
        except PrunusError as error:
            refused.append(str(error))
        path.write_bytes(whole[path.name])
    assert len(refused) > 700
    assert max(map(len, refused)) < 600


def test_files_that_are_missing(llama, tmp_path):
    prunus.write_packed_checkpoint(llama, tmp_path / "packed")
    shutil.copytree(tmp_path / "packed", tmp_path / "other")
    (tmp_path / "packed" / "packed-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"packed-00001.safetensors is missing"):
        prunus.load(tmp_path / "packed")
    with safe_open(tmp_path / "other" / "packed-00001.safetensors", framework="pt") as opened:
        assert any(name.endswith("packed_masks") for name in opened.keys())
    path = tmp_path / "other" / "packed.json"
    index = json.loads(path.read_text())
    index["layers"]["model.layers.0.nothing"] = next(iter(index["layers"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks tensors of model.layers.0.nothing"):
        prunus.load(tmp_path / "other")
