"""What a run does not change stays as it came: bits, dtypes, names, fields, files, formats."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, GptOssConfig

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError, CheckpointWarning, NumericalError
from prunus.judge.verify import verify
from prunus.storage.decoding import decode, float8
from prunus.storage.origin import Origin

FAST = {"samples": 2, "length": 32}
WEIGHTS = "model.safetensors"


@pytest.fixture
def source(tmp_path):
    return shutil.copytree(MODELS / "llama", tmp_path / "source")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def changed(folder, tensors=None, **fields):
    """The folder with other tensors, and other fields in its config; None takes a field out."""
    if tensors is not None:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {**config_of(folder), **fields}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def same(a, b):
    return a.dtype == b.dtype and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


# Formats.


def literally(weight, scale, rows, columns):
    out = torch.empty(weight.shape)
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            out[o, i] = float(weight[o, i].float()) * float(scale[o // rows, i // columns])
    return out


@pytest.mark.parametrize(
    ("shape", "block"), [((8, 12), (4, 4)), ((9, 14), (4, 4)), ((5, 3), (8, 8))]
)
def test_float8_times_its_blocks_scales(shape, block):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    grid = [-(-side // size) for side, size in zip(shape, block, strict=True)]
    scale = torch.rand(grid, generator=generator)
    assert torch.equal(float8(weight, scale, list(block)), literally(weight, scale, *block))


def test_float8_by_row_by_matrix_and_by_powers_of_two():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    rows = torch.rand(6, 1)
    assert torch.equal(float8(weight, rows), weight.float() * rows)
    assert torch.equal(float8(weight, rows[:, 0]), weight.float() * rows)
    assert torch.equal(float8(weight, torch.tensor(0.5)), weight.float() * 0.5)
    powers = torch.full((6, 1), 126, dtype=torch.uint8)
    assert torch.equal(float8(weight, powers), weight.float() * 0.5)


def test_float8_blocks_are_those_of_two_libraries():
    ours = pytest.importorskip("compressed_tensors.entrypoints.convert.converters")
    weight, scale = torch.randn(300, 200).to(torch.float8_e4m3fn), torch.rand(3, 2)
    theirs = ours.FP8BlockDequantizer(targets=["x"], dtype=torch.float32)
    tensors = theirs.process({"x.weight": weight, "x.weight_scale_inv": scale})
    assert torch.equal(float8(weight, scale, [128, 128]), tensors["x.weight"])


def to_float8(tensors, size):
    """The linear layers in blocks of float8, as DeepSeek-V3 and Qwen3-FP8 store them."""
    stored = {}
    for name, weight in tensors.items():
        if not name.endswith("proj.weight"):
            stored[name] = weight
            continue
        rows, columns = weight.shape
        scale = torch.ones(-(-rows // size), -(-columns // size))
        for o in range(scale.shape[0]):
            for i in range(scale.shape[1]):
                part = weight[o * size : (o + 1) * size, i * size : (i + 1) * size]
                scale[o, i] = part.abs().max().float() / 448
        wide = scale.repeat_interleave(size, 0)[:rows].repeat_interleave(size, 1)[:, :columns]
        stored[name] = (weight.float() / wide).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
    return stored


def test_a_float8_source_is_pruned_as_plain_bfloat16_and_keeps_no_claim(source, tmp_path):
    size = 48  # divides no side of the tiny model: the last blocks are cut off
    dense = {k: v.bfloat16() for k, v in load_file(source / WEIGHTS).items()}
    claim = {"quant_method": "fp8", "weight_block_size": [size, size]}
    changed(source, to_float8(dense, size), dtype="bfloat16", quantization_config=claim)
    result = prunus.prune(source, method="wanda", output=tmp_path / "out", **FAST)
    out = load_file(tmp_path / "out" / WEIGHTS)
    assert out.keys() == dense.keys()
    stored = load_file(source / WEIGHTS)
    for name, weight in out.items():
        expected = dense[name]
        if name.endswith("proj.weight"):
            scale = stored[f"{name}_scale_inv"]
            expected = float8(stored[name], scale, [size, size]).bfloat16()
            assert 0.49 < (weight == 0).float().mean() < 0.51
        kept = weight != 0
        assert same(weight[kept], expected[kept]), name
    assert "quantization_config" not in config_of(tmp_path / "out")
    assert result.report.source.decoded == "fp8"
    assert verify(tmp_path / "out", source=source).problems == []


def test_decoding_goes_file_by_file_and_a_layer_may_lie_in_two(source, tmp_path):
    dense = {k: v.bfloat16() for k, v in load_file(source / WEIGHTS).items()}
    stored = to_float8(dense, 32)
    (source / WEIGHTS).unlink()
    scales = {k: v for k, v in stored.items() if k.endswith("_scale_inv")}
    save_file({k: v for k, v in stored.items() if k not in scales}, source / "a.safetensors")
    save_file(scales, source / "b.safetensors")
    where = {k: "b.safetensors" if k in scales else "a.safetensors" for k in stored}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    claim = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    changed(source, dtype="bfloat16", quantization_config=claim)
    files = {name: source / file for name, file in where.items()}
    origin = Origin.of(source, files)
    assert set(origin.tensors) == set(dense)
    assert not list(source.glob("*.part"))
    name = "model.layers.0.mlp.up_proj.weight"
    expected = float8(stored[name], scales[f"{name}_scale_inv"], [32, 32]).bfloat16()
    assert same(origin.read(name), expected)


def test_gpt_oss_as_it_is_published(tmp_path):
    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=128, num_local_experts=4,
        num_experts_per_tok=2, sliding_window=32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    stored = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = weight.shape
            shape = (experts, outputs, inputs // 32)
            stored[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
            stored[f"{name}_scales"] = torch.full(shape, 122, dtype=torch.uint8)
        else:
            stored[name] = weight.clone()
    folder = tmp_path / "source"
    model.save_pretrained(folder)
    changed(folder, stored, quantization_config={"quant_method": "mxfp4"})
    tokens = torch.randint(0, 128, (4, 32))
    fields = {"method": "wanda", "tokens_ST": tokens, "min_tokens": 8}
    prunus.prune(folder, output=tmp_path / "out", **fields)
    out = load_file(tmp_path / "out" / WEIGHTS)
    theirs = AutoModelForCausalLM.from_pretrained(folder).state_dict()  # transformers dequantises
    assert out.keys() == theirs.keys()
    for name, weight in out.items():
        kept = weight != 0
        assert same(weight[kept], theirs[name][kept]), name
    assert (out["model.layers.0.mlp.experts.down_proj"] == 0).float().mean() > 0.45


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "already quantised.*'gptq'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "already quantised"),
        ({"quant_method": "made_up"}, "'made_up', which prunus does not decode"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}, "quant_method": "compressed-tensors"},
         "sparse format sparse-24-bitmask"),
    ],
)  # fmt: skip
def test_other_formats_are_refused_before_anything_is_read(claim, said, source, tmp_path, capsys):
    changed(source, quantization_config=claim)
    with pytest.raises(CheckpointError, match=said):
        prunus.prune(source, method="wanda", output=tmp_path / "out", **FAST)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["source"]


def test_float8_that_no_config_speaks_of_is_refused(source, tmp_path):
    dense = load_file(source / WEIGHTS)
    stored = to_float8({k: v.bfloat16() for k, v in dense.items()}, 32)
    changed(source, {k: v for k, v in stored.items() if not k.endswith("_scale_inv")})
    with pytest.raises(CheckpointError, match=r"as F8_E4M3, and its config\.json has no"):
        prunus.prune(source, method="magnitude", output=tmp_path / "out")


def test_float8_without_its_scale_is_named(source, tmp_path):
    dense = {k: v.bfloat16() for k, v in load_file(source / WEIGHTS).items()}
    stored = to_float8(dense, 32)
    del stored["model.layers.1.mlp.up_proj.weight_scale_inv"]
    changed(source, stored, quantization_config={"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight is float8"):
        prunus.prune(source, method="magnitude", output=tmp_path / "out")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["source"]


def test_a_claim_that_nothing_is_compressed_goes(source, tmp_path):
    claim = {"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense"}}
    changed(source, quantization_config=claim)
    prunus.prune(source, method="magnitude", output=tmp_path / "out")
    assert "quantization_config" not in config_of(tmp_path / "out")


def test_what_prunus_packed_is_read_block_by_block_again(source, tmp_path):
    pytest.importorskip("compressed_tensors")
    fields = {"method": "wanda", "bits": 4, "group": 16, **FAST}
    prunus.prune(source, output=tmp_path / "packed", pack=True, **fields)
    prunus.prune(source, output=tmp_path / "plain", **fields)
    from prunus.storage.checkpoint import load_weights
    from prunus.storage.shards import check_shards
    from prunus.storage.streamed import Streamed

    weights = load_weights(tmp_path / "packed", stream=True)
    assert isinstance(weights, Streamed)
    plain = load_file(tmp_path / "plain" / WEIGHTS)
    assert weights.origin is not None
    assert set(weights.origin.tensors) == set(plain)
    assert all(same(weights.origin.read(name), tensor) for name, tensor in plain.items())
    assert check_shards(tmp_path / "packed") != weights.origin.tensors


# Heads.


def test_a_stored_head_that_differs_stays_whatever_the_config_says(source, tmp_path):
    tensors = load_file(source / WEIGHTS)
    table = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = torch.randn(table.shape, generator=torch.Generator().manual_seed(1))
    changed(source, tensors, tie_word_embeddings=True)
    ids = torch.arange(8)[None]
    expected = prunus.load(source)(input_ids=ids).logits
    tokenizer = {"tokens_ST": torch.randint(0, 64, (2, 16))}
    for name, run in (
        ("pruned", lambda output: prunus.prune(source, method="magnitude", sparsity=0.0,
                                               output=output)),
        ("folded", lambda output: prunus.prune(source, method="wanda", pattern="2:4", output=output,
                                               permutation="fold", **tokenizer)),
        ("quantised", lambda output: prunus.quantize(source, bits=8, output=output, **tokenizer)),
    ):  # fmt: skip
        run(tmp_path / name)
        assert config_of(tmp_path / name)["tie_word_embeddings"] is False
        head = load_file(tmp_path / name / WEIGHTS)["lm_head.weight"]
        if name != "folded":  # there its columns are in another order
            assert same(head, tensors["lm_head.weight"])
        assert verify(tmp_path / name, source=source).problems == []
    assert torch.equal(prunus.load(tmp_path / "pruned")(input_ids=ids).logits, expected)


def test_a_stored_head_that_is_the_embeddings_stays_too(source, tmp_path):
    tensors = load_file(source / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    changed(source, tensors, tie_word_embeddings=True)
    prunus.prune(source, method="magnitude", output=tmp_path / "out")
    out = load_file(tmp_path / "out" / WEIGHTS)
    assert same(out["lm_head.weight"], tensors["lm_head.weight"])
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is True
    assert verify(tmp_path / "out", source=source).problems == []


def test_a_lost_head_is_found_by_verify(source, tmp_path):
    tensors = load_file(source / WEIGHTS)
    tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"])
    changed(source, tensors, tie_word_embeddings=True)
    prunus.prune(source, method="magnitude", output=tmp_path / "out")
    out = load_file(tmp_path / "out" / WEIGHTS)
    del out["lm_head.weight"]
    changed(tmp_path / "out", out, tie_word_embeddings=True)
    found = verify(tmp_path / "out", source=source).problems
    assert any(x.startswith("Missing, though in") and "lm_head.weight" in x for x in found)


# Tensors that transformers ignores.

MTP = {"mtp.fc.weight": torch.randn(8, 4), "mtp.layers.0.mlp.up_proj.weight": torch.randn(4, 8)}


@pytest.fixture
def with_mtp(source):
    changed(source, load_file(source / WEIGHTS) | MTP)
    return source


@pytest.mark.filterwarnings("ignore::prunus.base.errors.CheckpointWarning")
def test_tensors_without_a_place_are_carried_along(with_mtp, tmp_path):
    result = prunus.prune(with_mtp, method="magnitude", output=tmp_path / "out")
    out = load_file(tmp_path / "out" / WEIGHTS)
    assert all(same(out[name], tensor) for name, tensor in MTP.items())
    assert result.report.source.carried == sorted(MTP)
    assert verify(tmp_path / "out", source=with_mtp).problems == []
    out["mtp.fc.weight"][0, 0] += 1
    changed(tmp_path / "out", out)
    assert "mtp.fc.weight" in " ".join(verify(tmp_path / "out", source=with_mtp).problems)


@pytest.mark.filterwarnings("ignore:.*no place for:prunus.base.errors.CheckpointWarning")
@pytest.mark.parametrize(
    "fields",
    [
        {"method": "l1", "sparsity": 0.25},
        {"method": "wanda", "pattern": "2:4", "permutation": "fold", **FAST},
    ],
)
def test_they_are_left_out_aloud_where_they_fit_no_more(fields, with_mtp, tmp_path):
    with pytest.warns(CheckpointWarning, match=r"Left out: 2 tensors .* \(mtp\.fc\.weight"):
        result = prunus.prune(with_mtp, output=tmp_path / "out", **fields)
    assert result.report.source.dropped == sorted(MTP)
    assert not set(MTP) & set(load_file(tmp_path / "out" / WEIGHTS))
    assert "mtp.fc.weight" in (tmp_path / "out" / "README.md").read_text()
    assert verify(tmp_path / "out", source=with_mtp).problems == []


@pytest.mark.reload
@pytest.mark.filterwarnings("ignore::prunus.base.errors.CheckpointWarning")
def test_what_is_carried_is_no_problem_in_a_fresh_process(with_mtp, tmp_path):
    result = prunus.prune(with_mtp, method="magnitude", output=tmp_path / "out")
    assert result.verification.ok


@pytest.mark.reload
@pytest.mark.filterwarnings("ignore:.*no place for:prunus.base.errors.CheckpointWarning")
def test_deepseek_v3_as_it_is_published(tmp_path):
    """Experts one by one in float8, and behind the last block one that predicts further tokens."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        hidden_size=64, intermediate_size=96, moe_intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2,
        n_group=2, topk_group=1, first_k_dense_replace=1, q_lora_rank=24, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, vocab_size=128,
    )  # fmt: skip
    source, out = tmp_path / "source", tmp_path / "out"
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(source)
    dense = load_file(source / WEIGHTS)
    last = {k.replace("layers.1.", "layers.2."): v for k, v in dense.items() if "layers.1." in k}
    dense |= {name: tensor.clone() for name, tensor in last.items()}
    claim = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    changed(source, to_float8(dense, 32), quantization_config=claim)
    tokens = torch.randint(0, 128, (8, 64))
    result = prunus.prune(source, method="wanda", tokens_ST=tokens, output=out)
    assert result.verification.ok
    assert result.report.source.carried == sorted(last)
    written = load_file(out / WEIGHTS)
    assert written.keys() == dense.keys()
    assert (written["model.layers.1.mlp.experts.0.up_proj.weight"] == 0).float().mean() > 0.45
    assert verify(out, source=source, reload=False).problems == []


