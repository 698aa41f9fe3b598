"""One layer's quadratic problem and its optimum, by their formulas."""

import torch

from prunus.maths.gram import Gram
from prunus.maths.stats import gather


def problem(outputs=12, inputs=32, tokens=200, dtype=torch.float32, seed=0):
    """A weight, statistics of correlated inputs, and the damped H in float64 by its formula."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(outputs, inputs, generator=generator).to(dtype)
    mixing_II = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    inputs_TI = torch.randn(tokens, inputs, generator=generator) @ mixing_II
    stats = gather(inputs_TI, (Gram,))
    gram_II = inputs_TI.double().T @ inputs_TI.double() / tokens
    matrix_II = gram_II + 0.01 * gram_II.diagonal().mean() * torch.eye(inputs).double()
    return weight_OI, stats, matrix_II


def loss(new_OI, weight_OI, matrix_II):
    moved_OI = new_OI.double() - weight_OI.double()
    return 0.5 * float((moved_OI @ matrix_II * moved_OI).sum())


def optimum(weight_OI, mask_OI, matrix_II):
    """Row by row: w_K = H_KK⁻¹ (H w⁰)_K."""
    best_OI = torch.zeros_like(weight_OI, dtype=torch.float64)
    for o, kept in enumerate(mask_OI):
        right = (matrix_II @ weight_OI[o].double())[kept]
        best_OI[o, kept] = torch.linalg.solve(matrix_II[kept][:, kept], right)
    return best_OI
