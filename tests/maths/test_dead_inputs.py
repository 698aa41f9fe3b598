"""Inputs that are always 0: they change nothing for the others, whatever their weights."""

import pytest
import torch

from helpers.problems import loss, optimum, problem
from prunus.maths.gram import Damped, Gram
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.pruners import MRP, Compose
from prunus.maths.refinements import Swaps
from prunus.maths.scores import Magnitude
from prunus.maths.stats import gather
from prunus.maths.updates import LeastSquares
from prunus.maths.updates.least_squares import direct

DEAD_I = torch.arange(32) % 4 == 1  # one of every four inputs, so one of every N:M group too


def with_dead_inputs(scale, dtype=torch.float32):
    """Weights, of dead inputs ``scale`` times as large; statistics; H of the live inputs."""
    weight_OI, _, _ = problem(outputs=24)
    inputs_TI = torch.randn(400, 32, generator=torch.Generator().manual_seed(7)).cumsum(1)
    inputs_TI[:, DEAD_I] = 0
    weight_OI[:, DEAD_I] *= scale
    live_TI = inputs_TI[:, ~DEAD_I].double()
    matrix_II = live_TI.T @ live_TI / len(live_TI)
    matrix_II.diagonal().add_(0.01 * matrix_II.diagonal().mean())
    return weight_OI.to(dtype), gather(inputs_TI, (Gram,)), matrix_II


@pytest.mark.parametrize("scale", [1e-6, 1.0, 10.0, 1e3, 1e12])
@pytest.mark.parametrize(
    "prune",
    [
        MRP(block_size=8),
        MRP(NM(2, 4), block_size=8),
        MRP(NM(2, 4), mask="M", block_size=8),
        MRP(block_size=8, refinement=Swaps()),
        Compose(Magnitude(), Unstructured("row"), update=LeastSquares()),
        Compose(Magnitude(), Unstructured("row"), update=LeastSquares(method="direct")),
    ],
    ids=["sm", "sm 2:4", "mm 2:4", "sm swaps", "least squares", "direct"],
)
def test_dead_inputs_of_any_size_leave_the_certificate_true(prune, scale):
    """What is claimed holds for the outputs, which dead inputs do not reach."""
    weight_OI, stats, matrix_II = with_dead_inputs(scale)
    pruned = prune(weight_OI, stats, 0.5)
    live_OI, mask_OI = weight_OI[:, ~DEAD_I], pruned.mask_OI[:, ~DEAD_I]
    best = loss(optimum(live_OI, mask_OI, matrix_II), live_OI, matrix_II)
    true_gap = loss(pruned.weight_OI[:, ~DEAD_I], live_OI, matrix_II) / best - 1
    assert true_gap <= pruned.notes["gap"] + 1e-5
    assert pruned.notes["gap"] <= 1e-3
    kept_OI = pruned.mask_OI & DEAD_I
    assert torch.equal(pruned.weight_OI[kept_OI], weight_OI[kept_OI])
    assert not pruned.weight_OI[~pruned.mask_OI].any()


@pytest.mark.parametrize("pattern", [Unstructured("layer"), NM(2, 4)], ids=str)
def test_the_size_of_dead_weights_changes_nothing(pattern):
    small, large = (
        MRP(pattern, block_size=8)(weight_OI, stats, 0.5)
        for weight_OI, stats, _ in map(with_dead_inputs, (0.0, 1e6))
    )
    assert torch.equal(small.mask_OI, large.mask_OI)
    assert torch.equal(small.weight_OI[:, ~DEAD_I], large.weight_OI[:, ~DEAD_I])
    assert small.notes == large.notes


def test_inputs_that_are_always_0_change_nothing_for_the_others():
    """The damp is a fraction of the live inputs' mean: 8 dead ones of 40 leave H as it was."""
    weight_OI, stats, matrix_II = problem()
    live_I = torch.arange(40) % 5 != 2
    gram_II, wide_OI = torch.zeros(40, 40), torch.ones(12, 40)
    gram_II[live_I.nonzero(), live_I.nonzero().T] = stats[Gram].matrix_II
    wide_OI[:, live_I] = weight_OI
    system = Damped.of(gram_II, 0.01)
    assert torch.equal(system.dead_I, ~live_I)
    assert torch.allclose(system.matrix_II[live_I][:, live_I].double(), matrix_II, atol=1e-5)
    mean = sum(gram_II.diagonal().double().tolist()) / 32
    dead_II = system.matrix_II[~live_I]
    assert torch.allclose(dead_II[:, ~live_I], 1.01 * mean * torch.eye(8), rtol=1e-5)
    assert not dead_II[:, live_I].any()
    mask_OI = Unstructured("row").mask(weight_OI.abs(), 0.5)
    wide_mask_OI = torch.ones(12, 40, dtype=torch.bool)
    wide_mask_OI[:, live_I] = mask_OI
    new_OI = direct(wide_OI, wide_mask_OI, system)[:, live_I]
    assert torch.allclose(new_OI.double(), optimum(weight_OI, mask_OI, matrix_II), atol=1e-5)
