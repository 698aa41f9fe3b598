"""Bytes that a model holds, and those that a decoded token reads; the bound that follows."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from helpers.models import MODELS, load_tiny
from prunus.judge.comparators import to_csr, to_int8
from prunus.judge.traffic import Bound, held_bytes, parameters, read_bytes
from prunus.storage.checkpoint import load_model

HIDDEN, INNER, VOCABULARY = 32, 64, 50


def llama(tied):
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


ATTENTION = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2
LAYERS = 2 * (ATTENTION + 3 * HIDDEN * INNER)
NORMS = 5 * HIDDEN
HEAD = VOCABULARY * HIDDEN


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_reads_a_row_of_the_embedding_and_the_whole_head(tied, dtype):
    model = llama(tied).to(dtype)
    size = dtype.itemsize
    read = read_bytes(model)
    rotation = sum({b.data_ptr(): b.nbytes for b in model.buffers()}.values())
    assert sum(read.values()) == size * (LAYERS + NORMS + HEAD + HIDDEN) + rotation
    assert read["model.embed_tokens"] == size * HIDDEN
    assert read["lm_head"] == size * HEAD
    assert read["model.layers.1.mlp.up_proj"] == size * HIDDEN * INNER
    held = size * (LAYERS + NORMS + HEAD * (1 if tied else 2)) + rotation
    assert held_bytes(model) == held
    assert parameters(model) == LAYERS + NORMS + HEAD * (1 if tied else 2)


def test_positions_that_are_learned_are_a_row_too():
    model, _ = load_tiny("gpt2")
    config = model.config
    rows = config.n_embd * (config.vocab_size - 1 + config.n_positions - 1)
    tied = config.vocab_size * config.n_embd
    expected = 4 * (parameters(model) - rows + tied) + sum(b.nbytes for b in model.buffers())
    assert sum(read_bytes(model).values()) == expected


def test_experts_are_not_counted():
    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    assert read_bytes(MixtralForCausalLM(config)) is None


def test_other_kinds_of_layers():
    model = load_model(MODELS / "llama")
    before, dense = parameters(model), read_bytes(model)
    name = "model.layers.0.mlp.up_proj"
    with torch.no_grad():
        weight_OI = model.get_submodule(name).weight
        weight_OI[:, ::4] = 0
    outputs, inputs = weight_OI.shape
    to_csr(model, [name])
    assert parameters(model) == before
    kept = outputs * (inputs - (inputs + 3) // 4)
    assert read_bytes(model)[name] == 8 * kept + 4 * (outputs + 1)
    bound = Bound.of(dense, read_bytes(model))
    assert bound.saving == dense[name] / read_bytes(model)[name]
    layer = nn.Sequential(nn.Linear(64, 8))
    to_int8(layer)
    assert held_bytes(layer) == 64 * 8 + 4 * 8
    assert parameters(layer) == 64 * 8


def test_the_bound_is_the_formula_and_the_ratio_of_bytes():
    dense = {"embedding": 10, "a": 300, "b": 500, "head": 190}
    own = {**dense, "a": 100, "b": 300}
    bound = Bound.of(dense, own)
    assert (bound.share, bound.saving) == (0.8, 2.0)
    assert bound.ratio == pytest.approx(1 / (0.2 + 0.8 / 2)) == pytest.approx(1000 / 600)
    assert Bound.of(dense, dense) == Bound(0, None, 1)
    gone = {name: size for name, size in dense.items() if name != "b"}  # a block without heads
    assert Bound.of(dense, gone).ratio == 2
    assert Bound.of(dense, {**dense, "b": 1000}).ratio == pytest.approx(2 / 3)
