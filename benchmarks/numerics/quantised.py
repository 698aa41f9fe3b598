"""`prunus quantize` on a finished sparse model, in its three ways.

    python -m benchmarks.numerics.quantised MODEL --calibration c4.jsonl --text wiki.test.raw

Float32; Wanda at 50 %; 4 bits in groups of 128 (576 inputs make 4 groups and a half); 16
calibration windows of 1024 tokens, seed 0; perplexity on the first 8 windows of 2048. Prints a
Markdown table. What a grid does before or after the mask: benchmarks/results/smollm2/integers.yaml.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import prunus
from benchmarks.common import head, row
from prunus.storage.checkpoint import load_model, load_tokenizer

WAYS: dict[str, dict[str, Any]] = {
    "--no-scales --no-clip": {"scales": False, "clip": False},
    "--no-scales": {"scales": False},
    "": {},
}
PROTOCOL = {"samples": 16, "length": 1024, "seed": 0}
GRID = {"bits": 4, "group": 128}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True, help="what perplexity is measured on")
    given = parser.parse_args()
    model, tokenizer = load_model(given.model, dtype="float32"), load_tokenizer(given.model)
    fields = {**PROTOCOL, "calibration": given.calibration, "tokenizer": tokenizer}

    def show(name: str, scored: Any, begun: float) -> None:
        seconds = time.perf_counter() - begun
        found = prunus.evaluate(scored, given.text, length=2048, windows=8, tokenizer=tokenizer)
        row(name, f"{found.perplexity:.2f}", f"{seconds:.0f}")

    head("", "perplexity", "seconds")
    begun = time.perf_counter()
    prunus.prune(model, method="wanda", **fields)
    show("prunus prune --method wanda", model, begun)
    for options, way in WAYS.items():
        changed, begun = copy.deepcopy(model), time.perf_counter()
        prunus.quantize(changed, **fields, **GRID, **way)
        show(f"prunus quantize {options}".strip(), changed, begun)


if __name__ == "__main__":
    main()
