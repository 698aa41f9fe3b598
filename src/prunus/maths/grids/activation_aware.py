"""Input scales and clipping strengths that lower a layer's output error on its grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .grid import Grid

SMALLEST = 1e-4  # of the mean input size: a dead input must not get a scale of 0


def row_errors(change_OI: Tensor, gram_II: Tensor) -> Tensor:
    """Compute ``‖X Δwᵀ‖² / T`` of each output row from ``XᵀX / T``."""
    return (change_OI @ gram_II * change_OI).sum(1)


def input_scale(
    weights: Sequence[Tensor], gram_II: Tensor, grid: Grid, steps: int = 20
) -> tuple[Tensor, float]:
    """Find ``s_I = size_I^α`` with the lowest output error for α in 0, 1/steps … 1; and that α.

    Inputs that are large get finer steps: what is rounded is ``W · s``, what is read ``Q(W·s)/s``,
    and the layer's input is as it was. The weights are those of all layers that read it; each
    layer's squared error counts in relation to its squared output. α = 0 is no scale at all, so
    the result is never worse than that on the calibration tokens.

    Differs from the authors' code: the root mean square of an input for its mean magnitude (it is
    on the Gram's diagonal), and the error of the layers' own outputs, from the Gram, for that of
    the whole attention on a sample.

    Args:
        weights: dense, (O, I) each.
        gram_II: ``XᵀX / T``.
        grid: what they will be rounded to.
        steps: how many exponents to try beside 0.

    Reference: Lin et al. 2024 (MLSys), AWQ, arXiv:2306.00978, eq. (4) and (5).
    """
    rms_I = gram_II.diagonal().sqrt()
    size_I = (rms_I / rms_I.mean().clamp_min(torch.finfo(rms_I.dtype).tiny)).clamp_min(SMALLEST)
    dense = [weight_OI.float() for weight_OI in weights]
    outputs = [float(row_errors(weight_OI, gram_II).sum()) for weight_OI in dense]
    best = (float("inf"), 0.0)
    for exponent in (i / steps for i in range(steps + 1)):
        scale_I = size_I**exponent
        error = 0.0
        for weight_OI, output in zip(dense, outputs, strict=True):
            new_OI = grid.quantize(weight_OI * scale_I).dequantize() / scale_I
            moved = float(row_errors(new_OI - weight_OI, gram_II).sum())
            error += moved / output if output > 0 else 0.0
        best = min(best, (error, exponent))
    return size_I ** best[1], best[1]


def clipping(weight_OI: Tensor, gram_II: Tensor, grid: Grid, lowest: float = 0.5) -> Tensor:
    """Find γ_OG for both ends of each range: of 1, 0.95 … ``lowest`` the best by output error.

    Each group is judged by what it alone adds to the output; where a row's groups together come
    out worse than unclipped, it stays unclipped. (AWQ's code does the first, not the second.)
    """
    blocks_GNN = _diagonal_blocks(gram_II, grid)
    dense_OI = weight_OI.float()
    best_OG = torch.full((len(dense_OI), len(blocks_GNN)), torch.inf, device=dense_OI.device)
    strength_OG = torch.ones_like(best_OG)
    for percent in range(100, round(lowest * 100) - 1, -5):
        strength = torch.full_like(strength_OG, percent / 100)
        change_OI = grid.quantize(weight_OI, strength, strength).dequantize().float() - dense_OI
        error_OG = _group_errors(change_OI, blocks_GNN)
        better_OG = error_OG < best_OG
        best_OG = torch.where(better_OG, error_OG, best_OG)
        strength_OG = torch.where(better_OG, strength, strength_OG)
    clipped_OI = grid.quantize(weight_OI, strength_OG, strength_OG).dequantize().float()
    plain_OI = grid.quantize(weight_OI).dequantize().float()
    clipped_O, plain_O = (row_errors(x - dense_OI, gram_II) for x in (clipped_OI, plain_OI))
    return torch.where((clipped_O < plain_O)[:, None], strength_OG, 1.0)


def _diagonal_blocks(gram_II: Tensor, grid: Grid) -> Tensor:
    """Return the Gram of each group's inputs (G, N, N); zeros fill a shorter last group."""
    inputs = len(gram_II)
    size = min(grid.group or inputs, inputs)
    filled = grid.groups(inputs) * size
    full = pad(gram_II, (0, filled - inputs, 0, filled - inputs))
    return torch.stack([full[i : i + size, i : i + size] for i in range(0, filled, size)])


def _group_errors(change_OI: Tensor, blocks_GNN: Tensor) -> Tensor:
    groups, size, _ = blocks_GNN.shape
    change_OGN = pad(change_OI, (0, groups * size - change_OI.shape[1])).unflatten(1, (groups, -1))
    change_GON = change_OGN.transpose(0, 1)
    error_GO: Tensor = (change_GON @ blocks_GNN * change_GON).sum(2)
    return error_GO.T
