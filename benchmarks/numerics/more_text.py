r"""Prune on 128 windows of 2048 tokens that do not overlap.

    python -m benchmarks.numerics.more_text MODEL OUT --calibration c4.jsonl \
        --fields '{preset: best, sparsity: 0.5}'
    prunus eval OUT --text wiki.test.raw --length 2048 --windows 8 --against MODEL

All documents are run together and split into windows, of which 128 are drawn with seed 0. Float32.
With --resume an interrupted run goes on.
"""

from __future__ import annotations

import argparse

import yaml

import prunus
from benchmarks.common import disjoint_windows
from prunus.storage.checkpoint import load_tokenizer

SAMPLES, LENGTH = 128, 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--fields", type=yaml.safe_load, default={}, help="of the recipe, as YAML")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model)
    windows_ST = disjoint_windows(tokenizer, given.calibration, SAMPLES, LENGTH)
    prunus.prune(
        given.model,
        output=given.output,
        tokens_ST=windows_ST,
        dtype="float32",
        device=given.device,
        resume=given.resume,
        **given.fields,
    )


if __name__ == "__main__":
    main()
