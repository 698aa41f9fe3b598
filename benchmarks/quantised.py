"""Sparse and quantised: the grid before the mask, after it, and on the finished model.

    python benchmarks/quantised.py MODEL --calibration c4.jsonl --text wiki.test.raw

Float32; Wanda at 50 %; 4 bits in groups of 128 (576 inputs make 4 groups and a half); 16
calibration windows of 1024 tokens, seed 0; perplexity on the first 8 windows of 2048. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import prunus
from prunus.storage.checkpoint import load_model, load_tokenizer

AFTERWARDS: dict[str, dict[str, Any]] = {
    "quantize, rounded": {"scales": False, "clip": False},
    "quantize, clipped": {"scales": False},
    "quantize, clipped and scaled": {},
}
JOINTLY = {"grid, then wanda": "before", "wanda, then grid": "after"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=["wanda", *JOINTLY, *AFTERWARDS])
    given = parser.parse_args()

    model = load_model(given.model, dtype="float32")
    tokenizer = load_tokenizer(given.model)
    text = {"tokenizer": tokenizer, "calibration": given.calibration, "samples": 16, "length": 1024}
    grid = {"bits": given.bits, "group": given.group}
    dense = copy.deepcopy(model.state_dict())

    def row(name: str, run: Callable[[], Any]) -> None:
        begun = time.perf_counter()
        sparsity = run().report.sparsity
        seconds = time.perf_counter() - begun
        found = prunus.evaluate(
            model, given.text, length=2048, windows=given.windows, tokenizer=tokenizer
        )
        print(f"| {name} | {sparsity:.4f} | {found.perplexity:.2f} | {seconds:.0f} |", flush=True)

    print("| method | sparsity | perplexity | seconds |\n|---|---|---|---|", flush=True)
    for name in (name for name in JOINTLY if name in given.only):
        model.load_state_dict(dense)
        fields = {**text, **grid, "method": "wanda", "quantize": JOINTLY[name]}
        row(name, lambda fields=fields: prunus.prune(model, **fields))
    model.load_state_dict(dense)
    pruned = prunus.prune(model, method="wanda", **text)
    if "wanda" in given.only:
        row("wanda", lambda: pruned)
    sparse = copy.deepcopy(model.state_dict())
    for name in (name for name in AFTERWARDS if name in given.only):
        model.load_state_dict(sparse)
        fields = {**text, **grid, **AFTERWARDS[name]}
        row(name, lambda fields=fields: prunus.quantize(model, **fields))


if __name__ == "__main__":
    main()