# Files.


def test_files_beside_the_weights_come_along_byte_for_byte(source, tmp_path):
    files = {"tokenizer.model": b"\x00\xff", "preprocessor_config.json": b"{}\r\n", "LICENSE": b"x",
             "modeling_own.py": b"pass\n", "assets/table.json": b"[]"}  # fmt: skip
    others = {"optimizer.pt": b"x", "pytorch_model.bin": b"x", ".cache/a": b"x", "rng.pkl": b"x"}
    for name, content in {**files, **others}.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    result = prunus.prune(source, method="magnitude", output=tmp_path / "out")
    for name, content in files.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert not any((tmp_path / "out" / name).exists() for name in others)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert set(files) <= set(result.report.source.files)
    assert verify(tmp_path / "out", source=source).problems == []
    (tmp_path / "out" / "tokenizer.model").unlink()
    assert "tokenizer.model" in " ".join(verify(tmp_path / "out", source=source).problems)


def test_a_file_that_is_too_large_is_named_and_left(source, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.storage.origin.LARGEST", 2**17)
    (source / "huge.json").write_bytes(b" " * (2**17 + 1))
    result = prunus.prune(source, method="magnitude", output=tmp_path / "out")
    assert "huge.json" in result.report.source.left
    assert not (tmp_path / "out" / "huge.json").exists()


def test_the_form_of_an_older_transformers_survives(source, tmp_path):
    theirs = config_of(source)
    del theirs["rope_parameters"]
    theirs |= {"rope_theta": 500000.0, "torch_dtype": theirs.pop("dtype"), "own_field": [1, 2]}
    (source / "config.json").write_text(json.dumps(theirs, indent=7))
    prunus.prune(source, method="magnitude", output=tmp_path / "same")
    assert (tmp_path / "same" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    prunus.prune(source, method="magnitude", output=tmp_path / "cast", dtype="bfloat16")
    assert config_of(tmp_path / "cast") == {**theirs, "torch_dtype": "bfloat16"}
    prunus.prune(source, method="l1", sparsity=0.2, output=tmp_path / "smaller")
    now = config_of(tmp_path / "smaller")
    assert {k for k in now if now[k] != theirs.get(k)} <= {
        "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    }  # fmt: skip
    assert now["rope_theta"] == 500000.0


def test_weights_in_another_form_are_named_and_left_with_what_describes_them(source, tmp_path):
    for name in (
        "consolidated.safetensors",
        "params.json",
        "original/params.json",
        "original/consolidated.00.pth",
        "original/tokenizer.model",
        "docs/note.txt",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")  # fmt: skip
    result = prunus.prune(source, method="magnitude", output=tmp_path / "out")
    assert set(result.report.source.left) == {
        "consolidated.safetensors", "params.json", "original/",
    }  # fmt: skip
    assert (tmp_path / "out" / "docs" / "note.txt").exists()
    assert not (tmp_path / "out" / "params.json").exists()
    assert not (tmp_path / "out" / "original").exists()


@pytest.mark.reload
@pytest.mark.filterwarnings("ignore:.*no place for:prunus.base.errors.CheckpointWarning")
def test_the_names_of_a_base_model_stay_and_so_do_buffers_of_old_files(tmp_path):
    source = shutil.copytree(MODELS / "gpt2", tmp_path / "source")
    tensors = {
        name.removeprefix("transformer."): tensor
        for name, tensor in load_file(source / WEIGHTS).items()
    }
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    changed(source, tensors)
    out = tmp_path / "out"
    result = prunus.prune(source, method="wanda", output=out, **FAST)
    assert result.verification.ok
    assert load_file(out / WEIGHTS).keys() == tensors.keys()
    assert verify(out, source=source, reload=False).problems == []


# What is known from the files is judged before the work.


def test_more_embeddings_than_the_config_says(source, tmp_path):
    rows = config_of(source)["vocab_size"]
    changed(source, vocab_size=rows - 8)
    said = rf"embed_tokens.weight is {rows} .* and {rows - 8} .* in the model that config.json"
    with pytest.raises(CheckpointError, match=said):
        prunus.plan(source, method="wanda", **FAST)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_nan_outside_of_the_blocks(name, source, tmp_path):
    tensors = load_file(source / WEIGHTS)
    tensors[name][-1] = float("nan")
    changed(source, tensors)
    with pytest.raises(NumericalError, match=f"{name} holds NaN"):
        prunus.prune(source, method="magnitude", output=tmp_path / "out")


# Dtypes.


@pytest.fixture
def mixed(source):
    """Norms in float32, one layer in float16, the rest in bfloat16."""
    half = {}
    for name, tensor in load_file(source / WEIGHTS).items():
        dtype = torch.float32 if "norm" in name else torch.bfloat16
        half[name] = tensor.to(torch.float16 if "layers.1.mlp.up" in name else dtype)
        if "norm" in name:
            half[name] += 1e-5  # what bfloat16 cannot hold
    return changed(source, half, dtype="bfloat16")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_every_tensor_keeps_its_dtype_and_its_bits(method, mixed, tmp_path):
    prunus.prune(mixed, method=method, output=tmp_path / "out", **FAST)
    was, out = load_file(mixed / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    for name, tensor in out.items():
        assert tensor.dtype == was[name].dtype, name
        if not name.endswith("proj.weight"):
            assert same(tensor, was[name]), name
        elif method == "wanda":
            assert same(tensor[tensor != 0], was[name][tensor != 0]), name
    assert verify(tmp_path / "out", source=mixed).problems == []


def test_another_dtype_is_one_that_was_asked_for(mixed, tmp_path):
    prunus.prune(mixed, method="magnitude", output=tmp_path / "out", dtype="float32")
    out = load_file(tmp_path / "out" / WEIGHTS)
    assert {tensor.dtype for tensor in out.values()} == {torch.float32}
    assert config_of(tmp_path / "out")["dtype"] == "float32"
    assert verify(tmp_path / "out", source=mixed).problems == []
    cast = {name: tensor.half() for name, tensor in out.items()}
    prunus.prune(mixed, method="magnitude", output=tmp_path / "own")
    changed(tmp_path / "own", cast)
    assert "another dtype" in " ".join(verify(tmp_path / "own", source=mixed).problems)


def test_a_kept_weight_that_a_narrow_dtype_cannot_hold_is_not_zero(tmp_path):
    file = tmp_path / WEIGHTS
    save_file({"w": torch.ones(2, 2, dtype=torch.float16)}, file)
    (tmp_path / "config.json").write_text("{}")
    origin = Origin.of(tmp_path, {"w": file})
    written = origin.restored("w", torch.tensor([[1.0, 0.0], [-1e-12, 1e-12]]))
    assert written.dtype == torch.float16
    assert ((written == 0) == torch.tensor([[False, True], [False, False]])).all()
    assert written[1, 0] < 0 < written[1, 1]


# A checkpoint without a report.


def test_verify_finds_the_pattern_of_what_others_pruned(source, tmp_path):
    out = tmp_path / "out"
    prunus.prune(source, method="wanda", pattern="2:4", output=out, **FAST)
    (out / "pruning_report.json").unlink()
    found = verify(out, source=source)
    assert found.problems == []
    assert found.patterns == {"2:4": 21}
    assert found.sparsity == pytest.approx(0.5)
    assert verify(out, pattern="4:8").problems == []
    assert "21 layers are not 1:4" in verify(out, pattern="1:4").problems[0]
    tensors = load_file(out / WEIGHTS)
    tensors["model.layers.0.mlp.up_proj.weight"][0, :4] = 1
    tensors["model.norm.weight"][0] = float("nan")
    changed(out, tensors)
    problems = " ".join(verify(out, source=source, pattern="2:4").problems)
    assert "1 layer is not 2:4: model.layers.0.mlp.up_proj" in problems
    assert "model.norm.weight holds NaN" in problems
    assert "Not to be pruned, but not as in" in problems


def test_decoding_wants_room(source, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("prunus.storage.decoding.shutil.disk_usage", lambda path: usage(1, 1, 0))
    form = type("F", (), {"name": "fp8", "claim": {}, "dtype": torch.bfloat16})()
    with pytest.raises(CheckpointError, match=r"0\.0 GiB are free\. Make room"):
        decode(source, form, {"x": source / WEIGHTS})
