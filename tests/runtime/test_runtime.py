"""What torch's 2:4 call accepts, looked at without a GPU; never more is claimed."""

from types import SimpleNamespace

import pytest
import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass as compress,
)
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_to_dense_cutlass as decompress,
)
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM

import prunus
from helpers.models import MODELS
from helpers.random_models import TWO_FOUR
from prunus.base.errors import CheckpointWarning, InputError, PatternError, UnknownNameError
from prunus.runtime import check_layout

IDS = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model with sides that torch's call takes, pruned to 2:4 with its channels folded."""
    torch.manual_seed(0)
    config = TWO_FOUR
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
    with pytest.raises(InputError, match=r"all 14 such layers have the layout, but .* is on cpu"):
        prunus.load(wide / permutation, sparse="2:4")
    with pytest.raises(PatternError, match=r"float32; 2:4 runs in half"):
        prunus.load(wide / permutation, sparse="2:4", dtype="float32")


def test_what_is_no_two_four_is_refused(wide, tmp_path):
    with (
        pytest.warns(CheckpointWarning, match=r"14 of the 14 .* in an order of the inputs that"),
        pytest.raises(InputError, match="names no layer as 2:4"),
    ):
        prunus.load(wide / "free", sparse="2:4")
    with pytest.raises(InputError, match="names no layer as 2:4"):
        prunus.load(MODELS / "llama", sparse="2:4")
    with pytest.raises(UnknownNameError, match="4:8"):
        prunus.load(wide / "fold", sparse="4:8")
    prunus.prune(MODELS / "llama", method="magnitude", pattern="2:4", output=tmp_path / "o")
    with pytest.raises(PatternError, match=r"multiples of 32 × 64"):
        prunus.load(tmp_path / "o", sparse="2:4", dtype="bfloat16")


def test_layers_that_are_two_four_along_outputs_stay_dense_and_are_counted(tmp_path, monkeypatch):
    """DaSS: gate and up stay as they are, attention and down are converted; one warning."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(TWO_FOUR).to(torch.bfloat16).eval()
    prunus.prune(model, method="dass", pattern="2:4", tokens_ST=IDS, output=tmp_path / "dass")
    said = r"4 of the 14 pruned layers stay dense: 4 of them, such as .*gate_proj, have zeros along"
    with (
        pytest.warns(CheckpointWarning, match=said) as warned,
        pytest.raises(InputError, match="all 10 such layers have the layout"),
    ):
        prunus.load(tmp_path / "dass", sparse="2:4")
    assert sum(x.category is CheckpointWarning for x in warned) == 1
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "dass").eval()
    converted = []
    monkeypatch.setattr(
        "prunus.runtime.semi_structured.to_sparse_semi_structured",
        lambda weight: converted.append(weight.shape) or weight,
    )
    monkeypatch.setattr(LlamaForCausalLM, "device", SimpleNamespace(type="cuda"))
    with pytest.warns(CheckpointWarning, match=said):
        sparse = prunus.load(tmp_path / "dass", sparse="2:4")
    assert len(converted) == 10
    with torch.no_grad():
        assert torch.equal(sparse(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    assert "hardware for N:M" in (tmp_path / "dass" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_torch_cannot_multiply_a_weight_that_is_two_four_along_outputs():
    """Why they stay dense: packed the other way round, it has no product with the transpose.

    The packed transpose is for sums over the outputs, in a backward pass.
    """
    weight_OI = torch.randn(128, 128, dtype=torch.float16)
    weight_OI[0::4], weight_OI[1::4] = 0, 0  # 2:4 along outputs: whole rows are left
    assert torch.equal(decompress(*compress(weight_OI.T.contiguous())), weight_OI.T)
    with pytest.raises(PatternError, match="not 2:4 in the stored order"):
        check_layout("gate", weight_OI)
    packed_t, meta_t = compress(weight_OI.T.contiguous())
    sparse = SparseSemiStructuredTensorCUTLASS(
        weight_OI.shape, packed=None, meta=None, packed_t=packed_t, meta_t=meta_t,
        compressed_swizzled_bitmask=None,
    )  # fmt: skip
    with pytest.raises(NotImplementedError, match="operation is not supported"):
        torch.nn.functional.linear(torch.randn(8, 128, dtype=torch.float16), sparse)


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
