"""The reference table: every method at 50 %, 2:4 and 4:8 on one model, by one protocol.

    python benchmarks/reference_table.py MODEL --calibration c4.jsonl --text wiki.test.raw

Float32; 16 calibration windows of 1024 tokens, seed 0; perplexity on the first 8 windows of 2048.
Prints a Markdown table row by row; every run starts from the same dense weights. The peak of
resident memory is that of the process up to then, before the evaluation.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from pathlib import Path

import torch
import yaml

import prunus
from prunus.storage.checkpoint import load_model, load_tokenizer

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=METHODS, help="methods to run")
    parser.add_argument(
        "--pattern", nargs="*", default=["50%", "2:4", "4:8"], help="such as 60%% or 1:4"
    )
    parser.add_argument("--field", nargs="*", default=[], help="recipe fields: refine=swaps")
    parser.add_argument("--reports", type=Path, help="a folder for the report of every run")
    parser.add_argument("--also", action="store_true", help="the readings the papers leave open")
    parser.add_argument("--ablations", action="store_true", help="damping, samples, block size")
    given = parser.parse_args()

    model = load_model(given.model, dtype="float32")
    tokenizer = load_tokenizer(given.model)
    dense = copy.deepcopy(model.state_dict())
    print("| method | pattern | sparsity | perplexity | prune s | peak GiB |")
    print("|---|---|---|---|---|---|", flush=True)
    row("dense", "", 0, measure(model, tokenizer, given), 0, 0)
    fixed = {key: yaml.safe_load(value) for key, value in (f.split("=", 1) for f in given.field)}
    protocol = {"samples": given.samples, "length": given.length, "seed": given.seed}
    for method, fields in ALSO if given.also else ABLATIONS if given.ablations else runs(given):
        model.load_state_dict(dense)
        begun = time.perf_counter()
        source = "none" if method in DATA_FREE else given.calibration
        result = prunus.prune(
            model,
            method=method,
            tokenizer=tokenizer,
            calibration=source,
            **{**protocol, **fields, **fixed},
        )
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        shown = {**fields, **fields.get("settings", {}), **fixed, **fixed.get("settings", {})}
        shown.pop("settings", None)
        name = " ".join(f"{key}={value}" for key, value in shown.items())
        if given.reports is not None:
            given.reports.mkdir(exist_ok=True)
            path = given.reports / f"{method} {name}.json".replace(":", "-").replace(" ", "_")
            path.write_text(result.report.to_json())
        perplexity = measure(model, tokenizer, given)
        row(method, name, result.report.sparsity, perplexity, seconds, peak)


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


def measure(model: torch.nn.Module, tokenizer: object, given: argparse.Namespace) -> float:
    return prunus.evaluate(
        model, given.text, length=2048, windows=given.windows, tokenizer=tokenizer
    ).perplexity


def row(
    method: str, pattern: str, sparsity: float, perplexity: float, seconds: float, peak: float
) -> None:
    numbers = f"{sparsity:.4f} | {perplexity:.2f} | {seconds:.0f} | {peak:.2f}"
    print(f"| {method} | {pattern} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
