"""Whoever judges in a run has no text in common with what teaches, whatever the order of both."""

import pytest
import torch

import prunus
from helpers.models import load_tiny

STEPS = {"reconstruct.steps": 12, "reconstruct.patience": 0}


@pytest.fixture(scope="module")
def windows():
    """Eight, of which the last two are the first two a little further on."""
    text_T = torch.randint(5, 500, (8 * 80,), generator=torch.Generator().manual_seed(0))
    own = [text_T[80 * i : 80 * i + 64] for i in range(6)]
    return torch.stack([*own, text_T[8:72], text_T[88:152]])


def pruned(tokens_ST, fields):
    model, _ = load_tiny("llama")
    prunus.prune(model, tokens_ST=tokens_ST, **fields)
    return torch.cat([x.flatten() for x in model.state_dict().values()])


@pytest.mark.parametrize(
    ("fields", "order"),
    [
        ({"method": "goa", "recovery": "before"}, [0, 2, 3, 4, 5, 6, 1, 7]),
        ({"method": "goa", "recovery": "after"}, [0, 2, 3, 4, 5, 6, 1, 7]),
        ({"method": "wanda", "allocation": "slope"}, [0, 2, 3, 4, 5, 6, 1, 7]),
        ({"method": "wanda", "reconstruct": "block", "settings": STEPS}, [0, 1, 4, 2, 5, 6, 7, 3]),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else "",
)
def test_windows_that_overlap_judge_together(windows, fields, order):
    """As if they lay where the judges are, if nothing overlaps."""
    found, expected = pruned(windows, fields), pruned(windows[order], fields)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
