"""SparseGPT, MRP and least squares against literal loops and float64 brute force."""

from itertools import combinations

import pytest
import torch

from helpers.problems import loss, optimum, problem
from prunus.base.errors import InputError
from prunus.maths.gram import Damped, Gram
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.pruners import MRP, SparseGPT
from prunus.maths.scores import OBS, RIA, DaSS, Wanda
from prunus.maths.stats import gather
from prunus.maths.updates import LeastSquares, SparseGPTSweep
from prunus.maths.updates.deflation import Deflation
from prunus.maths.updates.least_squares import certificate, conjugate_gradients, descend, direct
from prunus.maths.updates.multipliers import Multipliers

EXACT = LeastSquares(tolerance=1e-13)


def literal_sparsegpt(weight_OI, matrix_II, mask_of, step):
    """One column at a time, in float64, with the factor as the authors make it."""
    weight_OI = weight_OI.double().clone()
    upper_II = torch.linalg.cholesky(torch.linalg.inv(matrix_II), upper=True)
    mask_OI = torch.ones_like(weight_OI, dtype=torch.bool)
    for j in range(weight_OI.shape[1]):
        if j % step == 0:
            end = min(j + step, weight_OI.shape[1])
            score = weight_OI[:, j:end] ** 2 / upper_II.diagonal()[j:end] ** 2
            mask_OI[:, j:end] = mask_of(j, end, score)
        error_O = torch.where(mask_OI[:, j], 0, weight_OI[:, j] / upper_II[j, j])
        weight_OI[:, j:] -= error_O[:, None] * upper_II[j, j:]
        weight_OI[~mask_OI[:, j], j] = 0
    return weight_OI, mask_OI


def test_the_factor_is_that_of_the_inverse():
    _, stats, matrix_II = problem()
    system = stats[Gram].damped(0.01)
    upper_II = system.upper_II.double()
    assert torch.equal(upper_II, upper_II.triu())
    inverse_II = torch.linalg.inv(matrix_II)
    assert torch.allclose(upper_II.T @ upper_II, inverse_II, rtol=1e-4, atol=1e-4)
    assert torch.allclose(system.inverse_II.double(), inverse_II, rtol=1e-4, atol=1e-4)
    for j in (0, 5, 31):
        trailing = torch.linalg.inv(matrix_II[j:, j:])[0, 0]
        assert float(upper_II[j, j] ** 2) == pytest.approx(float(trailing), rel=1e-4)
    assert stats[Gram].damped(0.01) is system  # one factorisation per site


@pytest.mark.parametrize("block_size", [1, 7, 32, 128])
@pytest.mark.parametrize(
    ("pattern", "sparsity"), [(Unstructured("layer"), 0.5), (NM(2, 4), 0.5), (NM(1, 8), 0.875)]
)
def test_sparsegpt_equals_a_literal_column_loop(pattern, sparsity, block_size):
    weight_OI, stats, matrix_II = problem()
    pruned = SparseGPT(pattern, block_size)(weight_OI, stats, sparsity)
    done = [0]

    def mask_of(lo, hi, score_OB):
        if isinstance(pattern, NM):
            return pattern.mask(score_OB.float(), sparsity)
        count = int(sparsity * 12 * hi) - done[0]
        done[0] += count
        keep = torch.ones(score_OB.numel(), dtype=torch.bool)
        keep[score_OB.flatten().argsort(stable=True)[:count]] = False
        return keep.view(score_OB.shape)

    step = pattern.group_size or block_size
    expected_OI, mask_OI = literal_sparsegpt(weight_OI, matrix_II, mask_of, step)
    assert torch.equal(pruned.mask_OI, mask_OI)
    assert torch.allclose(pruned.weight_OI.double(), expected_OI, atol=1e-4)


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 160])
def test_the_sweep_on_a_fixed_mask_does_not_depend_on_the_block(inputs):
    weight_OI, stats, matrix_II = problem(inputs=inputs, tokens=500)
    mask_OI = Unstructured("row").mask(weight_OI.abs(), 0.5)
    expected_OI, _ = literal_sparsegpt(weight_OI, matrix_II, lambda a, b, _: mask_OI[:, a:b], 1)
    for block_size in (1, 5, 64, 999):
        new_OI = SparseGPTSweep(block_size=block_size)(weight_OI, mask_OI, stats)
        assert torch.allclose(new_OI.double(), expected_OI, atol=2e-4)
        assert (new_OI[~mask_OI] == 0).all()


