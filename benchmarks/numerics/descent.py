r"""How many steps of reconstruction, and how large: two blocks, on little text and on more.

    python -m benchmarks.numerics.descent MODEL --calibration c4.jsonl --samples 16 128 \
        --settings '[{steps: 96, rate: 0.003}, {steps: 96, rate: 0.006}]'

The blocks before them stay dense, those behind are dropped. Prints the lowest loss on held-out
windows, relative to that of the block as it was pruned, and the pass after which it was found. The
windows do not overlap. Each setting is a run with as many passes as its steps need.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import yaml

import prunus
from benchmarks.common import disjoint_windows, head, keep_blocks, row
from prunus.storage.checkpoint import load_model, load_tokenizer

BLOCKS = 2


def main() -> None:
    given = arguments()
    dense, tokenizer = load_model(given.model, dtype="float32"), load_tokenizer(given.model)
    last = given.block + BLOCKS
    keep_blocks(dense, last)
    head("windows", "settings", *(f"block {i}, after pass" for i in range(given.block, last)))
    for samples in given.samples:
        windows_ST = disjoint_windows(tokenizer, given.calibration, samples, given.length)
        for settings in given.settings:
            report = prunus.prune(
                copy.deepcopy(dense),
                tokens_ST=windows_ST,
                method=given.method,
                sparsity=given.sparsity,
                skip_blocks=f"0:{given.block}",
                reconstruct="block",
                settings={f"reconstruct.{k}": x for k, x in {"passes": 1, **settings}.items()},
            ).report
            cells = (f"{min(x):.3f}, {x.index(min(x))}" for x in map(held, report.reconstructed))
            row(samples, ", ".join(f"{k}={x}" for k, x in settings.items()), *cells)


def held(curve: dict[str, Any]) -> list[float]:
    """Return the held-out losses of a block: before, and after each pass."""
    return [float(loss) for loss in curve["held"]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--samples", type=int, nargs="+", default=[16])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--method", default="mrp-sm")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--block", type=int, default=10, help="the first of the two")
    parser.add_argument("--settings", type=yaml.safe_load, default=[{}], help="a list, as YAML")
    return parser.parse_args()


if __name__ == "__main__":
    main()
