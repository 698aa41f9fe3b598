"""What benchmarks share: the windows that a run reads, and rows of Markdown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunus.text.sources import read_documents
from prunus.text.tokens import calibration_tokens


def windows_of(
    model: PreTrainedModel,
    tokenizer: Any,
    source: str,
    samples: int = 16,
    length: int = 1024,
    seed: int = 0,
) -> Tensor:
    """Draw the token ids (samples, length) that a run with these arguments reads."""
    documents = read_documents(source, "calibration", None, field=None, tokenizer=tokenizer)
    ids_ST, _ = calibration_tokens(
        model, tokenizer, documents,
        samples=samples, length=length, seed=seed, bos="auto", say=lambda line: None,
    )  # fmt: skip
    return ids_ST


def disjoint_windows(tokenizer: Any, source: str, samples: int, length: int) -> Tensor:
    """Draw token ids (samples, length), none of which overlap, from documents run together.

    The papers' draw takes windows from documents longer than a window, and a file of few long
    documents has too few of those. The order is that of the text.
    """
    text = "\n\n".join(read_documents(source, "calibration").texts)
    ids_T = torch.tensor(tokenizer(text, verbose=False).input_ids)
    whole = len(ids_T) // length
    if whole < samples:
        raise SystemExit(f"{source} has {len(ids_T)} tokens: {whole} windows.")
    drawn = torch.randperm(whole, generator=torch.Generator().manual_seed(0))[:samples]
    return ids_T[: whole * length].view(whole, length)[drawn.sort().values]


def keep_blocks(model: PreTrainedModel, count: int) -> None:
    """Drop all blocks of a model but the first ``count``."""
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:count], count


def head(*names: str) -> None:
    """Print the first two lines of a table."""
    row(*names)
    print("|" + "---|" * len(names), flush=True)


def row(*cells: object) -> None:
    """Print one line of it."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
