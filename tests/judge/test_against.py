import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import InputError, NumericalError
from prunus.judge.against import Beside, agreement, divergence
from prunus.judge.greedy import greedy_prefixes, prompts

IDS = torch.randint(0, 50, (60,), generator=torch.Generator().manual_seed(1))


class Table(nn.Module):
    """Logits that depend on the current token alone."""

    def __init__(self, seed, size=50):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(3 * torch.randn(size, size, generator=generator))

    def forward(self, input_ids, use_cache=False):
        return type("Output", (), {"logits": self.table[input_ids]})


def by_hand(dense, pruned):
    """KL, top token and top five of one token, with Python's float64."""

    def shares(logits):
        powers = [math.exp(x) for x in logits]
        return [x / sum(powers) for x in powers]

    p, q = shares(dense), shares(pruned)
    order = [sorted(range(len(x)), key=lambda v: -x[v])[:5] for x in (dense, pruned)]
    kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return kl, order[0][0] == order[1][0], len(set(order[0]) & set(order[1])) / 5


def test_sums_over_windows_are_those_of_literal_loops():
    dense, pruned = Table(0), Table(0)
    pruned.table.data += torch.randn(50, 50, generator=torch.Generator().manual_seed(2))
    sums, length = Beside(dense), 20
    tables = [m.table.tolist() for m in (dense, pruned)]
    found, losses = [], []
    for begin in range(0, 60, length):
        ids_BT = IDS[None, begin : begin + length]
        with torch.no_grad():
            sums.window(ids_BT, pruned(ids_BT).logits[0])
        window = ids_BT[0].tolist()
        found += [by_hand(tables[0][token], tables[1][token]) for token in window[:-1]]
        log_p = dense.table.detach().double().log_softmax(-1)
        losses.append(sum(-float(log_p[a, b]) for a, b in pairwise(window)) / (length - 1))
    kl, top, five = (sum(column) for column in zip(*found, strict=True))
    assert (sums.tokens, sums.windows, sums.top) == (57, 3, top)
    assert 0 < top < 57
    assert sums.kl == pytest.approx(kl, rel=1e-5)
    assert sums.best == pytest.approx(five, rel=1e-6)
    assert sums.loss == pytest.approx(sum(losses), rel=1e-6)


def test_ends_of_the_range():
    logits_TV = Table(0).table.detach()
    assert divergence(logits_TV, logits_TV).abs().max() == 0
    top_T, best_T = agreement(logits_TV, logits_TV)
    assert bool(top_T.all())
    assert bool((best_T == 1).all())
    ruled_out_TV = logits_TV.clone()
    ruled_out_TV[:, 3] = -math.inf
    assert bool(divergence(ruled_out_TV, logits_TV).isfinite().all())  # P = 0 adds nothing
    assert bool((divergence(logits_TV, ruled_out_TV) == math.inf).all())
    assert bool((agreement(logits_TV[:, :3], -logits_TV[:, :3])[1] == 1).all())  # 3 of 3


def test_a_broken_dense_model_is_named():
    dense = Table(0)
    dense.table.data[:] = math.nan
    match = "dense model puts out NaN or inf in window 0"
    with torch.no_grad(), pytest.raises(NumericalError, match=match):
        Beside(dense).window(IDS[None, :10], Table(1)(IDS[:10]).logits)


def test_prompts_are_beginnings_of_windows_evenly_spread():
    ids_T = torch.arange(1000)
    assert prompts(ids_T, 10, 100)[:, 0].tolist() == [10 * (i * 100 // 16) for i in range(16)]
    assert prompts(ids_T, 10, 3).tolist() == [list(range(b, b + 5)) for b in (0, 10, 20)]
    assert prompts(ids_T, 500, 2).shape == (2, 64)
    assert prompts(ids_T, 2, 1).tolist() == [[0]]


def shaken(model, by):
    """A copy whose weights are a little off."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.model.layers.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += by * weight.std().nan_to_num() * noise
    return made


@torch.no_grad()
def greedy(model, ids, new):
    for _ in range(new):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def test_prefixes_are_those_of_two_models_that_both_write():
    dense, tokenizer = load_tiny("llama")
    pruned = shaken(dense, 0.1)
    ids = tokenizer("Once upon a time there was a dog. It ran to the park with a boy.").input_ids
    prompts_NP = torch.tensor([ids[i : i + 6] for i in range(6)])
    expected = []
    for prompt in prompts_NP.tolist():
        pair = [greedy(model, prompt, 12)[6:] for model in (pruned, dense)]
        same = [a == b for a, b in zip(*pair, strict=True)]
        expected.append((*same, False).index(False))
    assert greedy_prefixes(pruned, dense, prompts_NP, 12) == expected
    assert 0 < sum(expected) < 72
    assert greedy_prefixes(dense, dense, prompts_NP, 12) == [12] * 6


def test_a_model_is_its_own_dense_model():
    folder = MODELS / "llama"
    found = prunus.evaluate(folder, length=64, windows=3, against=folder)
    against = found.against
    assert against.perplexity == found.perplexity
    assert (against.kl, against.top_token, against.best_five) == (0, 1, 1)
    assert against.prefix_mean == against.prefix_median == against.prefix_most == 64
    assert (against.prompts, against.prompt_tokens, against.model) == (3, 32, str(folder))
    assert found.perplexity == prunus.evaluate(folder, length=64, windows=3).perplexity


def test_what_does_not_compare_is_said(tiny_llama, tmp_path):
    model, tokenizer = tiny_llama
    run = {"tokenizer": tokenizer, "length": 64, "windows": 1}
    other = copy.deepcopy(model)
    other.resize_token_embeddings(model.config.vocab_size + 3)
    with pytest.raises(InputError, match=r"embeddings and in memory|not the same"):
        prunus.evaluate(model, against=other, **run)
    with pytest.raises(InputError, match="does not exist"):
        prunus.evaluate(model, against=tmp_path / "none", **run)
    with pytest.raises(InputError, match="score its windows with --no-last-word"):
        prunus.evaluate(model, ["two words"], last_word=True, against=model, tokenizer=tokenizer)
    with pytest.raises(InputError, match="compared on a text"):
        prunus.evaluate_all(model, tasks="piqa", against=model, tokenizer=tokenizer)
