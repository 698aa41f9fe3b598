import math

import pytest
import torch
from torch import nn

import prunus
from helpers.models import load_tiny
from prunus.base.errors import CalibrationError, InputError, NumericalError
from prunus.judge.perplexity import perplexity


class Table(nn.Module):
    """Logits that depend on the current token alone."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(3 * torch.randn(50, 50, generator=generator).to(dtype))

    def forward(self, input_ids, use_cache):
        return type("Output", (), {"logits": self.table[input_ids]})


IDS = torch.randint(0, 50, (1000,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("length", "windows"), [(2, None), (7, 5), (300, None), (1000, 9)])
def test_the_papers_formula_in_float64(length, windows):
    model = Table()
    log_p = model.table.detach().double().log_softmax(-1)
    total = min(1000 // length, windows or 10**9)
    nlls = []
    for w in range(total):
        window = IDS[w * length : (w + 1) * length].tolist()
        losses = [-float(log_p[window[i], window[i + 1]]) for i in range(length - 1)]
        nlls.append(sum(losses) / len(losses) * length)
    expected = math.exp(sum(nlls) / (total * length))
    found = perplexity(model, IDS, length=length, windows=windows)
    assert found.perplexity == pytest.approx(expected, rel=1e-6)
    assert (found.windows, found.length, found.tokens) == (total, length, 1000)
    assert found.tokens_per_second > 0


def test_half_precision_logits_are_scored_in_float32():
    low = Table(torch.bfloat16)
    exact = Table()
    exact.table.data = low.table.data.float()
    a, b = (perplexity(m, IDS, length=100).perplexity for m in (low, exact))
    assert a == pytest.approx(b, rel=1e-6)


def test_uniform_logits_give_the_vocabulary():
    model = Table()
    model.table.data.zero_()
    assert perplexity(model, IDS, length=100).perplexity == pytest.approx(50)


def test_too_short_and_nonsense():
    with pytest.raises(CalibrationError, match="1000 tokens, fewer than one window of 1001"):
        perplexity(Table(), IDS, length=1001)
    for length, windows in ((1, None), (10, 0)):
        with pytest.raises(CalibrationError, match="at least 2 tokens"):
            perplexity(Table(), IDS, length=length, windows=windows)
    model = Table()
    model.table.data[:] = float("nan")
    with pytest.raises(NumericalError, match="NaN or inf in window 0"):
        perplexity(model, IDS, length=100)


def test_evaluate_scores_the_trained_models_far_below_random(family):
    model, tokenizer = load_tiny(family)
    found = prunus.evaluate(model, "builtin", tokenizer=tokenizer, length=128, windows=20)
    assert found.perplexity < 40
    assert found.source == "builtin (evaluation part)"


def test_evaluate_refuses_what_it_cannot_do(tiny_llama):
    model, tokenizer = tiny_llama
    with pytest.raises(InputError, match="context of 512 tokens"):
        prunus.evaluate(model, "builtin", tokenizer=tokenizer, length=513)
    with pytest.raises(InputError, match="needs tokenizer"):
        prunus.evaluate(model, "builtin")
    with pytest.raises(CalibrationError, match="cannot judge it"):
        prunus.evaluate(model, "self", tokenizer=tokenizer)
    with pytest.raises(InputError, match="sees no CUDA"):
        prunus.evaluate(model, "builtin", tokenizer=tokenizer, device="cuda:7")
