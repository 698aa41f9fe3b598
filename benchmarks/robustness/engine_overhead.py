"""Wall time of a RIA run over that of the bare forward passes that it cannot do without.

    python benchmarks/robustness/engine_overhead.py MODEL [--samples 16 --length 1024 --pairs 3]

The bare passes are two per block and sample (one to record, one to advance), through the same
recorded calls, with no hooks, no statistics, no pruning. Both are timed in turn, pair by pair;
medians of the ratios are what to quote. Then one more run says where the rest goes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import prunus.maths.stats
import prunus.run.loop
from prunus.maths.patterns import parse_pattern
from prunus.maths.shares import Uniform
from prunus.methods.build import build_method
from prunus.model.inspect import inspect, start
from prunus.model.select import select_layers
from prunus.run.loop import prune_blocks
from prunus.run.observer import Silent
from prunus.storage.checkpoint import load_model

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--method", default="ria")
    parser.add_argument("--pattern")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()

    model = load_model(given.model, dtype="float32")
    dense = copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(0)
    ids_ST = torch.randint(0, 40000, (given.samples, given.length), generator=generator)
    blocks, traced = inspect(model, ids_ST)
    pruner = build_method(given.method, parse_pattern(given.pattern) if given.pattern else None)
    plan = Uniform()(select_layers(blocks), 0.5)

    def run() -> float:
        model.load_state_dict(dense)
        recording = start(model, blocks, traced, ids_ST)
        begun = time.perf_counter()
        prune_blocks(blocks, recording, pruner, plan, device=CPU, observer=Silent())
        return time.perf_counter() - begun

    @torch.no_grad()
    def bare() -> float:
        model.load_state_dict(dense)
        recording = start(model, blocks, traced, ids_ST)
        begun = time.perf_counter()
        for block in blocks:
            for sample, call in enumerate(recording.calls[block.index]):
                call(block.module, recording.hidden[sample])
            recording.advance(block.index, block.module, CPU)
        return time.perf_counter() - begun

    ratios = []
    for pair in range(given.pairs):
        ours, forwards = run(), bare()
        ratios.append(ours / forwards)
        print(f"pair {pair}: run {ours:.1f} s, forwards {forwards:.1f} s, {ratios[-1]:.3f}")
    print(f"median ratio {statistics.median(ratios):.3f} ({given.method}, {pruner})")
    breakdown(run)


def breakdown(run: Callable[[], float]) -> None:
    """Seconds inside the parts that are not forward passes."""
    spent: dict[str, float] = {}
    originals = []
    for name, owner, attribute in [
        ("statistics: column norms", prunus.maths.stats.ColumnNorm, "update"),
        ("statistics: token sample", prunus.maths.stats.TokenSample, "update"),
        ("score, mask, write, output error", prunus.run.loop, "_prune"),
        ("  of which write and output error", prunus.run.loop, "_write"),
    ]:
        originals.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, timed(name, getattr(owner, attribute), spent))
    total = run()
    for owner, attribute, original in originals:
        setattr(owner, attribute, original)
    for name, seconds in spent.items():
        print(f"{name:36} {seconds:6.2f} s  {seconds / total:6.2%}")


def timed(name: str, function: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    """Wrap the function to add up its time."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun

    return wrapper


if __name__ == "__main__":
    main()
