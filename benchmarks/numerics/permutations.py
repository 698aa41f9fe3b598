"""Orders of channels: what they keep against the greedy search, and how their time grows.

    python benchmarks/numerics/permutations.py --sizes 1024 2048 4096

First, 2:4 on 512 and 1024 channels: the share of the gap between the stored order and the row-wise
optimum that each search closes, and its seconds. Then square layers: one sweep of the assignment
(what the paper times in its Table A3) against one L1 ``cdist`` and one scipy assignment of the size
that a slot needs; a sweep has four slots.
"""

from __future__ import annotations

import argparse
import time

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from prunus.maths.orders import Assignment, Greedy, Heuristic, Retained
from prunus.maths.patterns import NM

TWO_FOUR = NM(2, 4)
SEARCHES = {
    "heuristic, plain": Heuristic(snake=False),
    "heuristic, snake": Heuristic(),
    "one sweep (the authors')": Assignment(sweeps=1, exchanges=0),
    "assignment and exchanges": Assignment(),
    "greedy, 100 escapes": Greedy(escapes=100),
}


def scores(outputs: int, inputs: int) -> Tensor:
    """Of normal weights, with channels that differ in scale as activations do."""
    generator = torch.Generator().manual_seed(0)
    channel_I = (0.35 * torch.randn(inputs, generator=generator)).exp()
    return torch.randn(outputs, inputs, generator=generator).abs() * channel_I


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1024, 2048, 4096])
    given = parser.parse_args()

    print("| channels | search | gap closed | s |\n|---|---|---|---|")
    for inputs in (512, 1024):
        score_OI = scores(inputs, inputs)
        for name, search in SEARCHES.items():
            begun = time.perf_counter()
            order_I = search(score_OI, TWO_FOUR, 0.5)
            took = time.perf_counter() - begun
            closed = Retained.of(score_OI, TWO_FOUR, order_I).gap_closed
            print(f"| {inputs} | {name} | {closed:.2%} | {took:.1f} |", flush=True)

    print("\n| square | one sweep s | one cdist and one assignment s | ratio |\n|---|---|---|---|")
    for size in given.sizes:
        score_OI = scores(size, size)
        begun = time.perf_counter()
        Assignment(sweeps=1, exchanges=0)(score_OI, TWO_FOUR, 0.5)
        sweep = time.perf_counter() - begun
        box_KO, candidate_KO = score_OI.T[::4].contiguous(), score_OI.T[1::4].contiguous()
        begun = time.perf_counter()
        gain_KK = torch.cdist(box_KO, candidate_KO, p=1)
        linear_sum_assignment(gain_KK.numpy(), maximize=True)
        one = time.perf_counter() - begun
        print(f"| {size} | {sweep:.1f} | {one:.1f} | {sweep / one:.1f} |", flush=True)


if __name__ == "__main__":
    main()
