"""Scales and clipping against brute force on the activations; zeros; which sites take a scale."""

import pytest
import torch

import prunus
from helpers.models import MODELS, load_tiny
from prunus.maths.gram import Gram
from prunus.maths.grids import Grid
from prunus.maths.grids.activation_aware import SMALLEST, clipping, input_scale, row_errors
from prunus.maths.pruners import ActivationAware
from prunus.maths.stats import gather
from prunus.model.inspect import inspect, start
from prunus.run.loop import prune_blocks
from prunus.run.observer import Silent

IDS = torch.randint(0, 500, (4, 64), generator=torch.Generator().manual_seed(0))


def gram_of(inputs_TI):
    return gather(inputs_TI, (Gram,))[Gram].matrix_II


def output_error(inputs_TI, old_OI, new_OI):
    """‖X(W − Ŵ)ᵀ‖² / T, token by token in float64."""
    return float(
        (inputs_TI.double() @ (old_OI - new_OI).double().T).square().sum() / len(inputs_TI)
    )


def test_row_errors_are_those_of_the_activations(layer):
    weight_OI, inputs_TI, _ = layer
    change_OI = Grid(3, 16).quantize(weight_OI).dequantize() - weight_OI
    expected_O = (inputs_TI.double() @ change_OI.double().T).square().sum(0) / len(inputs_TI)
    found_O = row_errors(change_OI, gram_of(inputs_TI))
    torch.testing.assert_close(found_O.double(), expected_O, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 16, 20])
def test_the_scale_is_the_best_of_all_that_are_tried(layer, bits, group):
    weight_OI, inputs_TI, _ = layer
    other_OI = weight_OI[:7] * 3 + 0.1
    grid, gram_II = Grid(bits, group), gram_of(inputs_TI)
    scale_I, exponent = input_scale([weight_OI, other_OI], gram_II, grid, steps=10)
    rms_I = inputs_TI.double().square().mean(0).sqrt()
    size_I = (rms_I / rms_I.mean()).clamp_min(SMALLEST).float()
    errors = {}
    for step in range(11):
        s_I = size_I ** (step / 10)
        errors[step / 10] = sum(
            output_error(inputs_TI, w_OI, grid.quantize(w_OI * s_I).dequantize() / s_I)
            / output_error(inputs_TI, w_OI, torch.zeros_like(w_OI))
            for w_OI in (weight_OI, other_OI)
        )
    assert errors[exponent] == pytest.approx(min(errors.values()), rel=1e-3)
    assert errors[exponent] <= errors[0.0]
    torch.testing.assert_close(scale_I, size_I**exponent)
    if bits < 8:
        assert exponent > 0  # two of the inputs are twenty times as large as the others


@pytest.mark.parametrize("seed", range(3))
def test_layers_that_share_a_scale_count_alike_whatever_their_size(seed):
    """One wants small exponents, the other large ones; a hundred times as large neither decides."""
    generator = torch.Generator().manual_seed(seed)
    size_I = torch.tensor([20.0, 8.0] + 14 * [1.0])
    gram_II = gram_of(torch.randn(200, 16, generator=generator) * size_I)
    one_OI, other_OI = (torch.randn(4, 16, generator=generator) for _ in range(2))
    other_OI[:, :2] *= 0.02

    def exponent(*weights):
        return input_scale(weights, gram_II, Grid(3, None), steps=10)[1]

    assert exponent(one_OI) < exponent(other_OI)
    expected = exponent(one_OI, other_OI)
    assert exponent(100 * one_OI, other_OI) == expected
    assert exponent(one_OI, 100 * other_OI) == expected


