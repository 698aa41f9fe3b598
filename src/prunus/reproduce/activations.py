"""Activations of the dense model: statistics of layers, ranks across texts, sizes over depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from statistics import mean
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from ..base.errors import InputError
from ..base.words import number_of
from ..maths.contracts import Needs
from ..maths.stats import ColumnNorm, Statistics
from ..model.blocks import find_blocks
from .desk import Desk
from .entry import Rows


@torch.no_grad()
def watched(
    model: nn.Module, layers: Mapping[str, nn.Module], ids_ST: Tensor, needs: Needs
) -> dict[str, Statistics]:
    """Gather statistics of these layers' inputs in plain forwards, a sample at a time.

    Layers that are never called, such as experts that receive no token, are left out.
    """
    found: dict[str, Statistics] = {}

    def watch(name: str, layer: nn.Module) -> Any:
        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs_TI = args[0].flatten(0, -2)
            if name not in found:
                found[name] = Statistics(needs, inputs_TI.shape[-1], inputs_TI.device)
            found[name].update(inputs_TI)

        return layer.register_forward_pre_hook(see)

    device = next(model.parameters()).device
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(watch(name, layer))
        for ids_T in ids_ST:
            model(input_ids=ids_T[None].to(device), use_cache=False)
    return found


def activation_ranks(desk: Desk, *, texts: Sequence[str] = ("wikitext2", "c4", "ptb")) -> Rows:
    """Correlate the ranks of input channels by their norm on two texts (RIA's figure 2).

    A row for each kind of layer: of each pair of texts Spearman's coefficient, the mean over
    blocks, and the lowest of all.

    Raises:
        InputError: fewer than two texts.
    """
    if len(texts) < 2:
        raise InputError(f"Ranks of channels are compared between two texts or more; got {texts}.")
    layers = desk.all_linears()
    norms: dict[str, dict[str, Any]] = {}
    for text in texts:
        stats = watched(desk.dense, layers, desk.calibration(text), (ColumnNorm,))
        norms[text] = {name: x[ColumnNorm].rms_I.double().cpu() for name, x in stats.items()}
        desk.say(f"norms on {text}: {number_of(len(stats), 'layer')}")
    rows: Rows = {}
    for kind in dict.fromkeys(name.partition(" ")[0] for name in norms[texts[0]]):
        rows[kind] = {}
        for one, other in combinations(texts, 2):
            pairs = [
                (norms[one][name], norms[other][name])
                for name in norms[one]
                if name.partition(" ")[0] == kind and name in norms[other]
            ]
            found = [float(spearmanr(a_I.numpy(), b_I.numpy()).statistic) for a_I, b_I in pairs]
            rows[kind][f"{one} and {other}"] = mean(found)
            rows[kind][f"lowest, {one} and {other}"] = min(found)
    return rows


@torch.no_grad()
def activation_sizes(desk: Desk) -> Rows:
    """Measure the mean of |x| of what goes into each block, and over all (GOA's figure 5)."""
    sums: dict[str, tuple[float, int]] = {}

    def watch(name: str, block: nn.Module) -> Any:
        def see(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            total, count = sums.get(name, (0.0, 0))
            added = float(hidden.abs().sum(dtype=torch.float64))
            sums[name] = total + added, count + hidden.numel()

        return block.register_forward_pre_hook(see, with_kwargs=True)

    device = next(desk.dense.parameters()).device
    with ExitStack() as stack:
        for index, block in enumerate(find_blocks(desk.dense).values()):
            stack.enter_context(watch(f"block {index}", block))
        for ids_T in desk.calibration():
            desk.dense(input_ids=ids_T[None].to(device), use_cache=False)
    rows: Rows = {name: {"mean |x|": total / count} for name, (total, count) in sums.items()}
    totals, counts = zip(*sums.values(), strict=True)
    rows["all blocks"] = {"mean |x|": sum(totals) / sum(counts)}
    return rows
