"""What the number of processes and of threads changes in a result, and by how much.

    python benchmarks/robustness/determinism.py MODEL --text wiki.test.raw --calibration c4.jsonl

Every method (``mrp-sm``, ``mrp-sm,refine=swaps`` …) is run with one process of one thread, the same
again, one process of two threads, and two and four processes of one thread under torchrun (gloo);
each is compared with the first. Prints a row
each: whether the bytes are the same; the largest relative difference of a Gram or norm (Frobenius)
in the first and in the last block; the share of all pruned layers' weights whose mask differs; the
largest relative difference of a layer's weights; perplexity.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import prunus
from prunus.base.team import Team
from prunus.maths.gram import Gram
from prunus.maths.stats import ColumnNorm
from prunus.run import gather as engine

VARIANTS = {
    "1 × 1": (1, 1),
    "1 × 1 again": (1, 1),
    "1 × 2": (1, 2),
    "2 × 1": (2, 1),
    "4 × 1": (4, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--samples", default="8")
    parser.add_argument("--length", default="512")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt", "mrp-sm"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--worker", nargs=2, metavar=("METHOD", "OUTPUT"))
    given = parser.parse_args()
    if given.worker:
        work(given)
        return
    print("| method | processes × threads | bytes | statistics first, last block | masks | weights "
          "| perplexity |\n|---|---|---|---:|---:|---:|---:|", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for method in given.methods:
            for variant in given.variants:
                processes, threads = VARIANTS[variant]
                output = Path(folder) / f"{method} {variant}"
                launch(method, output, processes, threads)
                print(row(method, variant, Path(folder), given), flush=True)


def launch(method: str, output: Path, processes: int, threads: int) -> None:
    """Run this file again, as a worker in each process."""
    command = ["torch.distributed.run", f"--nproc-per-node={processes}", *sys.argv]
    subprocess.run(
        [sys.executable, "-m", *command, "--worker", method, str(output)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
        stderr=subprocess.DEVNULL,
    )


def work(given: argparse.Namespace) -> None:
    """Prune; the first process keeps the statistics of the first and of the last block."""
    method, output = given.worker
    name, *settings = method.split(",")
    fields: dict[str, Any] = dict(setting.split("=") for setting in settings)
    found: list[dict[str, Tensor]] = []
    own = engine.gathered

    def watched(block, *args):  # type: ignore[no-untyped-def]
        stats = own(block, *args)
        kept = {}
        for site in block.sites:
            for kind, field in ((Gram, "matrix_II"), (ColumnNorm, "rms_I")):
                if kind in stats[site]:
                    kept[site] = getattr(stats[site][kind], field).clone()
        found[1:] = [kept]  # the first block's, and the last one's so far
        return stats

    engine.gathered = watched
    with Team.join() as team:
        prunus.prune(
            given.model, output=output, method=name, **fields, team=team, dtype="float32",
            calibration=given.calibration, samples=int(given.samples), length=int(given.length),
        )  # fmt: skip
        if team.first:
            tensors = {f"{i} {k}": x for i, kept in enumerate(found) for k, x in kept.items()}
            save_file(tensors, f"{output}.statistics")


def row(method: str, variant: str, folder: Path, given: argparse.Namespace) -> str:
    first, this = folder / f"{method} 1 × 1", folder / f"{method} {variant}"
    old, new = ({k: x for f in p.glob("*.safetensors") for k, x in load_file(f).items()}
                for p in (first, this))  # fmt: skip
    pruned = [name for name, x in old.items() if x.ndim == 2 and float((x == 0).sum()) > 0]
    same = all(torch.equal(old[name], new[name]) for name in old)
    differ = sum(int(((old[n] == 0) != (new[n] == 0)).sum()) for n in pruned)
    masks = differ / sum(old[n].numel() for n in pruned)
    weights = max(float((old[n] - new[n]).norm() / old[n].norm()) for n in pruned)
    statistics = [load_file(f"{path}.statistics") for path in (first, this)]
    gaps = [
        max(
            float((x - statistics[1][name]).norm() / x.norm())
            for name, x in statistics[0].items()
            if name.startswith(block)
        )
        for block in "01"
    ]
    perplexity = prunus.evaluate(
        this, given.text, length=int(given.length), windows=given.windows
    ).perplexity
    return (
        f"| {method} | {variant} | {'same' if same else 'differ'} | {gaps[0]:.1e}, {gaps[1]:.1e} | "
        f"{masks:.1e} | {weights:.1e} | {perplexity:.4f} |"
    )


if __name__ == "__main__":
    main()
