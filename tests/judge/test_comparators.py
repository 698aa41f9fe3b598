"""CSR and torch's dynamic int8: they compute what the dense model does."""

import json

import pytest
import torch
from torch import nn

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError
from prunus.judge.comparators import CsrLinear, has_dynamic_int8, to_csr, to_int8
from prunus.storage.checkpoint import load_model

IDS = torch.arange(2, 26).reshape(2, 12)


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (1, 1), (2, 0)])
@pytest.mark.parametrize("biased", [False, True])
def test_csr_is_a_linear_layer(shape, biased):
    torch.manual_seed(0)
    weight_OI = torch.randn(7, 12) * (torch.rand(7, 12) < 0.4)
    weight_OI[2] = 0
    bias_O = torch.randn(7) if biased else None
    inputs = torch.randn(*shape, 12)
    expected = inputs.double() @ weight_OI.double().T + (bias_O.double() if biased else 0)
    outputs = CsrLinear(weight_OI, bias_O)(inputs)
    assert outputs.shape == expected.shape
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pruned(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("csr") / "pruned"
    prunus.prune(MODELS / request.param, method="magnitude", sparsity=0.5, output=output)
    return output


@torch.no_grad()
def test_a_model_with_csr_layers_computes_the_same(pruned):
    model = load_model(pruned)
    expected = model(input_ids=IDS).logits
    to_csr(model, [])
    changed = [m for m in model.modules() if isinstance(m, CsrLinear)]
    layers = json.loads((pruned / "pruning_report.json").read_text())["layers"]
    assert len(changed) == len(layers)
    torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_csr_reads_inputs_in_the_order_of_gather(tmp_path):
    prunus.prune(
        MODELS / "llama", method="magnitude", pattern="2:4", permutation="gather",
        output=tmp_path / "out",
    )  # fmt: skip
    model = prunus.load(tmp_path / "out")
    expected = model(input_ids=IDS).logits
    to_csr(model, [])
    torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_csr_of_a_dense_model_is_refused():
    with pytest.raises(CheckpointError, match="no layer of this checkpoint has zeros"):
        to_csr(load_model(MODELS / "llama"), [])
    with pytest.raises(CheckpointError, match=r"experts\.3 is an expert's part"):
        to_csr(load_model(MODELS / "llama"), ["model.layers.0.mlp.experts.3"])


@pytest.mark.skipif(not has_dynamic_int8(), reason="this torch has no dynamic quantisation")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_int8_is_near_the_dense_model(family):
    model = load_model(MODELS / family)
    expected = model(input_ids=IDS).logits
    to_int8(model)
    assert not any(type(m) is nn.Linear for m in model.modules())
    logits = model(input_ids=IDS).logits
    assert (logits - expected).norm() < 0.1 * expected.norm()
    assert not torch.equal(logits, expected)
