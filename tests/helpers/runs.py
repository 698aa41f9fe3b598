"""Runs that end where a test says, and whether two of them left the same."""

import json

import pytest
import torch
from safetensors.torch import load_file

import prunus
from helpers.models import MODELS
from prunus.run.observer import Silent

FAST = {"samples": 3, "length": 48}


class Ends(Silent):
    """Ends a run when a step of a block begins."""

    def __init__(self, index, step, error=KeyboardInterrupt):
        self.at, self.error, self.said, self.steps = (index, step), error, [], []

    def say(self, message):
        self.said.append(message)

    def block(self, index, total, name, step):
        self.steps.append((index, step))
        if (index, step) == self.at:
            raise self.error("the end")


class Counts(Silent):
    """Ends a run at a step of learning in a block, and notes where others begin."""

    def __init__(self, block=None, at=None):
        self.block_index, self.at, self.now, self.begun = block, at, None, {}

    def block(self, index, total, name, step):
        self.now = index if step == "reconstruct" else None

    def sample(self, done, total):
        if self.now is not None:
            self.begun.setdefault(self.now, done)
            if (self.now, done) == (self.block_index, self.at):
                raise KeyboardInterrupt


def tensors(folder):
    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


def same(first, second):
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    reports = [json.loads((x / "pruning_report.json").read_text()) for x in (first, second)]
    for report in reports:
        report.pop("seconds")
        for timed in (*report["layers"], *report["learning"], *report["reconstructed"]):
            timed.pop("seconds")
    assert reports[0] == reports[1]


def end(output, index, step, **run):
    observer = Ends(index, step)
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(MODELS / "llama", output=output, observer=observer, **run)
    return observer
