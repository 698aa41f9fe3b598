"""The solvers against plain ones, on synthetic layers, side by side in one run.

    python benchmarks/numerics/solvers.py   # 2048 inputs × 1024 rows, then growth up to 4096 × 4096

Least squares against a Cholesky per row on its kept set (float32, one row after the other), and
SparseGPT's sweep against its plain loop over columns. Medians of paired runs; ratios, not times,
are the result.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from prunus.maths.gram import Damped, Gram
from prunus.maths.patterns import Unstructured
from prunus.maths.pruners import MRP, SparseGPT
from prunus.maths.stats import Statistics
from prunus.maths.updates.least_squares import conjugate_gradients

QUANTILES = (0, 0.002, 0.01, 0.05, 0.2, 0.5, 0.8, 1)
EIGENVALUES = (50, 13, 7, 3.2, 1.3, 0.54, 0.23, 3e-3)


def layer(outputs: int, inputs: int, sparsity: float) -> tuple[Tensor, Tensor, Statistics]:
    """Draw a weight, Wanda's mask, and a Gram like those of SmolLM2-135M's inputs.

    The eigenvalues of the inputs' correlations interpolate measured quantiles (medians over 12
    sites); channels differ in scale by exp(0.35 z), and one in 500 by exp(3).
    """
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(outputs, inputs, generator=generator)
    rank_I = np.arange(inputs) / (inputs - 1)
    log_I = np.interp(rank_I, QUANTILES, np.log(EIGENVALUES))
    basis_II = torch.linalg.qr(torch.randn(inputs, inputs, generator=generator)).Q
    inputs_TI = torch.randn(4 * inputs, inputs, generator=generator)
    inputs_TI = (inputs_TI * torch.tensor(np.exp(log_I / 2)).float()) @ basis_II
    scale_I = (0.35 * torch.randn(inputs, generator=generator)).exp()
    scale_I[::500] *= 20
    inputs_TI *= scale_I
    stats = Statistics((Gram,), inputs)
    stats.update(inputs_TI)
    score_OI = weight_OI.abs() * stats[Gram].matrix_II.diagonal().sqrt()
    return weight_OI, Unstructured("row").mask(score_OI, sparsity), stats


def row_by_row(weight_OI: Tensor, mask_OI: Tensor, system: Damped) -> Tensor:
    """w_K = H_KK⁻¹ (H w⁰)_K, a Cholesky per row."""
    right_OI = weight_OI @ system.matrix_II
    new_OI = torch.zeros_like(weight_OI)
    for o, kept_I in enumerate(mask_OI):
        kept_K = kept_I.nonzero().flatten()
        factor_KK = torch.linalg.cholesky(system.matrix_II[kept_K[:, None], kept_K])
        new_OI[o, kept_K] = torch.cholesky_solve(right_OI[o, kept_K, None], factor_KK)[:, 0]
    return new_OI


def column_by_column(weight_OI: Tensor, system: Damped, sparsity: float) -> Tensor:
    """SparseGPT's sweep without inner blocks: every column updates all columns after it."""
    weight_OI, upper_II = weight_OI.clone(), system.upper_II
    for lo in range(0, weight_OI.shape[1], 128):
        hi = min(lo + 128, weight_OI.shape[1])
        score_OB = weight_OI[:, lo:hi] ** 2 / upper_II.diagonal()[lo:hi] ** 2
        keep_OB = Unstructured("layer").mask(score_OB, sparsity)
        for j in range(lo, hi):
            error_O = (weight_OI[:, j] / upper_II[j, j]).masked_fill(keep_OB[:, j - lo], 0)
            weight_OI[:, j:] -= error_O[:, None] * upper_II[j, j:]
            weight_OI[:, j].masked_fill_(~keep_OB[:, j - lo], 0)
    return weight_OI


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()

    print(f"{torch.get_num_threads()} threads, float32, {given.pairs} pairs\n")
    weight_OI, mask_OI, stats = layer(1024, 2048, 0.5)
    system = stats[Gram].damped(0.01)
    _ = system.inverse_II
    result: list[tuple[Tensor, float, int]] = []

    def ours() -> None:
        result.append(conjugate_gradients(weight_OI, mask_OI, system, 1e-3, 400))

    def paired(ours: Callable[[], object], plain: Callable[[], object]) -> str:
        both = [(seconds(ours), seconds(plain)) for _ in range(given.pairs)]
        ratios = sorted(theirs / own for own, theirs in both)
        times = [statistics.median(t) for t in zip(*both, strict=True)]
        spread = f"{ratios[0]:.1f} to {ratios[-1]:.1f}"
        return (
            f"{times[0]:.2f} s, {times[1]:.2f} s, ratio {statistics.median(ratios):.1f} ({spread})"
        )

    text = paired(ours, lambda: row_by_row(weight_OI, mask_OI, system))
    gap, iterations = result[-1][1:]
    print(f"2048 × 1024 at 50 %, least squares, Cholesky per row: {text}")
    print(f"  certified gap {gap:.1e} after {iterations} iterations")
    text = paired(
        lambda: SparseGPT()(weight_OI, stats, 0.5), lambda: column_by_column(weight_OI, system, 0.5)
    )
    print(f"2048 × 1024 at 50 %, SparseGPT, its plain column loop: {text}")
    text = paired(lambda: SparseGPT()(weight_OI, stats, 0.5), lambda: MRP()(weight_OI, stats, 0.5))
    print(f"2048 × 1024 at 50 %, SparseGPT, MRP with mask S: {text}\n")

    print("| inputs | rows | sparsity | least squares s | iterations | gap |")
    print("|---|---|---|---|---|---|")
    for inputs, outputs, sparsity in (
        *((1024, 1024, 0.5), (2048, 1024, 0.5), (4096, 1024, 0.5)),
        *((2048, 512, 0.5), (2048, 2048, 0.5), (2048, 4096, 0.5), (4096, 4096, 0.5)),
        *((2048, 1024, 0.3), (2048, 1024, 0.7), (2048, 1024, 0.9)),
    ):
        weight_OI, mask_OI, stats = layer(outputs, inputs, sparsity)
        system = stats[Gram].damped(0.01)
        _ = system.inverse_II
        result.clear()
        took = statistics.median(seconds(ours) for _ in range(given.pairs))
        gap, iterations = result[-1][1:]
        print(
            f"| {inputs} | {outputs} | {sparsity} | {took:.2f} | {iterations} | {gap:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
