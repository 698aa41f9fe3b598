"""The tables of docs/results.md about heads and neurons: this paper's method and every baseline.

    python -m benchmarks.tables.structured_table MODEL heads --calibration C4.jsonl --text TEST.raw

Blocks 4 to 25 of SmolLM2; float32; 16 calibration windows of 1024 tokens; perplexity on the first 8
windows of 2048 tokens and the first 128 of 128. "methods" and "recovery" remove 20 % and 30 % of
the parameters in heads and neurons, "heads" 13 groups of heads and nothing else. "small" is for the
tiny GPT-2 of the tests (--samples 64 --length 256 --windows 256:64). The log says what each run
removed of what, and from which blocks.
"""

from __future__ import annotations

from typing import Any

from benchmarks.grid import IN_DOMAIN, Table, main

BLOCKS = {"blocks": "4:26"}
NEITHER = {"compensation": False}
STREAM = {"recovery_target": "stream"}
BEHIND = {"recovery_behind": True}
GROUP = 2 * 576 * 64 * (3 + 1)  # parameters of a group of SmolLM2's heads: three of q and o, k, v
PRINTED = {"heads.score": "similarity", "heads.goes": "first", "neurons.moment": "gaussian"}
CODE = {
    **PRINTED, "heads.distance": "authors", "neurons.norm": 1, "neurons.gated": "code",
    "neurons.centred": True,
}  # fmt: skip


def goa(**fields: Any) -> dict[str, Any]:
    return {"method": "goa", **fields}


def taylor(by: str, order: str) -> dict[str, Any]:
    fields = {f"{unit}.{name}": value for unit in ("heads", "neurons")
              for name, value in (("by", by), ("order", order))}  # fmt: skip
    return {"method": "llm-pruner", "settings": fields}


def heads(method: str, **settings: Any) -> dict[str, Any]:
    return {"method": method, "settings": {"target": "heads", **settings}}


METHODS: dict[str, dict[str, Any]] = {
    "`goa`": goa(),
    "`goa --recovery after`": goa(recovery="after"),
    "`goa --calibration none`": goa(calibration="none"),
    "`goa`, as printed": goa(settings=PRINTED),
    "`goa`, as their code": goa(settings=CODE),
    "`wanda-sp`": {"method": "wanda-sp"},
    "`wanda-sp --recovery after`": {"method": "wanda-sp", "recovery": "after"},
    "`llm-pruner`, by element": taylor("element", "first"),
    "`llm-pruner`, by element, second order": taylor("element", "second"),
    "`llm-pruner`, by element, both orders": taylor("element", "mixed"),
    "`llm-pruner`, by vector": taylor("vector", "first"),
    "`llm-pruner`, by vector, second order": taylor("vector", "second"),
    "`flap`": {"method": "flap"},
    "`random`": {"method": "random"},
    "`l2`": {"method": "l2"},
    "`l1`": {"method": "l1"},
}
SELF = {"calibration": "self"}
RECOVERY: dict[str, dict[str, Any]] = {
    "none": goa(),
    "none, text that the model wrote": goa(**SELF),
    **{
        f"{when}{name}": goa(recovery=when, **how)
        for when in ("before", "after", "both")
        for name, how in {
            "": {},
            ", 128 windows": {"recovery_samples": 128},
            ", in-domain text": {"recovery_text": IN_DOMAIN},
            ", at the stream": {"settings": STREAM},
        }.items()
    },
    "after, text that the model wrote": goa(recovery="after", **SELF),
    "both, at the stream, blocks behind too": goa(recovery="both", settings={**STREAM, **BEHIND}),
}
ALONE = {"13 groups": {**BLOCKS, "allocation": "adaptive", "parameters": 13 * GROUP}}
QUERY = 3 * 2 * 576 * 64  # parameters of a query head of each of a block's three groups
GROUPS = {"allocation": "adaptive"}  # 16 groups have about as many as 22 blocks' query heads
QUERY_HEADS = {"allocation": "uniform"}

TABLES = {
    "methods": Table(
        {f"{n} %": {**BLOCKS, "sparsity": n / 100} for n in (20, 30)}, METHODS, seeds=1
    ),
    "recovery": Table({"20 %": {**BLOCKS, "sparsity": 0.2}}, RECOVERY, seeds=1),
    "heads": Table(
        ALONE,
        {
            "`goa`": heads("goa"),
            "`goa`, similarity alone": heads("goa", **{"heads.score": "similarity"}),
            "`goa`, second moments alone": heads("goa", **{"heads.score": "second-moment"}),
            "`goa`, one threshold for all blocks": {
                **heads("goa", **{"heads.threshold": 0.36}),
                "parameters": None,
                "allocation": None,
            },
            "`goa --recovery after`": {**heads("goa"), "recovery": "after"},
            "`llm-pruner`, by element": heads("llm-pruner"),
            "`wanda-sp`": heads("wanda-sp"),
            "`l2`": heads("l2"),
            "`random`": heads("random"),
        },
        seeds=1,
    ),
    "query heads": Table(
        {"a query head of each group": {**BLOCKS, "parameters": 22 * QUERY}},
        {
            f"`{name}`, {what}": {**heads(name, **settings), **how}
            for name in ("goa", "wanda-sp", "random")
            for what, settings, how in (
                ("groups", {}, GROUPS),
                ("query heads", {"query_heads": True}, QUERY_HEADS),
            )
        },
        seeds=1,
    ),
    "small": Table(
        {f"{n} %": {"sparsity": n / 100} for n in (25, 50)},
        {
            **METHODS,
            "`goa`, similarity alone": goa(settings={"heads.score": "similarity"}),
            "`goa`, second moments alone": goa(settings={"heads.score": "second-moment"}),
            "`flap`, equal widths": {"method": "flap", "allocation": "uniform"},
            **{
                f"`goa`, recovery {name}": fields
                for name, fields in RECOVERY.items()
                if name not in ("none", "after") and "in-domain" not in name
            },
        },
        seeds=1,
    ),
}


if __name__ == "__main__":
    main(__doc__, TABLES, {2048: 8, 128: 128})
