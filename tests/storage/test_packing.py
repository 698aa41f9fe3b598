"""Packed integers: exact in every dtype, loaded by plain transformers, refused where not."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from helpers.runs import Ends, same, tensors
from prunus.base.errors import CheckpointError, InputError
from prunus.cli.main import app
from prunus.maths.grids import Grid
from prunus.storage import packing

pytest.importorskip("compressed_tensors")
FAST = {"samples": 2, "length": 48}
WANDA = {"method": "wanda", "bits": 4, "group": 16, **FAST}

# In a new interpreter without prunus: pairs of packed and ordinary checkpoints, and their logits.
COMPARE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, logging
logging.set_verbosity_error()
logging.disable_progress_bar()
found = []
for packed, plain in json.loads(sys.argv[1]):
    models = [AutoModelForCausalLM.from_pretrained(x, local_files_only=True).eval()
              for x in (packed, plain)]
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in models]
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    assert "prunus" not in sys.modules
    found.append([float((logits[0] - logits[1]).abs().max()),
                  sum(not torch.equal(states[0][k], states[1][k]) for k in states[0]),
                  sum(int((x == 0).sum()) for x in states[0].values())])
print(json.dumps(found))
"""


@pytest.fixture(autouse=True)
def _without_reload(request, monkeypatch):
    if "reload" not in request.keywords:
        monkeypatch.setattr("prunus.judge.reload.check", lambda *args: None)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    output = tmp_path_factory.mktemp("packed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunus.judge.reload.check", lambda *args: None)
        result = prunus.prune(MODELS / "llama", output=output, pack=True, **WANDA)
    return output, result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_library_reads_back_every_integer(bits, group, dtype):
    for rows in (9, 64):
        weight_OI = torch.randn(rows, 48, generator=torch.Generator().manual_seed(rows)).to(dtype)
        weight_OI[:, ::2] = 0
        quantized = Grid(bits, group).quantize(weight_OI)
        library = packing._library(quantized.grid)
        state = packing.packed(quantized)
        assert set(state) == set(library.compressor.compression_param_names(library.scheme))
        new_OI = library.compressor.decompress(state, library.scheme)["weight"]
        assert new_OI.dtype == dtype
        assert torch.equal(new_OI, quantized.dequantize())
        assert (new_OI[:, ::2] == 0).all()
        assert state["weight_packed"].shape == (rows, -(-48 * bits // 32))


@pytest.mark.reload
def test_plain_transformers_gets_the_same_model_from_integers(tmp_path):
    """Bit for bit, in a fresh process: seven architectures and three dtypes."""
    pairs = []
    cases = [(name, "auto", 4, 16) for name in ("llama", "gemma", "opt", "phi3", "bloom")]
    cases += [("gpt_neox", "auto", 3, 0), ("llama", "bfloat16", 8, 0), ("llama", "float16", 2, 32)]
    for number, (family, dtype, bits, group) in enumerate(cases):
        fields = {**WANDA, "bits": bits, "group": group, "dtype": dtype}
        pair = [tmp_path / f"{number}-{pack}" for pack in (True, False)]
        for output, pack in zip(pair, (True, False), strict=True):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("prunus.judge.reload.check", lambda *args: None)
                prunus.prune(MODELS / family, output=output, pack=pack, **fields)
        pairs.append([str(x) for x in pair])
    command = [sys.executable, "-c", COMPARE, json.dumps(pairs)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for (family, *_), (gap, different, zeros) in zip(cases, json.loads(ran.stdout), strict=True):
        assert gap == 0, family
        assert different == 0, family
        assert zeros > 0


def test_files_hold_integers_and_a_claim_that_loaders_understand(packed):
    output, result = packed
    assert result.verification.ok
    stored = tensors(output)
    names = {name for name in stored if "q_proj" in name and ".0." in name}
    parts = {"weight_packed", "weight_scale", "weight_zero_point", "weight_shape"}
    assert names == {f"model.layers.0.self_attn.q_proj.{part}" for part in parts}
    content = json.loads((output / "config.json").read_text())
    said = content["quantization_config"]
    assert "sparsity_config" not in {**content, **said}
    assert said["ignore"] == ["lm_head"]
    assert packing.grid_of(content) == Grid(4, 16)
    size = (output / "model.safetensors").stat().st_size
    assert size < 0.4 * (MODELS / "llama" / "model.safetensors").stat().st_size
    assert "stored as packed integers" in (output / "README.md").read_text()
    assert not list(output.parent.glob(".*"))  # nothing is left beside it


def test_untouched_layers_stay_as_they_are(tmp_path):
    fields = {**WANDA, "mlp_only": True, "skip_blocks": "0:1", "pack": True}
    prunus.prune(MODELS / "llama", output=tmp_path / "out", **fields)
    verified = prunus.verify(tmp_path / "out", source=MODELS / "llama")
    assert verified.ok, verified.problems
    stored = tensors(tmp_path / "out")
    assert "model.layers.0.mlp.up_proj.weight" in stored
    assert "model.layers.1.self_attn.q_proj.weight" in stored
    assert "model.layers.1.mlp.up_proj.weight_packed" in stored
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert len(said["ignore"]) == 1 + 7 + 2 * 4  # head, a block, the attention of two


def test_a_packed_model_is_pruned_quantised_and_evaluated_like_any_other(packed, tmp_path):
    output, _ = packed
    plain = prunus.evaluate(output, length=64, windows=2).perplexity
    assert plain < 500
    result = prunus.prune(output, output=tmp_path / "more", method="wanda", sparsity=0.6, **FAST)
    assert result.verification.ok
    assert "quantization_config" not in (tmp_path / "more" / "config.json").read_text()
    again = prunus.quantize(output, bits=8, group=16, pack=True, output=tmp_path / "8", **FAST)
    assert again.report.layers[0].pattern == "row"  # what was claimed before is claimed again
    assert again.report.sparsity >= 0.5


@pytest.mark.parametrize("fields", [{"true_sequential": True}, {"permutation": "fold"}])
def test_packed_is_unpacked_with_orders_and_stages(fields, tmp_path):
    for pack in (True, False):
        output = tmp_path / str(pack)
        prunus.prune(MODELS / "llama", output=output, pack=pack, pattern="2:4", **WANDA, **fields)
    states = [prunus.load(tmp_path / str(pack)).state_dict() for pack in (True, False)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_an_ended_run_is_taken_up_with_its_integers(packed, tmp_path):
    for step in ("record", "prune", "advance"):
        output = tmp_path / step
        observer = Ends(1, step)
        with pytest.raises(KeyboardInterrupt):
            prunus.prune(MODELS / "llama", output=output, pack=True, observer=observer, **WANDA)
        prunus.prune(MODELS / "llama", output=output, pack=True, resume=True, **WANDA)
        same(output, packed[0])


def test_an_ended_run_is_not_taken_up_unpacked(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(
            MODELS / "llama", output=output, pack=True, observer=Ends(1, "record"), **WANDA
        )
    with pytest.raises(InputError, match="its recipe pack was True, now it is False"):
        prunus.prune(MODELS / "llama", output=output, resume=True, **WANDA)


def test_verify_sees_a_damaged_integer_and_a_wrong_claim(packed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(packed[0], folder)
    path = folder / "model.safetensors"
    sound = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight_zero_point"
    save_file({**sound, name: sound[name] ^ 1}, path, metadata={"format": "pt"})
    problems = prunus.verify(folder).problems
    assert any("up_proj.weight has" in problem for problem in problems)
    save_file(sound, path, metadata={"format": "pt"})
    assert prunus.verify(folder).ok
    config = folder / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "sparsity_config": {"format": "sparse-bitmask"}}))
    assert "sparsity_config" in prunus.verify(folder).problems[0]
    said = content["quantization_config"]
    said["config_groups"]["group_0"]["weights"]["num_bits"] = 8
    config.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"report says 4 bits.* config\.json says 8 bits"):
        prunus.verify(folder)
    said["format"] = "marlin-24"
    config.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="that prunus did not write"):
        prunus.verify(folder)


def test_what_cannot_be_packed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    output = tmp_path / "out"

    def refused(match, model=MODELS / "llama", **fields):
        with pytest.raises(InputError, match=match):
            prunus.prune(model, output=output, **{**WANDA, "pack": True, **fields})
        assert not list(tmp_path.iterdir())

    refused(r"q_proj has 64 inputs, .* not 24 at a time\. --group 16 fits", group=24)
    refused("is a Conv1D", MODELS / "gpt2")
    refused("is for a run with --bits", bits=None, group=None)
    sequential = {"pattern": "2:4", "permutation": "fold", "true_sequential": True}
    refused("a later layer's order moves rows", **sequential)
    model, tokenizer = load_tiny("llama")
    refused("pack is for a model given as a path", model, tokenizer=tokenizer)
    with pytest.raises(InputError, match="lie on no integer grid"):
        prunus.quantize(MODELS / "llama", group=16, scales=True, pack=True, output=output)
    monkeypatch.setitem(sys.modules, "compressed_tensors.compressors", None)
    refused(r"not installed: pip install 'prunus\[export\]'")


def test_layers_too_small_for_the_library_are_refused(tmp_path):
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "llama" / file, tmp_path / "model")
    with pytest.raises(InputError, match="k_proj has 8 outputs"):
        prunus.prune(tmp_path / "model", output=tmp_path / "out", pack=True, **WANDA)


