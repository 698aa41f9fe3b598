"""Least squares on every layer of a model: the certified gap, the true one, against SparseGPT.

    python -m benchmarks.numerics.certificates MODEL --calibration c4.jsonl

Every layer gets SparseGPT's mask at 50 %. On that mask: SparseGPT's loss, least squares' loss, its
certificate, and the exact optimum by a float64 Cholesky of each row's kept set. Prints one line per
layer kind and the extremes over all layers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.common import windows_of
from prunus.maths.contracts import Needs, Pattern, Pruned
from prunus.maths.gram import Gram
from prunus.maths.pruners import EachLayer, SparseGPT
from prunus.maths.stats import Statistics
from prunus.maths.updates import LeastSquares
from prunus.maths.updates.least_squares import direct
from prunus.model.inspect import inspect, start
from prunus.run.loop import prune_blocks
from prunus.run.observer import Silent
from prunus.storage.checkpoint import load_model, load_tokenizer


@dataclass
class Compared:
    """SparseGPT's mask with least squares on it; remembers what each layer showed."""

    sparsegpt: SparseGPT = SparseGPT()
    rows: list[dict[str, float]] = field(default_factory=list)
    needs: ClassVar[Needs] = (Gram,)

    @property
    def pattern(self) -> Pattern:
        return self.sparsegpt.pattern

    def __call__(self, weight_OI: Tensor, stats: Statistics, sparsity: float) -> Pruned:
        swept = self.sparsegpt(weight_OI, stats, sparsity)
        system = stats[Gram].damped(0.01)
        new_OI, notes = LeastSquares().solve(weight_OI, swept.mask_OI, stats)
        exact_OI = direct(weight_OI, swept.mask_OI, system)
        least, found, theirs = (
            loss(w_OI, weight_OI, system.matrix_II) for w_OI in (exact_OI, new_OI, swept.weight_OI)
        )
        self.rows.append(
            {
                "iterations": notes["iterations"],
                "certified": notes["gap"],
                "true": found / least - 1,
                "ours": found / theirs,
            }
        )
        return Pruned(new_OI, swept.mask_OI, notes=notes)


class Progress(Silent):
    """A line per block, on stderr."""

    def block(self, index: int, total: int, name: str, step: str) -> None:
        if step == "prune":
            print(f"{index + 1} of {total}: {name}", file=sys.stderr)


def loss(new_OI: Tensor, weight_OI: Tensor, matrix_II: Tensor) -> float:
    moved_OI = new_OI.double() - weight_OI.double()
    return 0.5 * float((moved_OI @ matrix_II.double() * moved_OI).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    given = parser.parse_args()
    model = load_model(given.model, dtype="float32")
    ids_ST = windows_of(model, load_tokenizer(given.model), given.calibration)
    blocks, traced = inspect(model, ids_ST)
    plan = {layer.name: 0.5 for block in blocks for layer in block.layers}
    compared = Compared()
    reports = prune_blocks(
        blocks,
        start(model, blocks, traced, ids_ST),
        EachLayer(compared),
        plan,
        device=torch.device("cpu"),
        observer=Progress(),
    )
    print(f"{len(reports)} layers; per role: median (highest)")
    print("| role | iterations | certified gap | true gap | loss / SparseGPT's |")
    print("|---|---|---|---|---|")
    for role in [*dict.fromkeys(report.role for report in reports), "all"]:
        rows = [r for r, x in zip(compared.rows, reports, strict=True) if role in (x.role, "all")]
        cells = [
            f"{statistics.median(r[key] for r in rows):{how}} ({max(r[key] for r in rows):{how}})"
            for key, how in (
                ("iterations", ".0f"),
                ("certified", ".1e"),
                ("true", ".1e"),
                ("ours", ".3f"),
            )
        ]
        print(f"| {role} | " + " | ".join(cells) + " |")
    above = sum(r["true"] > r["certified"] for r in compared.rows)
    print(f"true gap above the certificate in {above} layers")


if __name__ == "__main__":
    main()
