"""Law 1: a result depends on its inputs and its seed, and on no random state of the process."""

import random

import pytest
import torch

import prunus
from helpers.models import load_tiny

RUNS = {
    "wanda": {"method": "wanda"},
    "mrp, refined": {"method": "mrp-sm", "pattern": "2:4", "refine": "swaps"},
    "folded": {"method": "wanda", "pattern": "2:4", "permutation": "fold"},
    "gathered": {"method": "ria", "pattern": "2:4", "permutation": "gather"},
    "own text": {"method": "sparsegpt", "calibration": "self"},
}


@pytest.mark.parametrize("name", RUNS)
def test_global_random_states_are_neither_read_nor_changed(name):
    results = []
    for seed in (1, 2):
        model, tokenizer = load_tiny("llama")
        random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), torch.get_rng_state()
        result = prunus.prune(model, tokenizer=tokenizer, samples=2, length=48, **RUNS[name])
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        results.append((model.state_dict(), result.report.protocol.sha256))
    (first, sha256), (second, other) = results
    assert sha256 == other
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_seed_is_another_result():
    """So that the test above can fail."""
    shas = set()
    for seed in (0, 1):
        model, tokenizer = load_tiny("llama")
        run = {"samples": 2, "length": 48, "seed": seed, **RUNS["own text"]}
        shas.add(prunus.prune(model, tokenizer=tokenizer, **run).report.protocol.sha256)
    assert len(shas) == 2
