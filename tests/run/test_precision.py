"""Products of matrices in bfloat16 while shares and weights are learned."""

from dataclasses import replace

import pytest
import torch

import prunus
from helpers.models import load_tiny
from helpers.random_models import FAMILIES, IDS, MIXTURES, build
from prunus.base.errors import InputError
from prunus.model.inspect import inspect, start
from prunus.run.unit import Unit

TOKENS = torch.randint(0, 500, (4, 32), generator=torch.Generator().manual_seed(3))
LOW = {"reconstruct.precision": "bfloat16"}
BOTH = {**LOW, "allocation.precision": "bfloat16", "allocation.steps": 8}


def learned(model, settings, **run):
    """Prune by what is learned in few steps."""
    few = {"reconstruct.steps": 6, **settings}
    own = {"method": "besa", "reconstruct": "block", "tokens_ST": TOKENS, "settings": few}
    return prunus.prune(model, observer=prunus.Silent(), **{**own, **run})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_products_are_rounded_and_what_learns_is_not(family):
    model = load_tiny(family)[0]
    blocks, traced = inspect(model, TOKENS[:1])
    recording = start(model, blocks, traced, TOKENS)
    exact = Unit(blocks[:1], recording, [], torch.device("cpu"))
    weights = {layer.name: layer.weight_OI.clone().requires_grad_() for layer in blocks[0].layers}
    found = {}
    for unit in (exact, replace(exact, precision="bfloat16")):
        out = unit.forward(2, weights)
        assert out.dtype == torch.float32
        grads = torch.autograd.grad(out.square().sum(), list(weights.values()))
        assert {grad.dtype for grad in grads} == {torch.float32}
        found[unit.precision] = out.detach(), torch.cat([grad.flatten() for grad in grads])
    for exactly, rounded in zip(found["model"], found["bfloat16"], strict=True):
        error = float((rounded - exactly).norm() / exactly.norm())
        assert 1e-5 < error < 0.02  # a number in bfloat16 is off by up to 0.004


def test_each_learner_has_its_own_setting():
    """Steps of both differ, and end at about as low a loss."""
    plain = learned(load_tiny("llama")[0], {"allocation.steps": 8}).report
    for setting, moved in (("allocation", "learning"), ("reconstruct", "reconstructed")):
        low = {"allocation.steps": 8, f"{setting}.precision": "bfloat16"}
        report = learned(load_tiny("llama")[0], low).report
        old, new = getattr(plain, moved)[0]["loss"], getattr(report, moved)[0]["loss"]
        assert old != new
        assert new == pytest.approx(old, rel=0.02)
        same = plain.learning[0]["loss"] == report.learning[0]["loss"]
        assert same == (setting == "reconstruct")


def test_it_repeats_and_zeros_stay():
    first, second = (learned(load_tiny("llama")[0], BOTH) for _ in range(2))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.get_parameter(name))
    for layer in first.report.layers:
        weight = first.model.get_parameter(layer.parameter)
        assert weight.dtype == torch.float32
        assert int((weight == 0).sum()) == round(layer.sparsity * weight.numel())


@pytest.mark.parametrize("family", ["mixtral", "mamba", "falcon_h1"])
def test_experts_and_state_space_models(family):
    settings = {**MIXTURES, **FAMILIES}[family]
    run = {"tokens_ST": IDS[:, :24].repeat(4, 1), "method": "wanda"}
    assert learned(build(family, settings), LOW, **run).report.held_out_loss < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_dtypes(dtype):
    result = learned(load_tiny("gpt2")[0].to(dtype), BOTH)
    assert result.report.held_out_loss < 1
    assert {x.dtype for x in result.model.parameters()} == {dtype}


@pytest.mark.parametrize("part", ["allocation", "reconstruct"])
def test_other_words_are_refused(part):
    with pytest.raises(InputError, match="precision is model or bfloat16, not 'half'"):
        learned(load_tiny("llama")[0], {f"{part}.precision": "half"})
