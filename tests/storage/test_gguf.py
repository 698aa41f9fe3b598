"""GGUF files: read back by the gguf library and by transformers; refused where they would lie."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from typer.testing import CliRunner

from helpers.gguf_files import HIDDEN, LLAMA, SMALL, UNEVEN, cut, read, saved
from helpers.models import MODELS
from prunus.base.errors import InputError, NumericalError, UnsupportedModelError
from prunus.cli.main import app
from prunus.storage.gguf import pairwise, write_gguf


def transposed_by_hand(weight_OI, heads):
    """Row 2i of a head is its row i, row 2i + 1 its row i + d/2: written as a loop."""
    out_OI, d = weight_OI.clone(), weight_OI.shape[0] // heads
    for head in range(heads):
        for i in range(d // 2):
            out_OI[head * d + 2 * i] = weight_OI[head * d + i]
            out_OI[head * d + 2 * i + 1] = weight_OI[head * d + i + d // 2]
    return out_OI


@pytest.mark.parametrize("shape", [(32, 5), (32,), (2, 3)])
def test_pairwise_equals_a_loop(shape):
    rows = torch.randn(shape)
    for heads in (1,) if shape[0] == 2 else (1, 2, 4):
        assert torch.equal(pairwise(rows, heads), transposed_by_hand(rows, heads))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_transformers_loads_one_width_with_equal_logits(tied, family, tmp_path):
    kind = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
    }
    config = kind[family][0](**SMALL, tie_word_embeddings=tied)
    model = saved(tmp_path / "m", config, kind[family][1])
    made = write_gguf(tmp_path / "m", tmp_path / "m.gguf")
    assert made.architecture == "llama"
    assert made.parameters == sum(p.numel() for p in model.parameters())
    assert made.bytes == (tmp_path / "m.gguf").stat().st_size
    assert ("output.weight" in read(tmp_path / "m.gguf")[1]) is not tied
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = torch.randint(512, (2, 40))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_keys_of_one_width(tmp_path):
    made = write_gguf(LLAMA, tmp_path / "m.gguf")
    keys, tensors, _ = read(tmp_path / "m.gguf")
    assert len(tensors) == made.tensors
    expected = {
        "general.architecture": "llama", "general.file_type": 0, "llama.block_count": 3,
        "llama.context_length": 512, "llama.embedding_length": 64, "llama.vocab_size": 512,
        "llama.feed_forward_length": 160, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16,
        "llama.attention.value_length": 16, "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    assert {key: keys[key] for key in expected} == expected
    content = json.loads((LLAMA / "tokenizer.json").read_text())
    tokens = keys["tokenizer.ggml.tokens"]
    assert {token: i for i, token in enumerate(tokens)} == content["model"]["vocab"]
    assert keys["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    assert keys["tokenizer.ggml.merges"] == merges


@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16"])
def test_an_uneven_model_is_deci_with_lists(dtype, tmp_path):
    torch.manual_seed(0)
    source = cut(tmp_path / "m", UNEVEN)
    made = write_gguf(tmp_path / "m", tmp_path / "m.gguf", dtype=dtype)
    keys, tensors, types = read(tmp_path / "m.gguf")
    assert made.architecture == keys["general.architecture"] == "deci"
    assert keys["deci.attention.head_count"] == [4, 2, 0]
    assert keys["deci.attention.head_count_kv"] == [2, 1, 0]
    assert keys["deci.feed_forward_length"] == [33, 1, 7]  # 0 would skip the block's attention too
    assert keys["deci.attention.key_length"] == keys["deci.rope.dimension_count"] == 16
    kept = {"auto": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    for name, stored_as in types.items():
        assert stored_as == ("F32" if tensors[name].ndim == 1 else kept)
    half = getattr(torch, "float32" if dtype == "auto" else dtype)
    first, second, third = (f"model.layers.{i}." for i in range(3))
    expected = {
        "blk.0.attn_q.weight": transposed_by_hand(source[f"{first}self_attn.q_proj.weight"], 4),
        "blk.0.attn_k.weight": transposed_by_hand(source[f"{first}self_attn.k_proj.weight"], 2),
        "blk.0.attn_v.weight": source[f"{first}self_attn.v_proj.weight"],
        "blk.0.ffn_down.weight": source[f"{first}mlp.down_proj.weight"],
        "blk.0.ffn_down.bias": source[f"{first}mlp.down_proj.bias"],
        "blk.1.attn_q.weight": transposed_by_hand(source[f"{second}self_attn.q_proj.weight"], 2),
        "blk.1.attn_output.weight": source[f"{second}self_attn.o_proj.weight"],
        "blk.1.attn_output.bias": source[f"{second}self_attn.o_proj.bias"],
        "blk.1.ffn_gate.weight": torch.zeros(1, HIDDEN),
        "blk.1.ffn_down.weight": torch.zeros(HIDDEN, 1),
        "blk.1.ffn_down.bias": source[f"{second}mlp.down_proj.bias"],
        "blk.2.ffn_up.weight": source[f"{third}mlp.up_proj.weight"],
        "token_embd.weight": source["model.embed_tokens.weight"],
    }
    for name, tensor in expected.items():
        stored = tensor.to(half).float() if tensor.ndim > 1 else tensor
        assert torch.equal(tensors[name], stored), name
    third = {name for name in tensors if name.startswith("blk.2.")}  # llama.cpp takes no more
    assert third == {f"blk.2.ffn_{x}.weight" for x in ("norm", "gate", "up", "down")}
    assert "output.weight" not in tensors


def test_halves_that_llama_cpp_would_lose_are_written_with_zeros(tmp_path):
    torch.manual_seed(0)
    source = cut(tmp_path / "m", [(0, 0, 5, False, False), (0, 0, 0, True, False), UNEVEN[0]])
    write_gguf(tmp_path / "m", tmp_path / "m.gguf")
    keys, tensors, _ = read(tmp_path / "m.gguf")
    assert keys["deci.attention.head_count"] == [1, 1, 4]
    assert keys["deci.feed_forward_length"] == [5, 1, 33]
    for block in (0, 1):
        for name, shape in (
            ("q", (16, 64)),
            ("k", (16, 64)),
            ("v", (16, 64)),
            ("output", (64, 16)),
        ):
            assert torch.equal(tensors[f"blk.{block}.attn_{name}.weight"], torch.zeros(shape))
    bias = source["model.layers.1.self_attn.o_proj.bias"]
    assert torch.equal(tensors["blk.1.attn_output.bias"], bias)
    assert "blk.0.attn_output.bias" not in tensors


def test_widths_that_are_the_same_in_every_block_are_a_llama(tmp_path):
    cut(tmp_path / "m", [(2, 1, 24, True, False)] * 3)
    assert write_gguf(tmp_path / "m", tmp_path / "m.gguf").architecture == "llama"
    keys, tensors, _ = read(tmp_path / "m.gguf")
    assert keys["llama.feed_forward_length"] == 24
    assert tensors["blk.2.attn_output.bias"].shape == (64,)


def test_biases_of_every_layer(tmp_path):
    config = LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)
    state = saved(tmp_path / "m", config).state_dict()
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", dtype="float16")
    _, tensors, _ = read(tmp_path / "m.gguf")
    q_O = state["model.layers.1.self_attn.q_proj.bias"]
    assert torch.equal(tensors["blk.1.attn_q.bias"], transposed_by_hand(q_O, 4))
    for name, other in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        assert torch.equal(
            tensors[f"blk.0.ffn_{name}.bias"], state[f"model.layers.0.mlp.{other}.bias"]
        )


def test_positions(tmp_path):
    llama3 = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_theta": 10000.0,
    }  # fmt: skip
    model = saved(tmp_path / "a", LlamaConfig(**SMALL, rope_parameters=llama3))
    write_gguf(tmp_path / "a", tmp_path / "a.gguf")
    factors = read(tmp_path / "a.gguf")[1]["rope_freqs.weight"]
    plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(plain / factors, model.model.rotary_emb.inv_freq)
    assert float(factors[0]) == pytest.approx(1)
    assert float(factors[-1]) == pytest.approx(8)
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    saved(tmp_path / "b", LlamaConfig(**SMALL, rope_parameters=linear))
    write_gguf(tmp_path / "b", tmp_path / "b.gguf")
    keys = read(tmp_path / "b.gguf")[0]
    assert (keys["llama.rope.scaling.type"], keys["llama.rope.scaling.factor"]) == ("linear", 4.0)
    assert keys["llama.rope.freq_base"] == 500.0
    window = MistralConfig(**SMALL, sliding_window=48)
    saved(tmp_path / "c", window, MistralForCausalLM)
    write_gguf(tmp_path / "c", tmp_path / "c.gguf")
    assert read(tmp_path / "c.gguf")[0]["llama.context_length"] == 48


def lists(**changes):
    return lambda blocks: blocks[1].update(changes)


WRONG = {
    "heads": (lists(heads=4, kv_heads=2), "q_proj.weight in .* is 32 × 64, .* for 64 × 64"),
    "neurons": (lists(intermediate=8), "gate_proj.weight in .* is 0 × 64, .* ask for 8 × 64"),
    "no bias": (lists(bias_o=False), "holds model.layers.1.self_attn.o_proj.bias, for which"),
    "a bias": (
        lambda b: b[0].update(bias_o=True),
        "no tensor model.layers.0.self_attn.o_proj.bias",
    ),
    "groups": (lists(heads=3, kv_heads=2), "Block 1 .* 3 query heads and 2 key/value heads"),
    "no groups": (lists(kv_heads=0), "2 query heads and 0 key/value heads"),
    "negative": (
        lists(heads=-2),
        "widths.json is damaged .blocks.1.heads: .* greater than or equal to 0",
    ),
    "a word": (lists(heads="2"), "widths.json is damaged .blocks.1.heads: .* valid integer"),
    "one block less": (lambda b: b.pop(), "has 2 blocks, config.json has 3"),
    "nothing": (
        lambda b: b[1].pop("heads"),
        "widths.json is damaged .blocks.1.heads: field required",
    ),
    "open": (lists(intermediate=None), "cannot be exported: it leaves widths of block 1 open"),
    "no object": (lambda b: b.append(3), "widths.json is damaged"),
}


@pytest.mark.parametrize("case", WRONG)
def test_widths_that_do_not_fit_the_tensors_are_refused(case, tmp_path):
    change, message = WRONG[case]
    cut(tmp_path / "m", UNEVEN, change)
    with pytest.raises(InputError, match=message):
        write_gguf(tmp_path / "m", tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_families_that_cannot_be_written_are_refused(tmp_path):
    for family in ("gpt2", "gemma", "phi3"):
        with pytest.raises(
            UnsupportedModelError, match=rf"of the family {family}; .* llama and mistral"
        ):
            write_gguf(MODELS / family, tmp_path / "m.gguf")
    saved(tmp_path / "a", LlamaConfig(**SMALL, hidden_act="gelu"))
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    saved(tmp_path / "b", LlamaConfig(**SMALL, rope_parameters=yarn))
    for name, message in (("a", "hidden_act 'gelu'"), ("b", "the rope types default, linear")):
        with pytest.raises(UnsupportedModelError, match=message):
            write_gguf(tmp_path / name, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path):
    folder = Path(shutil.copytree(LLAMA, tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e5
    tensors["model.layers.0.mlp.up_proj.weight"][:] = 0  # zeros stay
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"layers.1.mlp.up_proj.weight .* float16; .* 100000"):
        write_gguf(folder, tmp_path / "m.gguf", dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    write_gguf(folder, tmp_path / "m.gguf", dtype="bfloat16")
    assert not read(tmp_path / "m.gguf")[1]["blk.0.ffn_up.weight"].any()


def test_shards_are_read_one_by_one(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(LLAMA)
    model.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    write_gguf(tmp_path / "m", tmp_path / "a.gguf", tokenizer=LLAMA)
    write_gguf(LLAMA, tmp_path / "b.gguf")
    a, b = read(tmp_path / "a.gguf")[1], read(tmp_path / "b.gguf")[1]
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_command_line(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["export", *map(str, arguments)])

    output = tmp_path / "m.gguf"
    result = run(LLAMA, "--to", "gguf", "--output", output, "--dtype", "float16", "--json")
    said = json.loads(result.stdout)
    assert result.exit_code == 0
    assert said["output"] == str(output)
    assert (said["architecture"], said["dtype"], said["blocks"]) == ("llama", "float16", 3)
    before = output.read_bytes()
    for arguments, message in [
        ((LLAMA, "--to", "gguf", "--output", output), "nothing is overwritten"),
        ((LLAMA, "--to", "onnx", "--output", tmp_path / "x"), "Unknown format 'onnx'"),
        ((LLAMA, "--to", "gguf", "--output", tmp_path / "x", "--dtype", "int8"), "dtype"),
        ((tmp_path / "none", "--to", "gguf", "--output", tmp_path / "x"), "does not exist"),
        ((output, "--to", "gguf", "--output", tmp_path / "x"), "not a folder of safetensors"),
        ((MODELS / "opt", "--to", "gguf", "--output", tmp_path / "x"), "of the family opt"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("error:") == 1
    assert output.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