def test_removing_one_weight_is_the_obs_formula():
    weight_OI, stats, matrix_II = problem(outputs=1)
    inverse_II = torch.linalg.inv(matrix_II)
    mask_OI = torch.ones_like(weight_OI, dtype=torch.bool)
    mask_OI[0, 9] = False
    w = weight_OI[0].double()
    expected_I = w - w[9] / inverse_II[9, 9] * inverse_II[:, 9]
    new_OI = EXACT(weight_OI, mask_OI, stats)
    assert torch.allclose(new_OI[0].double(), expected_I, atol=1e-5)
    cost = loss(new_OI, weight_OI, matrix_II)
    assert float(OBS()(weight_OI, stats)[0, 9]) == pytest.approx(cost, rel=1e-4)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [200, 10])  # 10: a Gram of rank 10 for 32 inputs
def test_direct_is_the_constrained_optimum(tokens, sparsity):
    weight_OI, stats, matrix_II = problem(tokens=tokens)
    mask_OI = Unstructured("layer").mask(weight_OI.abs(), sparsity)
    system = stats[Gram].damped(0.01)
    best = loss(optimum(weight_OI, mask_OI, matrix_II), weight_OI, matrix_II)
    found = loss(direct(weight_OI, mask_OI, system), weight_OI, matrix_II)
    assert found == pytest.approx(best, rel=1e-6, abs=1e-9)


def preconditioner(stats, kept_I):
    """What ``Deflation`` applies to one kept set, as a matrix."""
    rows_KI = torch.eye(len(kept_I))[kept_I]
    mask_KI = kept_I.expand(len(rows_KI), -1)
    return Deflation(stats[Gram].damped(0.01), mask_KI)(rows_KI)[:, kept_I].double()


@pytest.mark.parametrize("tokens", [1, 10, 200])
@pytest.mark.parametrize("inputs", [1, 7, 8, 64])
def test_deflation_is_symmetric_and_positive_definite(inputs, tokens):
    _, stats, _ = problem(inputs=inputs, tokens=tokens)
    for mask_I in torch.rand(4, inputs, generator=torch.Generator().manual_seed(1)) < 0.5:
        found_KK = preconditioner(stats, mask_I)
        if mask_I.any():
            assert (found_KK - found_KK.T).abs().max() < 1e-5 * found_KK.abs().max()
            assert torch.linalg.eigvalsh(found_KK).min() > 0


def test_deflation_inverts_one_strong_direction_on_every_kept_set():
    """Inputs that are one direction and noise: what is left is far better conditioned."""
    generator = torch.Generator().manual_seed(0)
    shared_T1 = 5 * torch.randn(4000, 1, generator=generator)
    stats = gather(shared_T1 + torch.randn(4000, 64, generator=generator), (Gram,))
    matrix_II = stats[Gram].damped(0.01).matrix_II.double()
    for mask_I in torch.rand(4, 64, generator=generator) < 0.5:
        left_KK = preconditioner(stats, mask_I) @ matrix_II[mask_I][:, mask_I]
        values_K = torch.linalg.eigvals(left_KK).real
        assert values_K.max() / values_K.min() < 2
        assert torch.linalg.cond(matrix_II[mask_I][:, mask_I]) > 500


