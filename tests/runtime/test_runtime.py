"""What torch's 2:4 call accepts, looked at without a GPU; never more is claimed."""

from types import SimpleNamespace

import pytest
import torch
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass as compress,
)
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_to_dense_cutlass as decompress,
)
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM

import prunus
from helpers.models import MODELS
from prunus.base.errors import InputError, PatternError, UnknownNameError
from prunus.runtime import check_layout

IDS = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model with sides that torch's call takes, pruned to 2:4 with its channels folded."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide")
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    run = {"method": "wanda", "pattern": "2:4", "tokens_ST": IDS}
    for permutation in ("fold", "gather", "free"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
        prunus.prune(model, permutation=permutation, output=folder / permutation, **run)
    return folder


@pytest.mark.parametrize("permutation", ["fold", "gather"])
def test_every_layer_as_loaded_survives_torchs_own_compression(wide, permutation):
    """The function that ``to_sparse_semi_structured`` calls, and its inverse, on the CPU."""
    model = prunus.load(wide / permutation)
    layers = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            weight = module.weight.detach()
            check_layout(name, weight)
            assert torch.equal(decompress(*compress(weight)), weight)
            layers += 1
    assert layers == 14


def test_a_weight_with_three_of_four_does_not_survive_and_is_refused():
    weight = torch.zeros(32, 64, dtype=torch.bfloat16)
    weight[5, 8:11] = 1
    with pytest.raises(PatternError, match="gate is not 2:4 in the stored order: 1 groups"):
        check_layout("gate", weight)
    weight[5, 8] = 0
    check_layout("gate", weight)


@pytest.mark.parametrize("permutation", ["fold", "gather"])
def test_without_a_gpu_it_says_so_after_the_layout_is_checked(wide, permutation):
    with pytest.raises(InputError, match=r"all 14 layers have the layout, but .* is on cpu"):
        prunus.load(wide / permutation, sparse="2:4")
    with pytest.raises(PatternError, match=r"float32; 2:4 runs in half"):
        prunus.load(wide / permutation, sparse="2:4", dtype="float32")


def test_what_is_no_two_four_is_refused(wide, tmp_path):
    with pytest.raises(InputError, match="names no layer as 2:4"):
        prunus.load(wide / "free", sparse="2:4")
    with pytest.raises(InputError, match="names no layer as 2:4"):
        prunus.load(MODELS / "llama", sparse="2:4")
    with pytest.raises(UnknownNameError, match="4:8"):
        prunus.load(wide / "fold", sparse="4:8")
    prunus.prune(MODELS / "llama", method="magnitude", pattern="2:4", output=tmp_path / "o")
    with pytest.raises(PatternError, match=r"multiples of 32 × 64"):
        prunus.load(tmp_path / "o", sparse="2:4", dtype="bfloat16")


def test_any_other_checkpoint_loads_as_ever(wide):
    model = prunus.load(MODELS / "llama")
    assert not model.training
    folded = prunus.load(wide / "fold", dtype="float32")
    plain = LlamaForCausalLM.from_pretrained(wide / "fold", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(folded(input_ids=IDS).logits, plain(input_ids=IDS).logits)


@pytest.mark.parametrize("permutation", ["fold", "gather"])
@pytest.mark.parametrize("conv1d", [False, True])
def test_the_conversion_keeps_indices_and_biases(conv1d, permutation, tmp_path, monkeypatch):
    """With torch's call, which needs a GPU, replaced by nothing: all around it must still hold."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4) if conv1d else LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    run = {"method": "wanda", "pattern": "2:4", "tokens_ST": IDS, "permutation": permutation}
    prunus.prune(model, output=tmp_path / "out", **run)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    monkeypatch.setattr("prunus.runtime.semi_structured.to_sparse_semi_structured", lambda w: w)
    monkeypatch.setattr(type(model), "device", SimpleNamespace(type="cuda"))
    sparse = prunus.load(tmp_path / "out", sparse="2:4")
    with torch.no_grad():
        expected, found = (m.to(torch.float32)(input_ids=IDS).logits for m in (plain, sparse))
    assert torch.allclose(found, expected, atol=1e-4)
    assert sum(isinstance(m, torch.nn.Linear) for m in sparse.modules()) > 8
