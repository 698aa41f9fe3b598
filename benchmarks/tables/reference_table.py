"""The tables of docs/results.md about single weights, on one model, by one protocol.

    python -m benchmarks.tables.reference_table MODEL masks --calibration C4.jsonl --text TEST.raw

Float32; 16 calibration windows of 1024 tokens; perplexity on the first 8 windows of 2048. Every run
starts from the same dense weights and is one line of the log, from which the table is printed; a
table that was cut short goes on where it was.
"""

from __future__ import annotations

from typing import Any

from benchmarks.grid import Table, main

AT = {
    "50 %": {"sparsity": 0.5},
    "60 %": {"sparsity": 0.6},
    "70 %": {"sparsity": 0.7},
    "2:4": {"pattern": "2:4"},
    "4:8": {"pattern": "4:8"},
}
HALF = {"50 %": AT["50 %"]}


def at(*names: str) -> dict[str, dict[str, Any]]:
    return {name: AT[name] for name in names}


def method(name: str, **fields: Any) -> dict[str, Any]:
    return {"method": name, **fields}


def changed(**settings: Any) -> dict[str, Any]:
    return method("mrp-sm", settings=settings)


def besa(**settings: Any) -> dict[str, Any]:
    found = {f"allocation.{name}": value for name, value in settings.items()}
    return method("besa", settings=found)


TABLES = {
    "masks": Table(
        at("50 %", "2:4", "4:8"),
        {name: method(name) for name in ("magnitude", "ri", "wanda", "ria", "dass")},
    ),
    "readings": Table(
        HALF,
        {
            "RIA per row": method("ria", pattern="row"),
            "Wanda per layer": method("wanda", pattern="layer"),
            "RIA with the input channel's share only": method(
                "ria", settings={"score.terms": "in"}
            ),
            "RIA with the output channel's share only": method(
                "ria", settings={"score.terms": "out"}
            ),
            "Wanda, MLP only": method("wanda", mlp_only=True),
            "DaSS, MLP only": method("dass", mlp_only=True),
        },
        seeds=1,
    ),
    "updates": Table(
        AT,
        {
            "SparseGPT": method("sparsegpt"),
            "`mrp-sm`": method("mrp-sm"),
            "`mrp-sm --refine swaps`": method("mrp-sm", refine="swaps"),
            "`mrp-mm`": method("mrp-mm"),
            "`mrp-ms`": method("mrp-ms"),
            "Wanda, least squares": method("wanda", update="least-squares"),
        },
        {
            "`mrp-mm`": ("2:4", "4:8"),
            "`mrp-ms`": ("2:4", "4:8"),
            "`mrp-sm --refine swaps`": ("50 %", "70 %", "2:4"),
            "Wanda, least squares": ("50 %", "2:4"),
        },
    ),
    "changes": Table(
        HALF,
        {
            "`mrp-sm`": method("mrp-sm"),
            "2 calibration windows": method("mrp-sm", samples=2),
            "64 calibration windows": method("mrp-sm", samples=64),
            "damping 0.001": changed(damp=0.001),
            "damping 0.1": changed(damp=0.1),
            "all columns at once": changed(block_size=0),
            "32 columns at a time": changed(block_size=32),
            "between = 1e-4": changed(between=1e-4),
            "`--true-sequential`": method("mrp-sm", true_sequential=True),
        },
        seeds=1,
    ),
    "orders": Table(
        at("2:4"),
        {
            f"{name}, {order}": method(name, **({} if order == "none" else {"permutation": order}))
            for name in ("wanda", "ria", "sparsegpt", "mrp-sm")
            for order in ("none", "fold", "gather", "free")
        },
    ),
    "shares": Table(
        at("50 %", "60 %", "70 %"),
        {
            "Wanda": method("wanda"),
            "`besa`": method("besa"),
            "`besa` by layer": besa(per="layer"),
            "`besa`, two blocks at a time": besa(granularity="two-blocks"),
            "`besa`, then least squares": method("besa", update="least-squares"),
            "`besa`, against the dense stream": besa(reference="dense"),
        },
        seeds=1,
    ),
    "epochs": Table(
        at("60 %"),
        {f"`besa`, {epochs} epochs": besa(epochs=epochs) for epochs in (1, 2, 4, 8)},
        seeds=1,
    ),
    "metrics": Table(  # BESA's Table 5
        HALF,
        {
            "Weight": method("magnitude", pattern="row", allocation="besa"),
            "Wanda": method("besa"),
            "SparseGPT": method("obs", pattern="row", allocation="besa"),
            "SparseGPT, as BESA's code divides": method(
                "obs", pattern="row", allocation="besa", settings={"score.power": 0.5}
            ),
        },
        seeds=1,
    ),
}


if __name__ == "__main__":
    main(__doc__, TABLES, {2048: 8})