def test_deflation_is_the_inverse_of_what_it_takes_the_matrix_for():
    """Eight directions above one level, after any scaling: no approximation is left."""
    walsh_II = torch.ones(1, 1, dtype=torch.float64)
    while len(walsh_II) < 64:
        walsh_II = torch.cat(
            [torch.cat([walsh_II, walsh_II], 1), torch.cat([walsh_II, -walsh_II], 1)]
        )
    above_K = torch.tensor([3.0, 3, 4, 4, 5, 5, 6, 6]).double()
    columns_IK = walsh_II[:, 5:13] / 8
    scaled_II = torch.eye(64).double() + columns_IK * above_K @ columns_IK.T
    generator = torch.Generator().manual_seed(0)
    size_I = torch.rand(64, generator=generator).double() + 0.5
    matrix_II = scaled_II * size_I[:, None] * size_I
    system = Damped.of(matrix_II.float(), 0.0)
    for mask_I in torch.rand(4, 64, generator=generator) < 0.5:
        rows_KI = torch.eye(64)[mask_I]
        found_KK = Deflation(system, mask_I.expand(len(rows_KI), -1))(rows_KI)[:, mask_I]
        expected_KK = torch.linalg.inv(matrix_II[mask_I][:, mask_I])
        assert (found_KK.double() - expected_KK).abs().max() < 0.01 * expected_KK.abs().max()


def test_the_certificate_is_the_gap_itself_where_inputs_do_not_correlate():
    """Then (H⁻¹)_KK = H_KK⁻¹, so the bound is tight however far the iterate is."""
    matrix_I = torch.tensor([1.0, 2.0, 0.5, 4.0, 3.0])
    weight_OI = torch.tensor([[2.0, -1.0, 3.0, 0.5, 1.0], [0.1, 1.0, -2.0, 1.5, -0.7]])
    mask_OI = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 0, 0]]).bool()
    new_OI = (weight_OI + 0.3) * mask_OI
    least = far = 0.0
    for h, *column in zip(matrix_I.tolist(), *weight_OI.tolist(), *mask_OI.tolist(), strict=True):
        for dense, kept in zip(column[:2], column[2:], strict=True):
            least += 0.5 * h * (0 if kept else dense) ** 2
            far += 0.5 * h * (0.3 if kept else dense) ** 2
    system = Damped.of(matrix_I.diag(), 0.0)
    found = certificate(new_OI, weight_OI, mask_OI, system)
    assert found == pytest.approx(far / least - 1, rel=1e-5)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [200, 10])
