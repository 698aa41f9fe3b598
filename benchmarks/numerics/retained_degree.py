"""Figure 5 of Plug-and-Play: which share of each input channel's weights stays, as a picture.

    python -m benchmarks.numerics.retained_degree MODEL --calibration c4.jsonl --output degree.png

RIA on the dense model: 50 % unstructured, 2:4, and 2:4 in the order that assignment finds for each
layer. Prints the retained score of each mask too.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import prunus.report.plots as plots
from benchmarks.common import windows_of
from prunus.maths.orders import Assignment
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.scores import RIA
from prunus.maths.stats import Statistics, gather
from prunus.storage.checkpoint import load_model, load_tokenizer

LAYERS = [
    "model.layers.{}.self_attn.q_proj",
    "model.layers.{}.mlp.up_proj",
    "model.layers.{}.mlp.down_proj",
]
TWO_FOUR = NM(2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--output", default="retained_degree.png")
    parser.add_argument("--block", type=int, default=15)
    parser.add_argument("--samples", type=int, default=8)
    given = parser.parse_args()

    names = [layer.format(given.block) for layer in LAYERS]
    model = load_model(given.model, dtype="float32")
    ids_ST = windows_of(model, load_tokenizer(given.model), given.calibration, given.samples)
    stats = watched(model, names, ids_ST)
    panels = {}
    for name in names:
        score_OI = RIA()(model.get_submodule(name).weight.detach(), stats[name])
        order_I = Assignment()(score_OI, TWO_FOUR, 0.5)
        ordered_OI = TWO_FOUR.mask(score_OI[:, order_I], 0.5)
        panels[name] = {
            "50 % of the layer": Unstructured("layer").mask(score_OI, 0.5),
            "2:4": TWO_FOUR.mask(score_OI, 0.5),
            "2:4, permuted": ordered_OI[:, order_I.argsort()],
        }
        for kind, mask_OI in panels[name].items():
            kept = float(score_OI[mask_OI].sum() / score_OI.sum())
            spread = float(mask_OI.float().mean(0).std())
            print(f"{name} {kind}: {kept:.4f} of the score, spread of degree {spread:.3f}")
    plots.retained_degree(panels, given.output)
    print(given.output)


@torch.no_grad()
def watched(model: torch.nn.Module, names: list[str], ids_ST: Tensor) -> dict[str, Statistics]:
    """Statistics of these layers' inputs in plain forwards."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs[name].append(args[0].flatten(0, -2))
        )
    for ids_T in ids_ST:
        model(input_ids=ids_T[None])
    return {name: gather(torch.cat(found), RIA.needs) for name, found in inputs.items()}


if __name__ == "__main__":
    main()
