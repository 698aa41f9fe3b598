"""How many tokens does an expert need, to be pruned better by them than by its weights alone?

    python benchmarks/numerics/few_tokens.py MODEL --calibration TEXT

Takes layers of a dense model for experts: prunes each with the statistics of a few of 4096 tokens
and measures the relative error of its output on 4096 others. The first column has white inputs,
which leave the weights alone. This is where ``stats.ENOUGH`` and ``Gram.enough`` come from.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from prunus.maths.pruners import EachLayer
from prunus.maths.stats import Statistics, gather
from prunus.methods.build import build_method
from prunus.storage.checkpoint import load_model, load_tokenizer
from prunus.text.sources import read_documents

SHARES = (0.75, 1, 1.5, 2, 2.5)  # tokens per input
COUNTS = (8, 32, 64, 128, 256, 512)
HALF = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--methods", default="wanda,ria,sparsegpt,mrp-sm")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 15, 26])
    given = parser.parse_args()
    model = load_model(given.model, dtype="float32")
    text = read_documents(given.calibration, "calibration", None).joined()
    ids = torch.tensor(load_tokenizer(given.model)(text[: 40 * HALF])["input_ids"])[: 2 * HALF]
    names = [f"model.layers.{block}.mlp.{x}_proj" for x in ("up", "down") for block in given.blocks]
    seen = inputs(model, names, ids)
    order_T = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    for method in given.methods.split(","):
        pruner = build_method(method)
        assert isinstance(pruner, EachLayer)
        for name in names:
            weight_OI = model.get_submodule(name).weight.detach()
            read_TI, judged_TI = (seen[name][half] for half in order_T.split(HALF))
            features = weight_OI.shape[1]
            second_order = method.startswith(("sparsegpt", "mrp"))
            counts = [int(x * features) for x in SHARES] if second_order else COUNTS
            every = [Statistics.white(pruner.needs, features)]
            every += [gather(read_TI[:count], pruner.needs) for count in counts]
            errors = []
            for stats in every:
                new_OI = pruner.pruner(weight_OI, stats, 0.5).weight_OI
                off = (judged_TI @ (weight_OI - new_OI).T).norm()
                errors.append(float(off / (judged_TI @ weight_OI.T).norm()))
            columns = [f"alone {errors[0]:.3f}"]
            columns += [f"{n}: {e:.3f}" for n, e in zip(counts, errors[1:], strict=True)]
            print(f"{method:9} {name:28}", "  ".join(columns), flush=True)


@torch.no_grad()
def inputs(model: nn.Module, names: list[str], ids: Tensor) -> dict[str, Tensor]:
    """Return what these layers read, (T, I)."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].flatten(0, -2).clone())
        )
    for window in ids.split(1024):
        model(input_ids=window[None])
    return {name: torch.cat(parts) for name, parts in seen.items()}


if __name__ == "__main__":
    main()
