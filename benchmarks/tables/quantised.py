"""Sparse and quantised: the grid before the mask, after it, and on the finished model.

    python -m benchmarks.tables.quantised MODEL --calibration c4.jsonl --text wiki.test.raw

Float32; Wanda at 50 %; 4 bits in groups of 128 (576 inputs make 4 groups and a half); 16
calibration windows of 1024 tokens, seed 0; perplexity on the first 8 windows of 2048. Prints a
Markdown table.
"""

from __future__ import annotations

from typing import Any

import prunus
from benchmarks.common import Bench, Outcome, head, protocol, row

AFTERWARDS: dict[str, dict[str, Any]] = {
    "quantize, rounded": {"scales": False, "clip": False},
    "quantize, clipped": {"scales": False},
    "quantize, clipped and scaled": {},
}
JOINTLY = {"grid, then wanda": "before", "wanda, then grid": "after"}


def main() -> None:
    parser = protocol(__doc__)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=["wanda", *JOINTLY, *AFTERWARDS])
    given = parser.parse_args()

    bench = Bench(given, [(2048, given.windows)])
    grid = {"bits": given.bits, "group": given.group}
    head("method", "sparsity", "perplexity", "seconds")
    for name in (name for name in JOINTLY if name in given.only):
        show(name, bench.prune(method="wanda", quantize=JOINTLY[name], **grid))
    sparse = bench.prune(method="wanda")
    if "wanda" in given.only:
        show("wanda", sparse)
    for name in (name for name in AFTERWARDS if name in given.only):
        fields = {**bench.fields, **grid, **AFTERWARDS[name]}
        change = lambda model, fields=fields: prunus.quantize(model, **fields)  # noqa: E731
        show(name, bench.run(change, sparse.model))


def show(name: str, found: Outcome) -> None:
    row(name, f"{found.report.sparsity:.4f}", found.perplexity, f"{found.seconds:.0f}")


if __name__ == "__main__":
    main()
