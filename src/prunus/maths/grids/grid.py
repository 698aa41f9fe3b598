"""Min-max integer grids with clipping strengths, on which 0 is always a point."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...base.errors import InputError


@dataclass(frozen=True)
class Grid:
    """``2^bits`` equally spaced values for each row, or for each group of a row's inputs.

    With γ0, γ1 in (0, 1], one pair for each row and group, and ``n = 2^bits − 1``::

        h = (γ1 · max(W, 0) − γ0 · min(W, 0)) / n         the step
        z = −round(γ0 · min(W, 0) / h)                    the integer that stands for 0
        q = clamp(round(W / h) + z, 0, n)                 stored
        Ŵ = (q − z) · h                                   read

    z is an integer within 0..n, so a weight of 0 has q = z and comes back as exactly 0: whatever
    was pruned stays pruned. Where the paper's min(W) is above 0 or its max(W) below, 0 would not be
    on its grid; here the range reaches to 0. h is rounded to the weight's dtype before it is used,
    so that a file which stores it there holds the very grid that q was made for.

    Attributes:
        bits: 2 to 8.
        group: inputs that share a grid, the last group of a row maybe fewer; None: the whole row.

    Reference: Xu et al. 2024 (ICLR), BESA, eq. (7), after Shao et al. 2023 (OmniQuant).

    >>> Grid(bits=2).quantize(torch.tensor([[0.9, 0.0, -0.6, 0.2]])).dequantize()
    tensor([[ 1.0000,  0.0000, -0.5000,  0.0000]])
    """

    bits: int = 4
    group: int | None = 128

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InputError(f"A grid has 2 to 8 bits; got {self.bits}.")
        if self.group is not None and self.group < 1:
            raise InputError(
                f"A group is a number of inputs, at least 1, or none for whole rows; got "
                f"{self.group}."
            )

    def __str__(self) -> str:
        return f"{self.bits} bits, " + (f"groups of {self.group}" if self.group else "rows")

    @property
    def top(self) -> int:
        """The largest stored integer."""
        return int(2**self.bits - 1)

    def groups(self, inputs: int) -> int:
        """Return how many grids a row with that many inputs has: G."""
        return -(-inputs // (self.group or inputs))

    def fake(self, weight_OI: Tensor, low_OG: Tensor, high_OG: Tensor) -> Tensor:
        """Return Ŵ in the weight's dtype, differentiable in γ0 and γ1 (and in the weight).

        Rounding passes gradients as if it were not there; clipping stops those of the weight and
        sends them to the strength that clips. The values are those of ``quantize``.

        Args:
            weight_OI: the dense weight.
            low_OG: γ0, such as ``sigmoid(parameter)``; or anything that broadcasts to (O, G).
            high_OG: γ1.
        """
        q_OGN, scale_OG1, zero_OG1 = self._integers(weight_OI, low_OG, high_OG)
        new_OI = ((q_OGN - zero_OG1) * scale_OG1).flatten(1)[:, : weight_OI.shape[1]]
        return new_OI.to(weight_OI.dtype)

    @torch.no_grad()
    def quantize(
        self, weight_OI: Tensor, low_OG: Tensor | None = None, high_OG: Tensor | None = None
    ) -> Quantized:
        """Return the integers; the clipping strengths are 1 unless given."""
        one = torch.ones((), device=weight_OI.device)
        low_OG, high_OG = (one if x is None else x for x in (low_OG, high_OG))
        q_OGN, scale_OG1, zero_OG1 = self._integers(weight_OI, low_OG, high_OG)
        return Quantized(
            q_OGN.flatten(1)[:, : weight_OI.shape[1]].to(torch.uint8),
            scale_OG1[..., 0].to(weight_OI.dtype),
            zero_OG1[..., 0].to(torch.uint8),
            self,
        )

    def _integers(
        self, weight_OI: Tensor, low_OG: Tensor, high_OG: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q (O, G, N), and h and z (O, G, 1), in float32 or wider.

        A shorter last group is filled up with zeros, which change no range.
        """
        inputs = weight_OI.shape[1]
        size = self.group or inputs
        wide_OI = weight_OI.to(torch.promote_types(weight_OI.dtype, torch.float32))
        filled_OI = pad(wide_OI, (0, self.groups(inputs) * size - inputs))
        weight_OGN = filled_OI.unflatten(1, (-1, size))
        lowest_OG = low_OG * weight_OGN.amin(-1).clamp_max(0)
        highest_OG = high_OG * weight_OGN.amax(-1).clamp_min(0)
        step_OG = ((highest_OG - lowest_OG) / self.top).clamp_min(_smallest_step(weight_OI.dtype))
        stored_OG = step_OG.to(weight_OI.dtype).to(step_OG.dtype)
        scale_OG1 = _straight_through(step_OG, stored_OG)[..., None]
        zero_OG1 = -_rounded(lowest_OG[..., None] / scale_OG1).clamp(-self.top, 0)
        q_OGN = (_rounded(weight_OGN / scale_OG1) + zero_OG1).clamp(0, self.top)
        return q_OGN, scale_OG1, zero_OG1


@dataclass(frozen=True, eq=False)
class Quantized:
    """The integers of a layer, and their grids.

    Attributes:
        q_OI: uint8, 0 to ``2^bits − 1``.
        scale_OG: h, in the dtype of the weight that it was.
        zero_OG: z, uint8.
        grid: bits and groups.
    """

    q_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor
    grid: Grid

    def dequantize(self) -> Tensor:
        """Return ``(q − z) · h`` in the dtype of h, rounded once; exactly 0 where q = z."""
        wide = torch.promote_types(self.scale_OG.dtype, torch.float32)
        new_OI = self.steps_OI.to(wide) * self._spread(self.scale_OG).to(wide)
        return new_OI.to(self.scale_OG.dtype)

    @property
    def steps_OI(self) -> Tensor:
        """``q − z``, int16."""
        return self.q_OI.to(torch.int16) - self._spread(self.zero_OG).to(torch.int16)

    def masked(self, mask_OI: Tensor) -> Quantized:
        """Return the same integers with q = z, which means 0, wherever the mask is False."""
        return replace(self, q_OI=torch.where(mask_OI, self.q_OI, self._spread(self.zero_OG)))

    def _spread(self, each_OG: Tensor) -> Tensor:
        inputs = self.q_OI.shape[1]
        return each_OG.repeat_interleave(self.grid.group or inputs, 1)[:, :inputs]


def _smallest_step(dtype: torch.dtype) -> float:
    """Return the smallest step that stays above 0 in the dtype and is normal in float32.

    The step of a group of zeros. (OmniQuant's floor of 1e-5 would erase small weights.)
    """
    info = torch.finfo(dtype)
    return max(info.tiny * info.eps, torch.finfo(torch.float32).tiny)


def _rounded(x: Tensor) -> Tensor:
    return _straight_through(x, x.round())


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` with the gradient of ``x``."""
    return value.detach() + (x - x.detach())