def test_the_command_line(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [str(x) for x in arguments])

    fast = ["--samples", "2", "--length", "48"]
    sparse, small = tmp_path / "sparse", tmp_path / "small"
    pruned = run(
        "prune", MODELS / "llama", "--method", "wanda", "--pattern", "2:4", "--output", sparse,
        *fast,
    )  # fmt: skip
    assert pruned.exit_code == 0, pruned.stderr
    ran = run("quantize", sparse, "--group", "32", "--pack", "--output", small, *fast)
    assert ran.exit_code == 0, ran.stderr
    assert "21 layers on grids of 4 bits, groups of 32" in ran.stdout
    assert "needs compressed-tensors to be loaded" in ran.stdout
    checked = json.loads(run("verify", small, "--json").stdout)
    assert checked["pattern"] == "2:4"  # the source's report said so
    assert checked["ok"] is True
    rows = run("quantize", sparse, "--group", "0", "--output", tmp_path / "rows", "--json", *fast)
    said = json.loads(rows.stdout)
    assert said["grid"] == "4 bits, rows"
    assert said["sparsity"] >= 0.5
    assert prunus.verify(tmp_path / "rows", source=sparse).ok
    path = tmp_path / "rows" / "model.safetensors"
    stored = load_file(path)
    weight_OI = stored["model.layers.0.mlp.up_proj.weight"]
    weight_OI[0] = torch.where(weight_OI[0] == 0, weight_OI[0].max(), 0.0)
    save_file(stored, path, metadata={"format": "pt"})
    problems = prunus.verify(tmp_path / "rows", source=sparse).problems
    assert any("up_proj.weight has values where" in problem for problem in problems)
    wrong = run("quantize", sparse, "--bits", "1", "--output", tmp_path / "no", *fast)
    assert wrong.exit_code == 2
    assert "A grid has 2 to 8 bits; got 1." in wrong.stderr
    assert not (tmp_path / "no").exists()