@pytest.mark.parametrize("group", [None, 16, 20, 100])
def test_clipping_is_the_best_of_each_group_and_never_worse_for_a_row(layer, group):
    weight_OI, inputs_TI, _ = layer
    weight_OI = weight_OI.clone()
    weight_OI[:, 5] *= 8
    grid, gram_II = Grid(3, group), gram_of(inputs_TI)
    strength_OG = clipping(weight_OI, gram_II, grid)
    assert strength_OG.shape == (24, grid.groups(48))
    assert (strength_OG < 1).any()
    plain_OI = grid.quantize(weight_OI).dequantize()
    new_OI = grid.quantize(weight_OI, strength_OG, strength_OG).dequantize()
    size = group or 48
    for o in range(0, 24, 5):
        row, own = weight_OI[o : o + 1], strength_OG[o].tolist()
        best = []
        for first in range(0, 48, size):
            part, x_TI = row[:, first : first + size], inputs_TI[:, first : first + size]
            errors = {}
            for percent in range(100, 49, -5):
                gamma = torch.tensor(percent / 100)
                found = Grid(3, None).quantize(part, gamma, gamma).dequantize()
                errors[percent / 100] = output_error(x_TI, part, found)
            best.append(min(errors, key=errors.get))
        assert own in (pytest.approx(best), pytest.approx([1.0] * len(best)))
        before, after = (output_error(inputs_TI, row, x[o : o + 1]) for x in (plain_OI, new_OI))
        assert after <= before * (1 + 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dead_inputs_one_token_and_rows_of_zeros(dtype):
    weight_OI = torch.randn(9, 48, generator=torch.Generator().manual_seed(4)).to(dtype)
    weight_OI[0] = 0
    for inputs_TI in (torch.zeros(5, 48), torch.randn(1, 48).abs(), torch.eye(48)[:3]):
        gram_II = gram_of(inputs_TI)
        scale_I, _ = input_scale([weight_OI], gram_II, Grid(2, 16))
        assert scale_I.isfinite().all()
        assert (scale_I > 0).all()
        strength_OG = clipping(weight_OI, gram_II, Grid(2, 16))
        new_OI = Grid(2, 16).quantize(weight_OI, strength_OG, strength_OG).dequantize()
        assert new_OI.isfinite().all()
        assert not new_OI[0].any()


def quantised(family="llama", dtype=torch.float32, zeros=True, **fields):
    """The tiny model, half of it 0, quantised; its blocks, dense weights and reports."""
    model = load_tiny(family)[0].to(dtype)
    blocks, traced = inspect(model, IDS)
    layers = [layer for block in blocks for layer in block.layers]
    if zeros:
        for layer in layers:
            layer.write(layer.weight_OI.masked_fill(layer.weight_OI.abs() < 0.05, 0))
    dense = {layer.name: layer.weight_OI.clone() for layer in layers}
    reports = prune_blocks(
        blocks,
        start(model, blocks, traced, IDS),
        ActivationAware(**fields),
        dict.fromkeys(dense, 0.0),
        device=torch.device("cpu"),
        observer=Silent(),
    )
    return layers, dense, {report.name: report for report in reports}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_zeros_stay_and_errors_fall(scales, clip, dtype):
    fields = {"grid": Grid(3, 32), "dtype": dtype}
    layers, dense, reports = quantised(scales=scales, clip=clip, **fields)
    _, _, rounded = quantised(scales=False, clip=False, **fields)
    lower = 0
    for layer in layers:
        zeros_OI = dense[layer.name] == 0
        assert zeros_OI.any()
        assert (layer.weight_OI[zeros_OI] == 0).all()
        report = reports[layer.name]
        more = int((layer.weight_OI == 0).sum()) - int(zeros_OI.sum())
        assert report.notes["kept_but_rounded_to_0"] == more
        lower += report.relative_output_error < rounded[layer.name].relative_output_error
        if not scales and not clip:
            assert torch.equal(
                layer.weight_OI, Grid(3, 32).quantize(dense[layer.name]).dequantize()
            )
    assert lower >= 0.8 * len(layers) if scales or clip else lower == 0


def test_sites_that_could_not_take_a_scale_get_none():
    """o under grouped heads (llama: 4 heads read 2), down behind an activation (opt)."""
    exponents = {}
    for family in ("llama", "opt", "gpt_neox"):
        layers, _, reports = quantised(family, grid=Grid(2, 16), zeros=False)
        for layer in layers:
            found = exponents.setdefault((family, layer.role), set())
            found.add(reports[layer.name].notes["scale_exponent"])
    assert exponents["llama", "o"] == {0.0}
    assert exponents["opt", "down"] == exponents["gpt_neox", "down"] == {0.0}
    for where in (("llama", "q"), ("llama", "down"), ("llama", "gate"), ("opt", "o")):
        assert max(exponents[where]) > 0, where


def test_layers_of_a_site_share_their_scale():
    _, _, reports = quantised(grid=Grid(3, 16))
    for block in range(3):
        for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            found = {
                report.notes["scale_exponent"]
                for name, report in reports.items()
                if f".{block}." in name and name.endswith(names)
            }
            assert len(found) == 1


def test_two_bits_hurt_less_with_it(monkeypatch):
    """Perplexity of the tiny trained model, on text that was not calibrated on."""
    found = {}
    for name, fields in {"rounded": {"scales": False, "clip": False}, "aware": {}}.items():
        model, tokenizer = load_tiny("llama")
        prunus.quantize(
            model, bits=2, group=32, tokenizer=tokenizer, samples=8, length=64, **fields
        )
        found[name] = prunus.evaluate(model, length=64, windows=20, tokenizer=tokenizer).perplexity
    assert found["aware"] < 0.9 * found["rounded"]


def test_without_searching_it_needs_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.judge.reload.check", lambda *args: None)
    result = prunus.quantize(
        MODELS / "llama", bits=4, group=16, scales=False, clip=False, output=tmp_path / "out"
    )
    assert result.report.protocol is None
    assert result.verification.ok
    assert "# llama, quantised" in (tmp_path / "out/README.md").read_text()
    again = prunus.prune(
        MODELS / "llama", tmp_path / "out" / "recipe.yaml", output=tmp_path / "again"
    )
    assert again.report.grid == Grid(4, 16)
    assert again.report.sparsity == result.report.sparsity
