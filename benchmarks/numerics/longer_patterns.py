"""What N:M keeps of the score as M grows, with and without an order of the channels.

    python -m benchmarks.numerics.longer_patterns MODEL --calibration c4.jsonl

RIA's and OBS's scores of every layer of one block, dense, on 8 windows of 1024 tokens. Each cell is
the share of all scores that the mask keeps: in the stored order, and in the one that the assignment
finds for each layer. Beside them are half of every row and half of every layer, without N:M.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.common import head, row, windows_of
from benchmarks.numerics.permutations import LAYERS
from prunus.maths.orders import Assignment, Retained
from prunus.maths.patterns import NM
from prunus.maths.scores import OBS, RIA
from prunus.reproduce.activations import watched
from prunus.storage.checkpoint import load_model, load_tokenizer

PATTERNS = (NM(2, 4), NM(4, 8), NM(8, 16), NM(16, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--block", type=int, default=15)
    given = parser.parse_args()

    model = load_model(given.model, dtype="float32")
    ids_ST = windows_of(model, load_tokenizer(given.model), given.calibration, 8)
    layers = [model.get_submodule(f"model.layers.{given.block}.{name}") for name in LAYERS]
    needs = {*RIA().needs, *OBS().needs}
    stats = watched(model, dict(zip(LAYERS, layers, strict=True)), ids_ST, tuple(needs))
    head("score kept", *map(str, PATTERNS), "row", "layer")
    for score in (RIA(), OBS()):
        scores = [
            score(layer.weight.detach(), stats[name])
            for name, layer in zip(LAYERS, layers, strict=True)
        ]
        show(type(score).__name__, scores)


def show(name: str, scores: list[Tensor]) -> None:
    """Print both lines of a score."""
    total = sum(float(x.sum(dtype=torch.float64)) for x in scores)
    found = [
        [Retained.of(x, pattern, Assignment()(x, pattern, 0.5)) for x in scores]
        for pattern in PATTERNS
    ]
    half = [sum(map(best_half, part)) / total for part in (scores, [x.view(1, -1) for x in scores])]
    stored = [sum(x.stored for x in kept) / total for kept in found]
    ordered = [sum(x.score for x in kept) / total for kept in found]
    row(f"{name}, stored order", *(f"{share:.2%}" for share in (*stored, *half)))
    row(f"{name}, an order for each layer", *(f"{share:.2%}" for share in ordered), "", "")


def best_half(score_OI: Tensor) -> float:
    """Return the sum of the better half of each row."""
    return float(score_OI.topk(score_OI.shape[1] // 2, 1).values.sum(dtype=torch.float64))


if __name__ == "__main__":
    main()
