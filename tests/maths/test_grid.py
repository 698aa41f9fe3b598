"""The grid against literal loops; zeros in every dtype; gradients; the ends of all ranges."""

import dataclasses

import pytest
import torch

from prunus.base.errors import InputError
from prunus.maths.grids import Grid

ONE = torch.ones(())
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def weights(rows=6, inputs=50, dtype=torch.float32, seed=0):
    """Rows of every kind: both signs, above 0, below 0, all 0, constant, one giant."""
    weight_OI = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))
    weight_OI[1] = weight_OI[1].abs() + 0.5
    weight_OI[2] = -weight_OI[2].abs() - 0.5
    weight_OI[3] = 0
    weight_OI[4] = -0.3
    weight_OI[5, 7] = 100
    return weight_OI.to(dtype)


def literal(weight_OI, grid, low_OG, high_OG):
    """Equation (7), one weight at a time, with the step rounded to the dtype that stores it."""
    new_OI = torch.zeros_like(weight_OI)
    inputs = weight_OI.shape[1]
    size = grid.group or inputs
    for o in range(len(weight_OI)):
        for start in range(0, inputs, size):
            row = weight_OI[o, start : start + size].tolist()
            low, high = (float(x[o, start // size]) for x in (low_OG, high_OG))
            smallest, largest = low * min(*row, 0), high * max(*row, 0)
            h = (largest - smallest) / (2**grid.bits - 1)
            h = float(torch.tensor(h, dtype=weight_OI.dtype))
            if h == 0:
                continue
            z = -round(smallest / h)
            for i, w in enumerate(row):
                q = min(max(round(w / h) + z, 0), 2**grid.bits - 1)
                new_OI[o, start + i] = (q - z) * h
    return new_OI


@pytest.mark.parametrize("group", [None, 1, 16, 50, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_is_equation_7(bits, group):
    grid, weight_OI = Grid(bits, group), weights(dtype=torch.float64)
    shape = (6, grid.groups(50))
    generator = torch.Generator().manual_seed(1)
    low_OG, high_OG = (0.4 + 0.6 * torch.rand(shape, generator=generator) for _ in range(2))
    low_OG, high_OG = low_OG.double(), high_OG.double()
    quantized = grid.quantize(weight_OI, low_OG, high_OG)
    expected_OI = literal(weight_OI, grid, low_OG, high_OG)
    torch.testing.assert_close(quantized.dequantize(), expected_OI, rtol=1e-12, atol=1e-12)
    assert quantized.scale_OG.shape == quantized.zero_OG.shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zeros_stay_exact_and_clipping_cannot_move_them(bits, group, dtype):
    grid, weight_OI = Grid(bits, group), weights(dtype=dtype)
    pruned_OI = torch.rand(weight_OI.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    weight_OI[pruned_OI] = 0
    for strength in (1.0, 0.7, 0.01):
        gamma = torch.tensor(strength)
        quantized = grid.quantize(weight_OI, gamma, 1.5 * gamma.clamp_max(0.6))
        size = group or 50
        zero_OI = quantized.zero_OG.repeat_interleave(size, 1)[:, :50]
        assert torch.equal(quantized.q_OI[pruned_OI], zero_OI[pruned_OI])
        new_OI = quantized.dequantize()
        assert new_OI.dtype == quantized.scale_OG.dtype == dtype
        assert (new_OI[pruned_OI] == 0).all()
        assert new_OI.isfinite().all()
        assert not new_OI[3].any()  # the row of zeros
        assert int(quantized.q_OI.max()) <= 2**bits - 1
        assert torch.equal(grid.fake(weight_OI, gamma, 1.5 * gamma.clamp_max(0.6)), new_OI)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_weight_moves_half_a_step_at_most(bits, dtype):
    """In float32 and wider; a step that is stored in fewer digits moves the far end more."""
    weight_OI = weights(dtype=dtype)
    quantized = Grid(bits, 16).quantize(weight_OI)
    step_OI = quantized.scale_OG.repeat_interleave(16, 1)[:, :50].double()
    off_OI = (quantized.dequantize().double() - weight_OI.double()).abs()
    allowed = 0.5 + 2**bits * 2 * torch.finfo(dtype).eps
    assert (off_OI <= allowed * step_OI).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_fills_a_grid_comes_back(dtype):
    """A row that reaches both ends of its range is quantised to itself, bit for bit."""
    grid = Grid(4, None)
    steps_OI = torch.tensor(
        [[-7.0, 8, 3, 0, -1, 5], [0, 15, 1, 2, 14, 7], [-15, 0, -8, -1, -2, -3]]
    )
    weight_OI = (0.037 * torch.ones((), dtype=dtype)) * steps_OI.to(dtype)
    once_OI = grid.quantize(weight_OI).dequantize()
    assert torch.equal(grid.quantize(once_OI).dequantize(), once_OI)
    torch.testing.assert_close(once_OI, weight_OI)


def test_one_row_one_column_one_weight():
    for shape in ((1, 1), (3, 1), (1, 5)):
        weight_OI = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        for bits in (2, 8):
            for group in (None, 1, 4):
                new_OI = Grid(bits, group).quantize(weight_OI).dequantize()
                assert new_OI.shape == shape
                if shape[1] == 1 or group == 1:  # alone in its group, a weight is its own range
                    torch.testing.assert_close(new_OI, weight_OI)


def test_weights_too_small_for_the_dtype_make_no_nan():
    for dtype in DTYPES:
        tiny = torch.finfo(dtype).tiny
        weight_OI = torch.tensor([[tiny, -tiny, 0.0]], dtype=dtype)
        for bits in (2, 8):
            new_OI = Grid(bits, None).quantize(weight_OI).dequantize()
            assert new_OI.isfinite().all()
            assert new_OI[0, 2] == 0


@pytest.mark.parametrize("group", [None, 5])
def test_gradients_of_the_strengths_are_those_of_the_clipped_values(group):
    """With every weight beyond the clipped range, Ŵ is γ1·max on one side, γ0·min on the other.

    (7 and 8 steps below and above 0, so that no rounding of z comes in between.)
    """
    grid = Grid(4, group)
    weight_OI = torch.tensor([[8.0, -7, 8, -7, 8, 8, 8, -7, -7, 8]], dtype=torch.float64)
    shape = (1, grid.groups(10))
    low_OG, high_OG = (torch.full(shape, 0.5, dtype=torch.float64).requires_grad_() for _ in "ab")
    new_OI = grid.fake(weight_OI, low_OG, high_OG)
    assert torch.equal(new_OI, weight_OI / 2)
    new_OI.sum().backward()
    per_group = weight_OI.view(shape[1], -1)
    torch.testing.assert_close(high_OG.grad[0], 8 * (per_group > 0).sum(1).double())
    torch.testing.assert_close(low_OG.grad[0], -7 * (per_group < 0).sum(1).double())


def test_gradients_follow_the_straight_through_rule():
    """d Ŵ / d γ by hand: inside of the range (round(W/h) − W/h) · dh/dγ, and 1 for the weight."""
    grid, weight_OI = Grid(3, None), weights(dtype=torch.float64)[:1].clone().requires_grad_()
    low, high = (torch.tensor([[x]], dtype=torch.float64).requires_grad_() for x in (0.9, 0.8))
    new_OI = grid.fake(weight_OI, low, high)
    dense_I = weight_OI[0].detach()
    smallest, largest = dense_I.min(), dense_I.max()
    h = float((0.8 * largest - 0.9 * smallest) / 7)
    z = -round(float(0.9 * smallest) / h)
    inside_I = (dense_I / h).round() + z
    inside_I = (inside_I >= 0) & (inside_I <= 7)
    assert inside_I.any()
    assert not inside_I.all()
    new_OI[0, inside_I].sum().backward()
    rest_I = (dense_I / h).round() - dense_I / h
    torch.testing.assert_close(high.grad, (rest_I * largest / 7)[inside_I].sum()[None, None])
    torch.testing.assert_close(low.grad, (rest_I * -smallest / 7)[inside_I].sum()[None, None])


def test_learned_strengths_beat_none():
    """The gradient is of use: on a row with one giant weight, clipping it lowers the error."""
    weight_OI = weights()[5:]
    grid = Grid(4, None)
    parameters = [torch.full((1, 1), 4.0, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    heavy_I = torch.ones(50)
    heavy_I[7] = 1e-4  # nobody reads the giant
    losses = []
    for _ in range(200):
        new_OI = grid.fake(weight_OI, *(p.sigmoid() for p in parameters))
        loss = ((new_OI - weight_OI).square() * heavy_I).sum()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_finite_for_rows_of_every_kind(dtype):
    parameters = [torch.full((6, 4), 4.0, requires_grad=True) for _ in range(2)]
    Grid(4, 16).fake(weights(dtype=dtype), *(p.sigmoid() for p in parameters)).sum().backward()
    for parameter in parameters:
        assert parameter.grad.isfinite().all()
        assert not parameter.grad[3].any()  # nothing to clip in a row of zeros


def test_a_grid_is_frozen_and_refuses_what_it_cannot_be():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Grid().bits = 3
    for bits in (1, 9):
        with pytest.raises(InputError, match=f"2 to 8 bits; got {bits}"):
            Grid(bits)
    with pytest.raises(InputError, match="at least 1, or none for whole rows; got 0"):
        Grid(4, 0)
    assert str(Grid(4, 128)) == "4 bits, groups of 128"
    assert str(Grid(3, None)) == "3 bits, rows"
