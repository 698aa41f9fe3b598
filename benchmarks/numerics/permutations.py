"""Orders of channels: what they keep against the greedy search, and how their time grows.

    python -m benchmarks.numerics.permutations --sizes 1024 2048 4096
    python -m benchmarks.numerics.permutations --model MODEL --calibration c4.jsonl --pattern 2:4

With a model: RIA's scores of every layer of one block, dense; for each search the share of all
scores that it keeps, and of the gap between the stored order and the row-wise optimum.

Without: 2:4 on 512 and 1024 channels: the share of the gap from the stored order to the row-wise
optimum that each search closes, and its seconds. Then square layers: one sweep of the assignment
(what the paper times in its Table A3) against one L1 ``cdist`` and one scipy assignment of the size
that a slot needs; a sweep has four slots.
"""

from __future__ import annotations

import argparse
import time

import torch
from scipy.optimize import linear_sum_assignment

from benchmarks.common import windows_of
from prunus.maths.orders import Assignment, Greedy, Heuristic, Retained
from prunus.maths.patterns import NM, parse_pattern
from prunus.maths.scores import RIA
from prunus.methods.table import SEARCHES as NAMED
from prunus.reproduce.activations import watched
from prunus.reproduce.orders import made_up_scores
from prunus.storage.checkpoint import load_model, load_tokenizer

LAYERS = ["self_attn." + x for x in ("q_proj", "k_proj", "v_proj", "o_proj")]
LAYERS += ["mlp." + x for x in ("gate_proj", "up_proj", "down_proj")]
TWO_FOUR = NM(2, 4)
SEARCHES = {
    "heuristic, plain": Heuristic(snake=False),
    "heuristic, snake": Heuristic(),
    "paper: plain, one sweep": NAMED["paper"],
    "their code: snake, one sweep": Assignment(sweeps=1, exchanges=0),
    "assignment and exchanges": Assignment(),
    "greedy, 100 escapes": Greedy(escapes=100),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1024, 2048, 4096])
    parser.add_argument("--model")
    parser.add_argument("--calibration")
    parser.add_argument("--block", type=int, default=15)
    parser.add_argument("--pattern", default="2:4")
    given = parser.parse_args()
    if given.model is not None:
        of_a_block(given)
        return

    print("| channels | search | gap closed | s |\n|---|---|---|---|")
    for inputs in (512, 1024):
        score_OI = made_up_scores(inputs, inputs)
        for name, search in SEARCHES.items():
            begun = time.perf_counter()
            order_I = search(score_OI, TWO_FOUR, 0.5)
            took = time.perf_counter() - begun
            closed = Retained.of(score_OI, TWO_FOUR, order_I).gap_closed
            print(f"| {inputs} | {name} | {closed:.2%} | {took:.1f} |", flush=True)

    print("\n| square | one sweep s | one cdist and one assignment s | ratio |\n|---|---|---|---|")
    for size in given.sizes:
        score_OI = made_up_scores(size, size)
        begun = time.perf_counter()
        Assignment(sweeps=1, exchanges=0)(score_OI, TWO_FOUR, 0.5)
        sweep = time.perf_counter() - begun
        box_KO, candidate_KO = score_OI.T[::4].contiguous(), score_OI.T[1::4].contiguous()
        begun = time.perf_counter()
        gain_KK = torch.cdist(box_KO, candidate_KO, p=1)
        linear_sum_assignment(gain_KK.numpy(), maximize=True)
        one = time.perf_counter() - begun
        print(f"| {size} | {sweep:.1f} | {one:.1f} | {sweep / one:.1f} |", flush=True)


def of_a_block(given: argparse.Namespace) -> None:
    """Print what each search keeps of the scores of a real block's layers."""
    pattern = parse_pattern(given.pattern)
    assert isinstance(pattern, NM)
    model = load_model(given.model, dtype="float32")
    ids_ST = windows_of(model, load_tokenizer(given.model), given.calibration, 8)
    names = [f"model.layers.{given.block}.{layer}" for layer in LAYERS]
    stats = watched(model, {name: model.get_submodule(name) for name in names}, ids_ST, RIA.needs)
    scores = [RIA()(model.get_submodule(name).weight.detach(), stats[name]) for name in names]
    total = sum(float(score_OI.sum(dtype=torch.float64)) for score_OI in scores)
    print("| search | score kept | gap closed, mean over layers | s |\n|---|---|---|---|")
    for name, search in SEARCHES.items():
        begun = time.perf_counter()
        orders = [search(score_OI, pattern, pattern.sparsity) for score_OI in scores]
        took = time.perf_counter() - begun
        found = [Retained.of(s_OI, pattern, x) for s_OI, x in zip(scores, orders, strict=True)]
        kept = sum(x.score for x in found) / total
        closed = sum(x.gap_closed for x in found) / len(found)
        print(f"| {name} | {kept:.4%} | {closed:.2%} | {took:.1f} |", flush=True)
    stored, best = (sum(getattr(x, k) for x in found) / total for k in ("stored", "row_optimum"))
    print(f"stored order: {stored:.4%}; row-wise optimum: {best:.4%}")


if __name__ == "__main__":
    main()
