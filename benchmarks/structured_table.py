"""Heads and neurons removed from some blocks: this paper's method against every baseline.

    python benchmarks/structured_table.py MODEL --calibration c4.jsonl --text wiki.test.raw

Blocks 4 to 26, 20 % and 30 % of the parameters in their heads and neurons; float32; 16 calibration
windows of 1024 tokens, seed 0; perplexity on the first 8 windows of 2048 and the first 128 of 128.
``--heads N …`` removes that many groups of heads in all and nothing else (the paper's Table 2).
Prints a Markdown table row by row; every run starts from the same dense weights.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import prunus
from prunus.storage.checkpoint import load_model, load_tokenizer

NEITHER = {"compensation": False}
ROWS: dict[str, dict[str, Any]] = {
    "goa": {"method": "goa"},
    "goa, adaptive": {"method": "goa", "allocation": "adaptive"},
    "goa, recovery before": {"method": "goa", "recovery": "before"},
    "goa, recovery after": {"method": "goa", "recovery": "after"},
    "goa, recovery both": {"method": "goa", "recovery": "both"},
    "goa, self-generated": {"method": "goa", "calibration": "self"},
    "goa, self-generated, recovery after": {
        "method": "goa", "calibration": "self", "recovery": "after",
    },
    "goa, no data": {"method": "goa", "calibration": "none"},
    "goa, as printed": {
        "method": "goa", "settings": {"heads.goes": "first", "neurons.moment": "gaussian"},
    },
    "goa, as its code": {
        "method": "goa",
        "settings": {
            "heads.distance": "authors", "heads.goes": "first", "neurons.moment": "gaussian",
            "neurons.norm": 1, "neurons.gated": "code", "neurons.centred": True,
        },
    },
    "random": {"method": "random"},
    "l1": {"method": "l1"},
    "l2": {"method": "l2"},
    "wanda-sp": {"method": "wanda-sp"},
    "wanda-sp, recovery after": {"method": "wanda-sp", "recovery": "after"},
    "flap": {"method": "flap"},
    "flap, uniform": {"method": "flap", "allocation": "uniform"},
    "flap, no compensation": {"method": "flap", "settings": NEITHER},
    "flap, recovery after": {"method": "flap", "recovery": "after", "settings": NEITHER},
    "llm-pruner, element": {"method": "llm-pruner"},
    "llm-pruner, vector": {
        "method": "llm-pruner", "settings": {"heads.by": "vector", "neurons.by": "vector"},
    },
}  # fmt: skip
DATA_FREE = ("random", "l1", "l2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--blocks", default="4:26")
    parser.add_argument("--sparsity", nargs="*", type=float, default=[0.2, 0.3])
    parser.add_argument("--heads", nargs="*", type=int, default=[], help="groups of heads, alone")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--lengths", nargs=2, type=int, default=[2048, 128], help="of windows")
    parser.add_argument("--windows", nargs=2, type=int, default=[8, 128], help="of each length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="rows to run")
    parser.add_argument("--dense", action="store_true", help="the dense row too")
    given = parser.parse_args()

    model = load_model(given.model, dtype="float32")
    tokenizer = load_tokenizer(given.model)
    at = " | ".join(f"perplexity {length}" for length in given.lengths)
    print(f"| method | removed | parameters | groups of heads | {at} | prune s |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    if given.dense:
        whole = sum(p.numel() for p in model.parameters())
        print(f"| dense | 0 | {whole:,} | | {scores(model, tokenizer, given)} | |", flush=True)
    for amount in [*given.sparsity, *given.heads]:
        for name in given.only:
            row(model, tokenizer, name, amount, given)


def row(model: Any, tokenizer: Any, name: str, amount: float, given: Any) -> None:
    """One run from dense weights: a share of the parameters, or a number of groups of heads."""
    pruned = copy.deepcopy(model)
    fields = {"samples": given.samples, "length": given.length, "seed": given.seed, **ROWS[name]}
    fields.setdefault("calibration", "none" if name in DATA_FREE else given.calibration)
    if isinstance(amount, int):
        settings = {**fields.get("settings", {}), "target": "heads"}
        fields |= {"settings": settings, "allocation": "adaptive"}
        fields["parameters"] = amount * group(model)
    else:
        fields["sparsity"] = amount
    begun = time.perf_counter()
    report = prunus.prune(pruned, blocks=given.blocks, tokenizer=tokenizer, **fields).report
    seconds = time.perf_counter() - begun
    facts = report.structured
    assert facts is not None
    gone = sum(b.kv_heads[0] - b.kv_heads[1] for b in facts.blocks if b.kv_heads)
    print(
        f"| {name} | {facts.share:.4f} | {facts.parameters[1]:,} | −{gone} | "
        f"{scores(pruned, tokenizer, given)} | {seconds:.0f} |",
        flush=True,
    )


def group(model: Any) -> int:
    """Parameters of one key/value group: q, k, v and o of a model without biases."""
    config = model.config
    heads = config.num_attention_heads // config.num_key_value_heads
    return int(2 * config.hidden_size * config.head_dim * (heads + 1))


def scores(model: Any, tokenizer: Any, given: Any) -> str:
    """Perplexity at both lengths."""
    found = [
        prunus.evaluate(model, given.text, length=length, windows=windows, tokenizer=tokenizer)
        for length, windows in zip(given.lengths, given.windows, strict=True)
    ]
    return " | ".join(f"{each.perplexity:.2f}" for each in found)


if __name__ == "__main__":
    main()
