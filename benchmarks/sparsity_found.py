"""What an allocation made of every layer, as a picture over depth.

python benchmarks/sparsity_found.py pruned/pruning_report.json --output sparsity.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from prunus.report.plots import sparsity_found
from prunus.report.pruning_report import read_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", default="sparsity.png")
    parser.add_argument("--title", default="")
    given = parser.parse_args()
    sparsity_found(read_report(given.report).layers, given.output, given.title)


if __name__ == "__main__":
    main()
