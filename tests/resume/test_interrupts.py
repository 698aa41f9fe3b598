"""Ctrl-C in a notebook: the model in memory stays one that can be used."""

import copy

import pytest
import torch

import prunus
from helpers.models import load_tiny
from prunus.run.observer import Silent

LLAMA = {"length": 24, "samples": 3}


class Interrupts(Silent):
    """Presses Ctrl-C at the n-th event; counts them all."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def _event(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise KeyboardInterrupt

    def say(self, message):
        self._event()

    def block(self, index, total, name, step):
        self._event()

    def sample(self, done, total):
        self._event()

    def layer(self, report):
        self._event()


def state(model):
    """All that a run may touch beside the weights."""
    return {
        "training": [m.training for m in model.modules()],
        "gradients": [p.requires_grad for p in model.parameters()],
        "devices": [p.device for p in model.parameters()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in model.modules()
        ],
        "own": [sorted(vars(m)) for m in model.modules()],
        "shapes": [tuple(p.shape) for p in model.parameters()],
    }


RUNS = {
    "ria": {"method": "ria"},
    "folded": {"method": "wanda", "pattern": "2:4", "permutation": "fold"},
    "besa": {"method": "besa", "settings": {"allocation.steps": 4}},
    "sequential": {"method": "sparsegpt", "true_sequential": True},
    "heads": {"method": "goa", "recovery": "both"},
}


@pytest.mark.parametrize("run", RUNS)
def test_a_model_is_usable_after_an_interrupt_at_any_event(run):
    dense, tokenizer = load_tiny("llama")
    dense.train()
    dense.model.layers[0].eval()  # modes of their own come back too
    ids = torch.arange(12)[None]
    count = Interrupts(0)
    prunus.prune(copy.deepcopy(dense), tokenizer=tokenizer, observer=count, **LLAMA, **RUNS[run])
    assert count.seen > 6
    for at in range(1, count.seen + 1, max(1, count.seen // 4)):
        model = copy.deepcopy(dense)
        with pytest.raises(KeyboardInterrupt):
            prunus.prune(model, tokenizer=tokenizer, observer=Interrupts(at), **LLAMA, **RUNS[run])
        before, after = state(dense), state(model)
        if run == "heads":  # blocks before it are smaller already
            before.pop("shapes"), after.pop("shapes"), before.pop("own"), after.pop("own")
        assert after == before, at
        assert bool(model(input_ids=ids).logits.isfinite().all())
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()  # and can be trained
        assert all(p.grad is not None for p in model.parameters())
