r"""Prune on 128 windows of 2048 tokens that do not overlap.

    python -m benchmarks.numerics.more_text MODEL OUT --calibration c4.jsonl \
        --fields '{preset: best, sparsity: 0.5}'
    prunus eval OUT --text wiki.test.raw --length 2048 --windows 8 --against MODEL

The papers' draw takes windows from documents longer than a window. A file of few long documents has
too few of those. Here all documents are run together, split into windows, and 128 of these are
drawn with seed 0. Float32. With --resume an interrupted run goes on.
"""

from __future__ import annotations

import argparse

import torch
import yaml

import prunus
from prunus.storage.checkpoint import load_tokenizer
from prunus.text.sources import read_documents

SAMPLES, LENGTH = 128, 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--fields", type=yaml.safe_load, default={}, help="of the recipe, as YAML")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model)
    texts = read_documents(given.calibration, "calibration").texts
    ids_T = torch.tensor(tokenizer("\n\n".join(texts), verbose=False).input_ids)
    whole = len(ids_T) // LENGTH
    if whole < SAMPLES:
        raise SystemExit(f"{given.calibration} has {len(ids_T)} tokens: {whole} windows.")
    drawn = torch.randperm(whole, generator=torch.Generator().manual_seed(0))[:SAMPLES]
    windows_ST = ids_T[: whole * LENGTH].view(whole, LENGTH)[drawn.sort().values]
    prunus.prune(
        given.model,
        output=given.output,
        tokens_ST=windows_ST,
        dtype="float32",
        resume=given.resume,
        **given.fields,
    )


if __name__ == "__main__":
    main()
