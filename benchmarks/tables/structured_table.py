"""Heads and neurons removed from some blocks: this paper's method against every baseline.

    python -m benchmarks.tables.structured_table MODEL --calibration c4.jsonl --text wiki.test.raw

Blocks 4 to 26, 20 % and 30 % of the parameters in their heads and neurons; float32; 16 calibration
windows of 1024 tokens, seed 0; perplexity on the first 8 windows of 2048 and the first 128 of 128.
``--heads N …`` removes that many groups of heads in all and nothing else. ``--thresholds T …``
removes all groups of heads that are closer than T and nothing else, with goa (the paper's Table 2).
Rows "in domain" recover on the text that ``--in-domain`` names, such as WikiText-2's train split;
"64 windows" and "128 windows" say how many windows recovery reads, where the scores read 16. Rows
of query heads remove those within key/value groups, for as many parameters as N groups have.
Prints a Markdown table row by row; every run starts from the same dense weights. "removed" is the
share of the parameters in heads and neurons (or heads alone), of the blocks, and of the model.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import Bench, Outcome, head, protocol, row

NEITHER = {"compensation": False}
EVENLY = ", as many from each block"  # with --heads, where else all blocks compete
IN_DOMAIN = "in domain"  # in place of a source, which --in-domain names
STREAM = {"recovery_target": "stream"}
RECOVERED: dict[str, dict[str, Any]] = {
    "in domain": {"recovery_text": IN_DOMAIN},
    "64 windows": {"recovery_samples": 64},
    "128 windows": {"recovery_samples": 128},
    "in domain, 64 windows": {"recovery_text": IN_DOMAIN, "recovery_samples": 64},
    "in domain, 128 windows": {"recovery_text": IN_DOMAIN, "recovery_samples": 128},
    "stream": {"settings": STREAM},
    "blocks behind": {"settings": {"recovery_behind": True}},
    "stream, blocks behind": {"settings": {**STREAM, "recovery_behind": True}},
    "in domain, stream, blocks behind": {
        "recovery_text": IN_DOMAIN, "settings": {**STREAM, "recovery_behind": True},
    },
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    **{
        f"goa, recovery {when}, {name}": {"method": "goa", "recovery": when, **choice}
        for when in ("before", "after", "both")
        for name, choice in RECOVERED.items()
    },
    **{
        f"{method}, query heads{how}": {"method": method, "settings": {"query_heads": True}}
        for method in ("goa", "wanda-sp", "llm-pruner", "l2", "random")
        for how in ("", EVENLY)
    },
}
"""Rows that are run where ``--only`` names them."""

ROWS: dict[str, dict[str, Any]] = {
    "goa": {"method": "goa"},
    "goa, adaptive": {"method": "goa", "allocation": "adaptive"},
    "goa, second moment": {"method": "goa", "settings": {"heads.score": "second-moment"}},
    "goa, similarity": {"method": "goa", "settings": {"heads.score": "similarity"}},
    "goa, recovery before": {"method": "goa", "recovery": "before"},
    "goa, recovery after": {"method": "goa", "recovery": "after"},
    "goa, recovery both": {"method": "goa", "recovery": "both"},
    "goa, self-generated": {"method": "goa", "calibration": "self"},
    "goa, self-generated, recovery after": {
        "method": "goa", "calibration": "self", "recovery": "after",
    },
    "goa, no data": {"method": "goa", "calibration": "none"},
    "goa, as printed": {
        "method": "goa",
        "settings": {
            "heads.score": "similarity", "heads.goes": "first", "neurons.moment": "gaussian",
        },
    },
    "goa, as its code": {
        "method": "goa",
        "settings": {
            "heads.score": "similarity", "heads.distance": "authors", "heads.goes": "first",
            "neurons.moment": "gaussian", "neurons.norm": 1, "neurons.gated": "code",
            "neurons.centred": True,
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
    **{
        f"llm-pruner, {by}{name}": {
            "method": "llm-pruner",
            "settings": {f"{unit}.{field}": value for unit in ("heads", "neurons")
                         for field, value in (("by", by), ("order", order))},
        }
        for by in ("element", "vector")
        for name, order in (("", "first"), ("²", "second"), (", first and second", "mixed"))
    },
}  # fmt: skip
DATA_FREE = ("random", "l1", "l2")


def main() -> None:
    given = arguments()
    bench = Bench(given, list(zip(given.lengths, given.windows, strict=True)))
    at = [f"perplexity {length}" for length in given.lengths]
    removed = "removed of the units", "of the blocks", "of the model"
    head("method", *removed, "heads", "groups of heads", "in block", *at, "prune s")
    if given.dense:
        scores = (f"{x:.2f}" for x in bench.scores(bench.dense))
        row("dense", 0, 0, 0, 0, 0, "", *scores, "")
    for amount in [*given.sparsity, *given.heads]:
        for name in given.only:
            asked = fields(name, amount, bench)
            if asked.get("recovery_text") == IN_DOMAIN:
                if given.in_domain is None:
                    row(name, *[""] * 8, "needs --in-domain")
                    continue
                asked["recovery_text"] = given.in_domain
            show(name, bench.prune(blocks=given.blocks, **asked))
    for tau in given.thresholds:
        settings = {"target": "heads", "heads.threshold": tau}
        show(f"goa, τ = {tau:g}", bench.prune(blocks=given.blocks, method="goa", settings=settings))


def show(name: str, found: Outcome) -> None:
    """Print a row: what was removed of what, the blocks that lost heads, perplexity."""
    facts = found.report.structured
    shares = facts.share, facts.share_of_blocks, facts.share_of_model
    heads = sum(b.heads[0] - b.heads[1] for b in facts.blocks if b.heads)
    lost = {b.block: b.kv_heads[0] - b.kv_heads[1] for b in facts.blocks if b.kv_heads}
    where = " ".join(f"{b}" + f"×{n}" * (n > 1) for b, n in lost.items() if n)
    cells = *(f"{share:.2%}" for share in shares), heads, sum(lost.values()), where
    row(name, *cells, found.perplexity, f"{found.seconds:.0f}")


def arguments() -> argparse.Namespace:
    parser = protocol(__doc__)
    parser.add_argument("--blocks", default="4:26")
    parser.add_argument("--sparsity", nargs="*", type=float, default=[0.2, 0.3])
    parser.add_argument("--heads", nargs="*", type=int, default=[], help="groups of heads, alone")
    parser.add_argument("--thresholds", nargs="*", type=float, default=[], help="of heads, alone")
    parser.add_argument("--lengths", nargs=2, type=int, default=[2048, 128], help="of windows")
    parser.add_argument("--windows", nargs=2, type=int, default=[8, 128], help="of each length")
    parser.add_argument("--in-domain", help="SOURCE of the rows that recover on other text")
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="rows to run, also of MORE")
    parser.add_argument("--dense", action="store_true", help="the dense row too")
    return parser.parse_args()


def fields(name: str, amount: float, bench: Bench) -> dict[str, Any]:
    """Say what a row chooses, at a share of the parameters or at a number of groups of heads."""
    row_of = {**ROWS, **MORE}[name]
    source = {"calibration": "none"} if row_of["method"] in DATA_FREE else {}
    chosen = {**source, **row_of}
    if not isinstance(amount, int):
        return {**chosen, "sparsity": amount}
    chosen["settings"] = {**chosen.get("settings", {}), "target": "heads"}
    allocation = "uniform" if name.endswith(EVENLY) else "adaptive"
    return {**chosen, "allocation": allocation, "parameters": amount * group(bench.dense)}


def group(model: Any) -> int:
    """Parameters of one key/value group: q, k, v and o of a model without biases."""
    config = model.config
    heads = config.num_attention_heads // config.num_key_value_heads
    return int(2 * config.hidden_size * config.head_dim * (heads + 1))


if __name__ == "__main__":
    main()
