import pytest
import torch

from prunus.base.errors import CalibrationError, MissingStatisticError
from prunus.maths.gram import Gram
from prunus.maths.moments import ChannelMoments, Moments
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


BATCHES = (5, 8, 9, 10, 13, 25, 30)


def values(kind, inputs_TI, weights_T=None, batches=BATCHES):
    """All tensors and numbers of a statistic of these tokens, in batches."""
    found = kind(inputs_TI.shape[1], torch.device("cpu"))
    start = 0
    for size in batches:
        part = slice(start, start + size)
        found.update(inputs_TI[part], *([] if weights_T is None else [weights_T[part]]))
        start += size
    names = ("rms_I", "matrix_II", "inputs_TI", "mean_I", "variance_I", "second_moment_II")
    names += ("second_moment_I", "covariance_II")
    return {name: getattr(found, name) for name in names if hasattr(kind, name)}


@pytest.mark.parametrize("kind", [ColumnNorm, Gram, TokenSample, ChannelMoments, Moments])
def test_a_token_of_weight_two_is_two_tokens(kind, monkeypatch):
    monkeypatch.setattr(TokenSample, "target", 16)
    maker = torch.Generator().manual_seed(3)
    inputs_TI = torch.randn(100, 6, generator=maker)
    times_T = torch.randint(0, 4, (100,), generator=maker)
    longer = [int(part_T.sum()) for part_T in times_T.split(BATCHES)]
    repeated = values(kind, inputs_TI.repeat_interleave(times_T, 0), None, longer)
    weighed = values(kind, inputs_TI, times_T.double())
    assert repeated.keys() == weighed.keys() != set()
    for name in repeated:
        assert weighed[name].shape == repeated[name].shape
        assert torch.allclose(weighed[name], repeated[name], rtol=1e-4, atol=1e-5), name
    plain = values(kind, inputs_TI)
    assert any(not torch.equal(plain[name], weighed[name]) for name in plain)


@pytest.mark.parametrize("kind", [ColumnNorm, Gram, TokenSample, ChannelMoments, Moments])
def test_weights_of_one_change_nothing(kind):
    inputs_TI = torch.randn(100, 6, generator=torch.Generator().manual_seed(3))
    plain, weighed = values(kind, inputs_TI), values(kind, inputs_TI, torch.ones(100))
    assert all(torch.allclose(plain[name], weighed[name]) for name in plain)


def test_a_sample_counts_the_tokens_that_it_saw_whatever_they_weigh():
    sample = TokenSample(1, torch.device("cpu"))
    sample.update(torch.arange(10.0)[:, None], torch.full((10,), 0.5))
    assert sample.tokens == 10
    assert sample.inputs_TI[:, 0].tolist() == [0, 2, 4, 6, 8]
