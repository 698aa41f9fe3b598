"""The reference table: every method at 50 %, 2:4 and 4:8 on one model, by one protocol.

    python -m benchmarks.tables.reference_table MODEL --calibration c4.jsonl --text wiki.test.raw

Float32; 16 calibration windows of 1024 tokens, seed 0; perplexity on the first 8 windows of 2048.
Prints a Markdown table row by row; every run starts from the same dense weights. The peak of
resident memory is that of the process up to then, before the evaluation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import Bench, head, protocol, row

METHODS = (
    *("magnitude", "ri", "wanda", "ria", "dass"),
    *("sparsegpt", "mrp-sm", "mrp-ms", "mrp-mm"),
)
NM_ALONE = ("mrp-ms", "mrp-mm")
ALSO = [  # readings that the papers leave open, at 50 %
    ("ria", {"pattern": "row"}),
    ("wanda", {"pattern": "layer"}),
    ("ria", {"settings": {"score.terms": "in"}}),
    ("ria", {"settings": {"score.terms": "out"}}),
    ("dass", {"mlp_only": True}),
    ("wanda", {"mlp_only": True}),
]
ABLATIONS = [  # of mrp-sm at 50 %
    *[("mrp-sm", {"settings": {"damp": damp}}) for damp in (0.001, 0.1)],
    *[("mrp-sm", {"samples": samples}) for samples in (2, 64)],
    *[("mrp-sm", {"settings": {"block_size": size}}) for size in (0, 32)],
]
DATA_FREE = ("magnitude", "ri")


def main() -> None:
    given = arguments()
    bench = Bench(given, [(2048, given.windows)])
    head("method", "pattern", "sparsity", "perplexity", "prune s", "peak GiB")
    row("dense", "", f"{0:.4f}", f"{bench.scores(bench.dense)[0]:.2f}", 0, f"{0:.2f}")
    fixed = {key: yaml.safe_load(value) for key, value in (f.split("=", 1) for f in given.field)}
    for method, fields in ALSO if given.also else ABLATIONS if given.ablations else runs(given):
        source = {"calibration": "none"} if method in DATA_FREE else {}
        found = bench.prune(method=method, **{**source, **fields, **fixed})
        name = shown({**fields, **fields.get("settings", {}), **fixed, **fixed.get("settings", {})})
        if given.reports is not None:
            given.reports.mkdir(exist_ok=True)
            path = given.reports / f"{method} {name}.json".replace(":", "-").replace(" ", "_")
            path.write_text(found.report.to_json())
        numbers = f"{found.report.sparsity:.4f}", found.perplexity, f"{found.seconds:.0f}"
        row(method, name, *numbers, f"{found.peak_gib:.2f}")


def arguments() -> argparse.Namespace:
    parser = protocol(__doc__)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=METHODS, help="methods to run")
    parser.add_argument(
        "--pattern", nargs="*", default=["50%", "2:4", "4:8"], help="such as 60%% or 1:4"
    )
    parser.add_argument("--field", nargs="*", default=[], help="recipe fields: refine=swaps")
    parser.add_argument("--reports", type=Path, help="a folder for the report of every run")
    parser.add_argument("--also", action="store_true", help="the readings the papers leave open")
    parser.add_argument("--ablations", action="store_true", help="damping, samples, block size")
    return parser.parse_args()


def shown(fields: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in fields.items() if key != "settings")


def runs(given: argparse.Namespace) -> list[tuple[str, dict[str, object]]]:
    """Each method with each pattern that it takes."""
    wanted = []
    for method in given.only:
        for text in given.pattern:
            if text.endswith("%") and method not in NM_ALONE:
                wanted.append((method, {"sparsity": float(text[:-1]) / 100}))
            elif not text.endswith("%"):
                wanted.append((method, {"pattern": text}))
    return wanted


if __name__ == "__main__":
    main()
