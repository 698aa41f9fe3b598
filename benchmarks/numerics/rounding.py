"""How far a rounding error goes: within a layer, and through the blocks of a model.

    python -m benchmarks.numerics.rounding layers MODEL --calibration c4.jsonl
    python -m benchmarks.numerics.rounding blocks MODEL --calibration c4.jsonl --method mrp-sm

``layers``: the masks of all layers of one dense block, from the Gram and from one whose entries are
off by 1e-7 of themselves, for several tolerances of MRP's compensations between blocks of columns
(``between``); with each the loss above that of 1e-6, and the time.
``blocks``: the same calibration windows in another order; which share of the mask differs in each
block. Sums in another order differ by rounding alone.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from benchmarks.common import head, row, windows_of
from prunus.maths.gram import Gram
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.pruners import MRP
from prunus.maths.stats import Statistics, gather
from prunus.storage.checkpoint import load_model, load_tokenizer

ROUNDING = 1e-7
BETWEEN = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("layers", "blocks"))
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", help="what the perplexity of each order is measured on")
    parser.add_argument("--block", type=int, default=2, help="whose layers")
    parser.add_argument("--method", default="mrp-sm")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--orders", type=int, default=2, help="of the windows")
    given = parser.parse_args()
    model, tokenizer = load_model(given.model, dtype="float32"), load_tokenizer(given.model)
    ids_ST = windows_of(model, tokenizer, given.calibration)
    if given.part == "layers":
        layers(model, ids_ST, given.block)
    else:
        blocks(model, tokenizer, ids_ST, given)


def layers(model: nn.Module, ids_ST: Tensor, block: int) -> None:
    head("layer", "pattern", "between", "mask differs", "loss, relative", "seconds")
    found = {
        name: module
        for name, module in model.named_modules()
        if f".{block}." in name and isinstance(module, nn.Linear)
    }
    for name, stats in grams(model, found, ids_ST).items():
        weight_OI, moved = found[name].weight.detach(), disturbed(stats)
        for pattern in (NM(2, 4), Unstructured("layer")):
            best = None
            for between in BETWEEN:
                prune = MRP(pattern, between=between)
                begun = time.perf_counter()
                pruned = prune(weight_OI, stats, 0.5)
                seconds = time.perf_counter() - begun
                again = prune(weight_OI, moved, 0.5)
                differs = (pruned.mask_OI != again.mask_OI).double().mean()
                loss = loss_of(pruned.weight_OI, weight_OI, stats)
                best = best or loss
                row(name, pattern, f"{between:g}", f"{differs:.0e}", f"{loss / best - 1:+.2%}",
                    f"{seconds:.2f}")  # fmt: skip


@torch.no_grad()
def grams(model: nn.Module, found: dict[str, nn.Linear], ids_ST: Tensor) -> dict[str, Statistics]:
    """Return the Gram of every layer's inputs in the dense model."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in found}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs[name].append(args[0].flatten(0, -2))
        )
        for name, module in found.items()
    ]
    for ids_T in ids_ST:
        model(input_ids=ids_T[None])
    for hook in hooks:
        hook.remove()
    return {name: gather(torch.cat(seen), (Gram,)) for name, seen in inputs.items()}


def disturbed(stats: Statistics) -> Statistics:
    """Return the statistics with a Gram that is off by rounding."""
    moved = copy.deepcopy(stats)
    gram = moved[Gram]
    noise_II = torch.randn(gram.sum_II.shape, generator=torch.Generator().manual_seed(1))
    gram.sum_II *= 1 + ROUNDING * (noise_II + noise_II.T) / 2
    return moved


def loss_of(new_OI: Tensor, weight_OI: Tensor, stats: Statistics) -> float:
    moved_OI = (new_OI - weight_OI).double()
    matrix_II = stats[Gram].damped(0.01).matrix_II.double()
    return float((moved_OI @ matrix_II * moved_OI).sum())


def blocks(model: Any, tokenizer: Any, ids_ST: Tensor, given: argparse.Namespace) -> None:
    masks, perplexities = [], []
    for order in range(given.orders):
        generator = torch.Generator().manual_seed(order)
        order_S = torch.randperm(len(ids_ST), generator=generator)
        pruned = copy.deepcopy(model)
        prunus.prune(pruned, method=given.method, pattern=given.pattern, tokens_ST=ids_ST[order_S])
        if given.text:
            scored = prunus.evaluate(
                pruned, given.text, length=2048, windows=8, tokenizer=tokenizer
            )
            perplexities.append(f"{scored.perplexity:.2f}")
        masks.append({name: p.detach() != 0 for name, p in pruned.named_parameters()})
    head("block", *(f"order {order} from order 0" for order in range(1, given.orders)))
    for block in range(model.config.num_hidden_layers):
        names = [name for name in masks[0] if f".layers.{block}." in name]
        row(block, *(f"{differing(names, masks[0], mask):.1e}" for mask in masks[1:]))
    print(f"perplexity: {', '.join(perplexities) or 'not measured'}")


def differing(names: list[str], one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the share of these tensors' entries that are 0 in one model alone."""
    unequal = sum(int((one[name] != other[name]).sum()) for name in names)
    return unequal / sum(one[name].numel() for name in names)


if __name__ == "__main__":
    main()
