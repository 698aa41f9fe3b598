"""Orders of channels: what a mask keeps of each channel, and how long searches take (RIA)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base.errors import InputError
from ..maths.contracts import Permutation
from ..maths.orders import Assignment
from ..maths.patterns import NM, Unstructured
from ..maths.scores import RIA
from ..methods.table import SEARCHES
from ..model.blocks import outputs_first
from .activations import watched
from .desk import Desk
from .entry import Rows

TWO_FOUR = NM(2, 4)


def made_up_scores(outputs: int, inputs: int) -> Tensor:
    """Draw scores of normal weights, with channels that differ in scale as activations do."""
    generator = torch.Generator().manual_seed(0)
    channel_I = (0.35 * torch.randn(inputs, generator=generator)).exp()
    return torch.randn(outputs, inputs, generator=generator).abs() * channel_I


def search_times(
    desk: Desk, *, sizes: Sequence[int], searches: Mapping[str, Mapping[str, Any]]
) -> Rows:
    """Time each search for an order at 2:4 on square matrices, in seconds (RIA's table A3).

    Args:
        desk: its model is not read.
        sizes: of the matrices.
        searches: by the name of a row: the ``name`` of a ``--search``, and fields of it.
    """
    if any(size % TWO_FOUR.of for size in sizes):
        raise InputError(f"Sizes are multiples of 4, for 2:4; got {list(sizes)}.")
    rows: Rows = {row: {} for row in searches}
    for size in sizes:
        score_OI = made_up_scores(size, size)
        for row, fields in searches.items():
            search = _search(**fields)
            begun = time.perf_counter()
            search(score_OI, TWO_FOUR, 0.5)
            rows[row][str(size)] = time.perf_counter() - begun
            desk.say(f"{row}, {size} × {size}: {rows[row][str(size)]:.1f} s")
    return rows


def _search(name: str, **fields: Any) -> Permutation:
    search: Any = SEARCHES[name]
    return replace(search, **fields)  # type: ignore[no-any-return]


def retained_degree(desk: Desk, *, block: int | None = None) -> Rows:
    """Measure which share of each input channel's weights stays (RIA's figure 5).

    RIA on the dense model: 50 % of the layer, 2:4, and 2:4 in the order that assignment finds. A
    row for each layer and mask: the kept share of the score, and the standard deviation over
    channels of their retained degree. With an output folder, the histograms as a picture.

    Args:
        desk: of the run.
        block: whose layers; None: the middle one's.

    Raises:
        InputError: no layer of the block fits 2:4.
    """
    layers = desk.linears(desk.shape[0] // 2 if block is None else block)
    stats = watched(desk.dense, layers, desk.calibration(), RIA.needs)
    panels: dict[str, dict[str, Tensor]] = {}
    rows: Rows = {}
    for name in stats:
        score_OI = RIA()(outputs_first(layers[name]), stats[name])
        if score_OI.shape[1] % TWO_FOUR.of == 0:
            panels[name] = _masks(score_OI)
        for kind, mask_OI in panels.get(name, {}).items():
            rows[f"{name}, {kind}"] = {
                "kept of the score": float(score_OI[mask_OI].sum() / score_OI.sum()),
                "spread of degree": float(mask_OI.float().mean(0).std()),
            }
    if not panels:
        raise InputError("No layer of this block has a number of inputs that 4 divides.")
    if desk.pictures() and (path := desk.writes("retained_degree.png")):
        from ..report import plots

        plots.retained_degree(panels, path)
    return rows


def _masks(score_OI: Tensor) -> dict[str, Tensor]:
    order_I = Assignment()(score_OI, TWO_FOUR, 0.5)
    ordered_OI = TWO_FOUR.mask(score_OI[:, order_I], 0.5)
    return {
        "50 % of the layer": Unstructured("layer").mask(score_OI, 0.5),
        "2:4": TWO_FOUR.mask(score_OI, 0.5),
        "2:4, permuted": ordered_OI[:, order_I.argsort()],
    }
