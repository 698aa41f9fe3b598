import pytest
import torch

from prunus.base.errors import CalibrationError, MissingStatisticError
from prunus.maths.stats import ColumnNorm, Statistics, TokenSample, gather


def test_rms_equals_a_literal_float64_loop(layer):
    _, inputs_TI, stats = layer
    for i in range(inputs_TI.shape[1]):
        total = sum(float(x) ** 2 for x in inputs_TI[:, i])
        expected = (total / len(inputs_TI)) ** 0.5
        assert float(stats[ColumnNorm].rms_I[i]) == pytest.approx(expected, rel=1e-6)


def test_rms_does_not_depend_on_the_batches(layer):
    _, inputs_TI, stats = layer
    split = Statistics((ColumnNorm,), 48)
    for part_TI in inputs_TI.split([1, 9, 150]):
        split.update(part_TI[None])  # (B, T, I), as a hook sees it
    assert torch.allclose(split[ColumnNorm].rms_I, stats[ColumnNorm].rms_I, rtol=1e-6)


def test_half_precision_inputs_are_squared_in_float32():
    inputs_TI = torch.full((4, 2), 300.0, dtype=torch.float16)  # 300² overflows float16
    assert gather(inputs_TI, (ColumnNorm,))[ColumnNorm].rms_I.tolist() == [300.0, 300.0]


def test_one_token_is_enough_and_none_is_an_error():
    assert gather(torch.tensor([[3.0, -4.0]]), (ColumnNorm,))[ColumnNorm].rms_I.tolist() == [3, 4]
    with pytest.raises(CalibrationError, match="No calibration token"):
        _ = Statistics((ColumnNorm,), 2)[ColumnNorm].rms_I


@pytest.mark.parametrize("tokens", [1, 127, 128, 255, 256, 257, 1000, 5000])
@pytest.mark.parametrize("batch", [1, 7, 512])
def test_token_sample_is_even_and_does_not_depend_on_the_batches(tokens, batch):
    inputs_TI = torch.arange(tokens, dtype=torch.float32)[:, None]
    sample = TokenSample(1, torch.device("cpu"))
    for part_TI in inputs_TI.split(batch):
        sample.update(part_TI)
    taken = sample.inputs_TI[:, 0].tolist()
    stride = 1
    while len(range(0, tokens, stride)) >= 2 * TokenSample.target:
        stride *= 2
    assert taken == list(range(0, tokens, stride))


def test_a_statistic_that_nobody_gathered_names_itself():
    with pytest.raises(MissingStatisticError, match="ColumnNorm was not gathered"):
        _ = gather(torch.ones(2, 2), ())[ColumnNorm]