def test_the_certificate_is_never_below_the_true_gap(tokens, sparsity):
    weight_OI, stats, matrix_II = problem(tokens=tokens)
    mask_OI = Unstructured("layer").mask(weight_OI.abs(), sparsity)
    best = loss(optimum(weight_OI, mask_OI, matrix_II), weight_OI, matrix_II)
    system = stats[Gram].damped(0.01)
    for iterations in (1, 2, 4, 8, 16, 64):
        new_OI, gap, _ = conjugate_gradients(weight_OI, mask_OI, system, 0.0, iterations)
        assert (new_OI[~mask_OI] == 0).all()
        if best > 1e-9:
            true_gap = loss(new_OI, weight_OI, matrix_II) / best - 1
            assert gap >= true_gap - 1e-5
            assert gap == certificate(new_OI, weight_OI, mask_OI, system)
    if best > 1e-9:
        assert gap < 1e-4


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_a_descent_knows_its_loss_gradient_and_certificate(iterations):
    """½ δᵀHδ and −Hδ are carried along, the bound is its formula: all in float64 from the end."""
    weight_OI, stats, matrix_II = problem()
    mask_OI = Unstructured("row").mask(weight_OI.abs(), 0.5)
    system, new_OI = stats[Gram].damped(0.01), weight_OI * mask_OI
    precondition = Deflation(system, mask_OI)
    found = descend(new_OI, weight_OI, mask_OI, system, precondition, 0.0, iterations)
    assert found.iterations == iterations
    moved_OI = (new_OI - weight_OI).double()
    gradient_OI = moved_OI @ matrix_II
    loss_O = (moved_OI * gradient_OI).sum(1) / 2
    assert torch.allclose(found.pull_OI.double(), -gradient_OI, atol=1e-4)
    assert torch.allclose(found.loss_O.double(), loss_O, rtol=1e-4)
    kept_OI = gradient_OI * mask_OI
    excess = float((kept_OI @ torch.linalg.inv(matrix_II) * kept_OI).sum()) / 2
    total = float(loss_O.sum())
    expected = excess / (total - excess) if total > excess else float("inf")
    assert certificate(new_OI, weight_OI, mask_OI, system) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_multipliers_leave_no_more_than_asked_whatever_the_inputs_unit(size):
    """For a pruned set that grows; against the optimum of each set, over all columns."""
    weight_OI, stats, matrix_II = problem()
    mask_OI = Unstructured("row").mask(weight_OI.abs(), 0.5)
    system = Damped.of(stats[Gram].matrix_II * size, 0.01)
    diagonal_I = torch.linalg.inv(matrix_II * size).diagonal()
    for tolerance in (0.1, 1e-9):
        multipliers = Multipliers(weight_OI, system, tolerance)
        for hi in (8, 20):
            multipliers.solve(mask_OI[:, :hi])
            so_far_OI = mask_OI.clone()
            so_far_OI[:, hi:] = True
            found_OI = multipliers.weights(0, 32).double()
            weighed_OI = (~so_far_OI) / diagonal_I
            left = float((found_OI.square() * weighed_OI).sum())
            assert left <= 1.01 * tolerance * float((weight_OI.square() * weighed_OI).sum())
            if tolerance < 1e-6:
                expected_OI = optimum(weight_OI, so_far_OI, matrix_II)
                assert torch.allclose(found_OI, expected_OI, atol=1e-3)
            assert torch.equal(multipliers.weights(hi, 32), multipliers.weights(0, 32)[:, hi:])


def test_mask_m_takes_weights_of_dead_inputs_first():
    generator = torch.Generator().manual_seed(0)
    inputs_TI = torch.randn(200, 32, generator=generator)
    inputs_TI[:, ::4] = 0
    pruned = MRP(NM(2, 4), "M")(
        torch.randn(12, 32, generator=generator), gather(inputs_TI, (Gram,)), 0.5
    )
    assert not pruned.mask_OI[:, ::4].any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SparseGPT(block_size=0), "block_size is 0; it must be 1 or more"),
        (lambda: MRP(block_size=-5), "block_size is -5; it must be 0 or more"),
        (lambda: MRP(tolerance=float("nan")), "tolerance is nan"),
        (lambda: SparseGPTSweep(block_size=-1), "block_size is -1"),
        (lambda: LeastSquares(damp=-0.5), "damp is -0.5; it must be 0 or more"),
        (lambda: OBS(damp=-1), "damp is -1"),
        (lambda: MRP(damp=float("inf")), "damp is inf; it must be 0 or more, and finite"),
        (lambda: Wanda(power=-1), "power is -1"),
        (lambda: RIA(power=float("nan")), "power is nan"),
        (lambda: DaSS(power=-0.5), "power is -0.5"),
    ],
)
def test_numbers_out_of_range_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8), NM(3, 3)])
def test_mask_m_equals_enumeration(pattern):
    weight_OI, stats, matrix_II = problem(inputs=24)
    inverse_II = torch.linalg.inv(matrix_II)
    pruner = MRP(pattern, mask="M", compensation="M", block_size=0)
    mask_OI = pruner(weight_OI, stats, pattern.sparsity).mask_OI
    for o in range(len(weight_OI)):
        for start in range(0, 24, pattern.of):
            group = range(start, start + pattern.of)
            costs = {}
            for gone in combinations(group, pattern.of - pattern.keep):
                w = weight_OI[o, list(gone)].double()
                square = inverse_II[list(gone)][:, list(gone)]
                costs[gone] = float(w @ torch.linalg.inv(square) @ w) / 2 if gone else 0.0
            best = min(costs, key=costs.get)
            assert [j for j in group if not mask_OI[o, j]] == list(best)


