"""Least squares whose strength is chosen on text that was held out."""

from __future__ import annotations

import copy

import pytest
import torch

import prunus
from helpers.models import load_tiny
from prunus.base.errors import InputError
from prunus.maths.moments import Moments
from prunus.maths.updates.ridge import RIDGES, Regression, joined, solve, with_ones
from prunus.methods.table import STRUCTURED
from prunus.model.cost import OneToken
from prunus.model.inspect import inspect, start
from prunus.model.units import find_modules
from prunus.run.observer import Silent
from prunus.run.units_gather import Context, held_out
from prunus.run.units_step import DenseStream, Step


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def regression(inputs_TA, targets_TO):
    x, y = inputs_TA.double(), targets_TO.double()
    return Regression(x.T @ x, y.T @ x, float(y.square().sum()))


def literal(old_OA, x, y, ridge):
    """argmin ‖XWᵀ − Y‖² + λ‖W − W_old‖², by an explicit least-squares problem."""
    strength = (ridge * x.double().square().sum(0).mean()).sqrt()
    tall = torch.cat([x.double(), strength * torch.eye(x.shape[1], dtype=torch.float64)])
    right = torch.cat([y.double(), strength * old_OA.double().T])
    return torch.linalg.lstsq(tall, right).solution.T


def test_the_best_ridge_on_held_out_text_is_taken(rng):
    x, held_x = torch.randn(30, 8, generator=rng), torch.randn(200, 8, generator=rng)
    true_OA = torch.randn(5, 8, generator=rng)
    y = x @ true_OA.T + 2 * torch.randn(30, 5, generator=rng)
    held_y = held_x @ true_OA.T
    old_OA = true_OA + 0.5 * torch.randn(5, 8, generator=rng)
    (solved,) = solve([old_OA], [regression(x, y)], [regression(held_x, held_y)])
    errors = {}
    for ridge in RIDGES:
        new_OA = literal(old_OA, x, y, ridge)
        gap = held_x.double() @ new_OA.T - held_y.double()
        errors[ridge] = float(gap.square().sum() / held_y.double().square().sum())
    best = min(errors, key=errors.get)
    assert solved.ridge == best
    assert solved.after == pytest.approx(errors[best], rel=1e-6)
    expected = literal(old_OA, x, y, best).float()
    torch.testing.assert_close(solved.weight_OA, expected, rtol=1e-4, atol=1e-5)


def test_old_weights_stay_where_recovery_does_not_help(rng):
    x, old_OA = torch.randn(30, 8, generator=rng), torch.randn(5, 8, generator=rng)
    wrong, right = regression(x, torch.randn(30, 5, generator=rng)), regression(x, x @ old_OA.T)
    (solved,) = solve([old_OA], [wrong], [right])
    assert solved.ridge is None
    assert torch.equal(solved.weight_OA, old_OA)
    assert solved.before == solved.after


def test_dead_inputs_and_no_inputs_at_all(rng):
    x, old_OA = torch.randn(30, 8, generator=rng), torch.randn(5, 8, generator=rng)
    x[:, 3] = 0
    target = regression(x, x @ torch.randn(5, 8, generator=rng).T)
    (solved,) = solve([old_OA], [target], [target])
    assert bool(solved.weight_OA.isfinite().all())
    torch.testing.assert_close(solved.weight_OA[:, 3], old_OA[:, 3])
    nothing = regression(torch.zeros(4, 8), torch.zeros(4, 5))
    (solved,) = solve([old_OA], [nothing], [nothing])
    assert torch.equal(solved.weight_OA, old_OA)


def test_a_column_of_ones_finds_the_bias(rng):
    x = torch.randn(400, 8, generator=rng) + 1
    weight_OI, bias_O = torch.randn(5, 8, generator=rng), torch.randn(5, generator=rng)
    y = x @ weight_OI.T + bias_O
    old_OA = joined(weight_OI, torch.zeros(5))
    part = regression(with_ones(x, True), y)
    (solved,) = solve([old_OA], [part], [part])
    torch.testing.assert_close(solved.weight_OA[:, -1], bias_O, rtol=1e-2, atol=1e-2)


def test_onto_itself_is_the_regression_on_its_own_outputs(rng):
    x, weight_OI = torch.randn(50, 6, generator=rng), torch.randn(4, 6, generator=rng)
    bias_O = torch.randn(4, generator=rng)
    moments = Moments(6, torch.device("cpu"))
    moments.update(x)
    columns = torch.tensor([0, 2, 5, 6])
    weight_OA = joined(weight_OI, bias_O)
    found = Regression.onto_itself(moments.sum_AA, weight_OA).only(columns)
    expected = regression(with_ones(x, True)[:, columns], x @ weight_OI.T + bias_O)
    torch.testing.assert_close(found.gram_AA, expected.gram_AA, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cross_OA, expected.cross_OA, rtol=1e-4, atol=1e-4)
    assert found.energy == pytest.approx(expected.energy, rel=1e-5)
    kept = weight_OA[:, columns]
    gap = with_ones(x, True)[:, columns] @ kept.T - (x @ weight_OI.T + bias_O)
    relative = float(gap.square().sum()) / expected.energy
    assert found.error(kept) == pytest.approx(relative, rel=1e-4)


@pytest.mark.parametrize("samples", [2, 3, 4, 16])
def test_a_quarter_is_held_out(samples):
    assert sum(held_out(i, samples) for i in range(samples)) == max(samples // 4, 1)


@torch.no_grad()
def forward(block, call, hidden):
    return call(block.module, hidden)


@torch.no_grad()
def recover(context, block, module, recording, dense):
    return Step(context, block, module, recording).recover(dense)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_recovery_without_pruning_gives_the_dense_outputs_back(family):
    """A block whose weights were disturbed finds the dense ones' outputs again."""
    model, _ = load_tiny(family)
    generator = torch.Generator().manual_seed(0)
    ids_ST = torch.randint(0, 250, (24, 64), generator=generator)
    blocks, traced = inspect(model, ids_ST)
    recording = start(model, blocks, traced, ids_ST)
    block, call, hidden = blocks[0], traced.calls[0], traced.inputs[0]
    dense = DenseStream.beside(recording)
    dense.block = copy.deepcopy(block.module)
    expected = forward(block, call, hidden)
    context = Context(
        model,
        len(blocks),
        STRUCTURED["goa"].build(None),
        torch.device("cpu"),
        Silent(),
        0,
        OneToken(),
    )
    modules = find_modules(block, call, hidden)
    for module in modules:  # nothing was changed: nothing is
        facts = recover(context, block, module, recording, dense)
        assert all(fact["ridge"] is None for fact in facts.values())
        assert all(fact["held_out_after"] < 1e-7 for fact in facts.values())
    torch.testing.assert_close(forward(block, call, hidden), expected, rtol=1e-4, atol=1e-4)
    for module in modules:
        for layer in module.layers:
            noise_OI = torch.randn(layer.shape, generator=generator) * layer.weight_OI.std()
            layer.write(layer.weight_OI + 0.3 * noise_OI)
    disturbed = (forward(block, call, hidden) - expected).norm()
    for module in modules:
        recover(context, block, module, recording, dense)
    recovered = (forward(block, call, hidden) - expected).norm()
    assert recovered < 0.05 * disturbed


def test_recovery_needs_text_to_hold_out():
    model, _ = load_tiny("llama")
    with pytest.raises(InputError, match="at least two"):
        prunus.prune(
            model, method="goa", recovery="before", tokens_ST=torch.zeros(1, 8, dtype=torch.int64)
        )
