"""A checkpoint that prunus did not write: verify finds its patterns and says them for each kind."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError, UnsupportedModelError
from prunus.cli.main import app
from prunus.judge.verify import verify
from prunus.maths.patterns import NM, Unstructured, parse_pattern

WANTED = {
    "q_proj": "2:4", "k_proj": "1:4:output", "v_proj": "5:8", "o_proj": "row",
    "gate_proj": "column", "up_proj": "dense", "down_proj": "8:16:output",
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The tiny Llama with another pattern in each kind of layer, and a dense one."""
    folder = shutil.copytree(MODELS / "llama", tmp_path_factory.mktemp("others") / "mixed")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        wanted = WANTED.get(name.split(".")[-2], "dense")
        if wanted != "dense":
            made = parse_pattern(wanted)
            share = made.sparsity if isinstance(made, NM) else 0.6
            assert isinstance(made, NM | Unstructured)
            tensors[name] = tensor * made.mask(tensor.abs(), share)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.reload
def test_patterns_are_found_for_each_kind_and_the_model_is_reloaded(mixed):
    found = verify(mixed)
    assert found.ok
    assert {kind: x.patterns for kind, x in found.kinds.items()} == {
        kind: {pattern: 3} for kind, pattern in WANTED.items()
    }
    assert found.patterns == dict.fromkeys(WANTED.values(), 3)
    tensors = load_file(mixed / "model.safetensors")
    zeros = total = 0
    for kind, x in found.kinds.items():
        own = [t for name, t in tensors.items() if f".{kind}." in name]
        assert x.zeros == sum(int((t == 0).sum()) for t in own)
        assert x.weights == sum(t.numel() for t in own)
        zeros, total = zeros + x.zeros, total + x.weights
    assert found.sparsity == pytest.approx(zeros / total)
    assert "fresh process" in found.checks[-1]


def test_the_command_has_a_line_for_each_kind(mixed):
    result = CliRunner().invoke(app, ["verify", str(mixed)])
    assert result.exit_code == 0
    assert "  k_proj: 75.0000% in 3 × 1:4:output" in result.stdout
    said = json.loads(CliRunner().invoke(app, ["verify", str(mixed), "--json"]).stdout)
    assert said["kinds"]["v_proj"] == {"patterns": {"5:8": 3}, "sparsity": 0.375}


def test_what_is_no_folder_of_weights_gets_one_sentence(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(UnsupportedModelError, match=r"holds an adapter .* Merge it into org/base"):
        verify(adapter)
    prunus.write_gguf(MODELS / "llama", tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="is a GGUF, and verify looks into safetensors"):
        verify(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="does not exist"):
        verify(tmp_path / "none")