@pytest.mark.parametrize("block_size", [1, 4, 10, 32, 0])
def test_mrp_ends_at_the_optimum_of_its_final_mask_whatever_the_block(block_size):
    weight_OI, stats, matrix_II = problem()
    pruner = MRP(block_size=block_size, tolerance=1e-9, between=1e-6)
    pruned = pruner(weight_OI, stats, 0.5)
    expected_OI = optimum(weight_OI, pruned.mask_OI, matrix_II)
    assert torch.allclose(pruned.weight_OI.double(), expected_OI, atol=1e-4)
    assert int((~pruned.mask_OI).sum()) == 12 * 32 // 2


def test_mrp_costs_less_than_sparsegpt():
    for seed in range(5):
        weight_OI, stats, matrix_II = problem(64, 128, 1000, seed=seed)
        costs = {
            name: loss(pruner(weight_OI, stats, 0.5).weight_OI, weight_OI, matrix_II)
            for name, pruner in {
                "sparsegpt": SparseGPT(block_size=32),
                "mrp-sm": MRP(block_size=32),
                "sparsegpt 2:4": SparseGPT(NM(2, 4), block_size=32),
                "mrp-ms 2:4": MRP(NM(2, 4), "M", "S", block_size=32),
                "mrp-mm 2:4": MRP(NM(2, 4), "M", "M", block_size=32),
            }.items()
        }
        assert costs["mrp-sm"] < costs["sparsegpt"]
        assert costs["mrp-mm 2:4"] < costs["sparsegpt 2:4"]
        assert costs["mrp-mm 2:4"] < costs["mrp-ms 2:4"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["one token", "dead inputs", "constant", "all dead", "rank 3"])
@pytest.mark.parametrize(
    "pruner",
    [SparseGPT(), SparseGPT(NM(2, 4)), MRP(), MRP(NM(2, 4), "M", "M"), MRP(NM(2, 4), "M", "S")],
    ids=repr,
)
def test_poor_grams_give_finite_weights_and_exact_sparsity(pruner, case, dtype):
    generator = torch.Generator().manual_seed(0)
    inputs_TI = torch.randn(200, 32, generator=generator)
    if case == "one token":
        inputs_TI = inputs_TI[:1]
    elif case == "dead inputs":
        inputs_TI[:, 5:12] = 0
    elif case == "constant":
        inputs_TI[:] = 1
    elif case == "all dead":
        inputs_TI[:] = 0
    else:
        inputs_TI = inputs_TI[:, :3] @ inputs_TI[:3]
    weight_OI = torch.randn(12, 32, generator=generator).to(dtype)
    pruned = pruner(weight_OI, gather(inputs_TI.to(dtype), (Gram,)), 0.5)
    assert pruned.weight_OI.isfinite().all()
    assert int((~pruned.mask_OI).sum()) == 12 * 32 // 2
    assert (pruned.weight_OI[~pruned.mask_OI] == 0).all()


def test_a_gap_that_cannot_be_certified_is_null_not_infinite(monkeypatch):
    """The report is JSON: an infinity in a note would lose the whole run when it is written."""
    weight_OI, stats, _ = problem()
    mask_OI = Unstructured("row").mask(weight_OI.abs(), 0.5)
    monkeypatch.setattr("prunus.maths.updates.least_squares.certificate", lambda *_: float("inf"))
    _, notes = LeastSquares(iterations=2).solve(weight_OI, mask_OI, stats)
    assert notes == {"direct_after_iterations": 2, "gap": None}
