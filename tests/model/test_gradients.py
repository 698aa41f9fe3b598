"""Gradients of the loss, and of every sample's own, against a loop in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from helpers.models import load_tiny
from prunus.model.gradients import loss_gradients
from prunus.model.inspect import inspect

IDS = torch.randint(0, 250, (3, 20), generator=torch.Generator().manual_seed(0))


def by_samples(model, layers):
    """Every sample's own gradient of every layer, (S, O, I), one plain backward after another."""
    double = copy.deepcopy(model).double()
    found = {layer.name: [] for layer in layers}
    for ids_T in IDS:
        double.zero_grad()
        logits = double(input_ids=ids_T[None]).logits[0, :-1]
        cross_entropy(logits, ids_T[1:]).backward()
        for layer in layers:
            gradient = double.get_submodule(layer.name).weight.grad
            found[layer.name].append(gradient.T if layer.transposed else gradient)
    return {name: torch.stack(each) for name, each in found.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_and_curvatures_are_those_of_single_samples(family):
    model, _ = load_tiny(family)
    blocks, _ = inspect(model, IDS[:1])
    layers = [layer for block in blocks for layer in block.layers]
    single = by_samples(model, layers)
    before = [(p.requires_grad, p.grad) for p in model.parameters()]
    plain, nothing = loss_gradients(model, layers, IDS)
    gradients, curvatures = loss_gradients(model, layers, IDS, curved=True)
    assert nothing == {}
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == before
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    for layer in layers:
        expected_SOI = single[layer.name]
        change_SOI = layer.weight_OI.detach().double() * expected_SOI
        pairs = (
            (plain[layer.name], expected_SOI.mean(0)),
            (gradients[layer.name], expected_SOI.mean(0)),
            (curvatures[layer.name].squares_OI, expected_SOI.square().mean(0)),
            (curvatures[layer.name].rows_O, change_SOI.sum(2).square().mean(0)),
            (curvatures[layer.name].columns_I, change_SOI.sum(1).square().mean(0)),
        )
        for found, expected in pairs:
            assert found.shape == expected.shape
            gap = (found.double() - expected).norm() / expected.norm()
            assert gap < 1e-3, (layer.name, gap)


def test_windows_of_several_processes_add_up():
    model, _ = load_tiny("llama")
    blocks, _ = inspect(model, IDS[:1])
    layers = blocks[0].layers
    whole, curved = loss_gradients(model, layers, IDS, curved=True)
    parts = [loss_gradients(model, layers, x, windows=3, curved=True) for x in (IDS[:1], IDS[1:])]
    for name, gradient_OI in whole.items():
        torch.testing.assert_close(sum(p[0][name] for p in parts), gradient_OI)
        for what in ("squares_OI", "rows_O", "columns_I"):
            total = sum(getattr(p[1][name], what) for p in parts)
            torch.testing.assert_close(total, getattr(curved[name], what))
