"""How many epochs BESA needs: the error of one block on text that it did not learn from.

    python -m benchmarks.numerics.epochs MODEL --calibration c4.jsonl --samples 16 --length 512

The blocks before it stay dense, those behind it are dropped. Prints, for each number of epochs, the
loss of the last 16 steps and the output error on held-out windows, both over those of the uniform
mask.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import prunus
from benchmarks.common import head, row
from prunus.storage.checkpoint import load_model, load_tokenizer
from prunus.text import read_documents, sample_windows
from prunus.text.tokens import tokenize

HELD_OUT = 8  # windows


class _ReachedError(Exception):
    """The block has been reached; what is behind it is not needed."""


def main() -> None:
    given = arguments()
    dense, tokenizer = load_model(given.model, dtype="float32"), load_tokenizer(given.model)
    dense.model.layers = dense.model.layers[: given.block + 1]
    dense.config.num_hidden_layers = given.block + 1
    documents = read_documents(given.calibration, "calibration")
    ids_ST, _ = sample_windows(
        documents, lambda text: tokenize(tokenizer, text), samples=HELD_OUT, length=given.length,
        seed=given.seed + 7,
    )  # fmt: skip
    calls = inputs(dense, given.block, ids_ST)
    targets = outputs(dense, given.block, calls)
    fields = {"calibration": given.calibration, "tokenizer": tokenizer, "samples": given.samples}
    fields |= {"length": given.length, "seed": given.seed, "skip_blocks": f"0:{given.block}"}

    def error(**others: Any) -> tuple[float, list[dict[str, Any]]]:
        model = copy.deepcopy(dense)
        report = prunus.prune(model, sparsity=given.sparsity, **fields, **others).report
        found = outputs(model, given.block, calls)
        square = sum(float((a - b).square().sum()) for a, b in zip(found, targets, strict=True))
        return square, report.learning

    uniform, _ = error(method="wanda")
    head("epochs", "steps", "loss", "held-out error")
    for epochs in given.epochs:
        settings = {"allocation.epochs": epochs, "allocation.rest": 0.0}
        square, (curve,) = error(method="besa", settings=settings)
        row(epochs, curve["steps"], f"{curve['loss'][-1]:.3f}", f"{square / uniform:.3f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--block", type=int, default=14)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--epochs", type=int, nargs="*", default=[1, 2, 4, 8])
    return parser.parse_args()


@torch.no_grad()
def inputs(model: PreTrainedModel, block: int, ids_ST: Tensor) -> list[tuple[Any, Any]]:
    """Record the block's arguments, window by window."""
    calls: list[tuple[Any, Any]] = []

    def record(module: Any, args: Any, kwargs: Any) -> None:
        calls.append((args, kwargs))
        raise _ReachedError

    with model.model.layers[block].register_forward_pre_hook(record, with_kwargs=True):
        for ids_T in ids_ST:
            try:
                model(ids_T[None], use_cache=False)
            except _ReachedError:
                continue
    return calls


@torch.no_grad()
def outputs(model: PreTrainedModel, block: int, calls: list[tuple[Any, Any]]) -> list[Tensor]:
    """Run the block on what was recorded."""
    found = [model.model.layers[block](*args, **kwargs) for args, kwargs in calls]
    return [out[0] if isinstance(out, tuple) else out for out in found]


if __name__ == "__main__":
    main()
