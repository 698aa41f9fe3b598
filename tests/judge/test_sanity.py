import math
from fractions import Fraction

import pytest
import torch

import prunus
from helpers.models import MODELS, load_tiny
from prunus.judge.sanity import counts_perplexity, worse_than_counts

LLAMA = MODELS / "llama"


def chance(ids):
    """Of all tokens but the first, of a vocabulary of 8."""
    found = Fraction(1)
    for at, token in enumerate(ids[1:], 1):
        before = ids[:at]
        different = len(set(before))
        if token in before:
            found *= Fraction(before.count(token), at + different)
        else:
            found *= Fraction(different, at + different) / 8
    return found


def test_counts_before_each_token():
    windows = [[1, 2, 1, 7, 7, 1, 2, 0], [5, 5, 5, 5, 5, 5, 5, 5]]
    means = [math.log(chance(ids)) / 7 for ids in windows]
    assert counts_perplexity(torch.tensor(windows), 8) == pytest.approx(math.exp(-sum(means) / 2))


def test_they_are_a_distribution():
    ids = [1, 2, 1, 7, 7, 1]
    each = [counts_perplexity(torch.tensor([[*ids, v]]), 8) ** -6 for v in range(8)]
    whole = counts_perplexity(torch.tensor([ids]), 8) ** -5
    assert 0.5 < sum(each) / whole <= 1


def test_they_near_the_entropy_of_one_long_window():
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 20_000, True, generator=generator)
    entropy = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert counts_perplexity(ids_T[None], 1000) == pytest.approx(math.exp(entropy), rel=0.02)
    assert worse_than_counts(math.exp(entropy), ids_T[None], 1000) is None
    assert worse_than_counts(math.inf, ids_T[None], 1000) is not None


class Ear(prunus.Silent):
    def __init__(self):
        self.heard = []

    def say(self, message):
        self.heard.append(message)


def test_a_wrong_tokenizer_is_noticed_and_a_sound_one_is_not(family):
    folder, (model, tokenizer) = MODELS / family, load_tiny(family)
    assert prunus.evaluate(folder, length=64, windows=8).warning is None
    text = "Once upon a time there was a dog. It ran to the park, where a boy had a red ball. "
    ids_T = torch.tensor(tokenizer(text * 4).input_ids)[:64]
    order = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(0))
    ear = Ear()
    found = prunus.evaluate(folder, order[ids_T], observer=ear)
    assert found.warning.startswith("warning: a dense perplexity of ")
    assert found.warning in ear.heard
    assert prunus.evaluate(model, order[ids_T]).warning is None  # nobody says that it is dense
    assert prunus.evaluate(model, order[ids_T], against=model).warning is not None


def test_a_pruned_model_may_be_worse_than_counts(tmp_path):
    prunus.prune(LLAMA, method="magnitude", sparsity=0.97, output=tmp_path / "pruned")
    found = prunus.evaluate(tmp_path / "pruned", length=64, windows=4, against=LLAMA)
    assert found.warning is None
    assert found.perplexity > 400
