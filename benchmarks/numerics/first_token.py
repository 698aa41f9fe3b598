r"""What reconstruction makes of the first token of a window, on which attention rests, by its loss.

    python -m benchmarks.numerics.first_token MODEL --calibration c4.jsonl --text wiki.valid.raw \
        --fields '{method: wanda, pattern: "2:4"}' --settings '[{whole: 0}, {whole: 1}]'

Blocks before the first stay dense, those behind the last are dropped. Prints the error of what the
last puts out in terms of its size, of the first token of each of four windows and, squared, in the
mean of all other tokens.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
import yaml
from torch import Tensor

import prunus
from benchmarks.common import head, keep_blocks, row
from prunus.storage.checkpoint import load_model, load_tokenizer

WINDOWS = 4


def main() -> None:
    given = arguments()
    dense, tokenizer = load_model(given.model, dtype="float32"), load_tokenizer(given.model)
    keep_blocks(dense, given.last + 1)
    with open(given.text, encoding="utf-8") as file:
        ids = tokenizer(file.read(40_000), return_tensors="pt").input_ids
    ids_ST = ids[:, : WINDOWS * given.length].view(WINDOWS, given.length)
    target_STD = put_out(dense, ids_ST)
    head("settings", "first tokens", "others, squared")
    for settings in given.settings:
        pruned = copy.deepcopy(dense)
        prunus.prune(
            pruned,
            tokenizer=tokenizer,
            calibration=given.calibration,
            samples=given.samples,
            length=given.length,
            seed=given.seed,
            skip_blocks=f"0:{given.first}" if given.first else None,
            reconstruct="block",
            settings={f"reconstruct.{k}": x for k, x in settings.items()},
            **given.fields,
        )
        error_STD = put_out(pruned, ids_ST) - target_STD
        error_ST = error_STD.norm(dim=-1) / target_STD.norm(dim=-1)
        first = ", ".join(f"{x:.2f}" for x in error_ST[:, 0].tolist())
        others = float(error_ST[:, 1:].square().mean())
        row(", ".join(f"{k}={x}" for k, x in settings.items()), first, f"{others:.4f}")


@torch.no_grad()
def put_out(model: Any, ids_ST: Tensor) -> Tensor:
    """Return what the last block hands over to the final norm."""
    found: list[Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    model(ids_ST)
    hook.remove()
    return found[0]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--text", required=True, help="a file, whose first windows judge")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=10, help="the first block that is pruned")
    parser.add_argument("--last", type=int, default=11, help="the last one")
    parser.add_argument("--fields", type=yaml.safe_load, default={}, help="of the recipe, as YAML")
    parser.add_argument("--settings", type=yaml.safe_load, default=[{}], help="a list, as YAML")
    return parser.parse_args()


if __name__ == "__main__":
    main()
