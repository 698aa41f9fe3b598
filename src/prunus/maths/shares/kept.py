"""BESA's mathematics: the removed share of a row, as a differentiable mixture of candidates.

D candidates ``p_d = d / D``. R is the number of shares that a layer has: O, one for each row, or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Rule = Literal["probability", "count"]


@dataclass(frozen=True)
class Ranks:
    """The order in which the weights of each row are removed.

    Attributes:
        rank_OI: a weight's place in its row, 0 for the lowest score; equal scores by position.
        bucket_OI: ``⌊D · rank / I⌋``: how many candidates would leave the weight there.
    """

    rank_OI: Tensor
    bucket_OI: Tensor

    @classmethod
    def of(cls, score_OI: Tensor, candidates: int) -> Ranks:
        """Sort by ascending score (equation 2)."""
        inputs = score_OI.shape[1]
        order_OI = score_OI.float().argsort(dim=1, stable=True)
        place_I = torch.arange(inputs, device=score_OI.device)
        rank_OI = torch.empty_like(order_OI).scatter_(1, order_OI, place_I.expand_as(order_OI))
        bucket_OI = rank_OI * candidates // inputs
        return cls(rank_OI.to(torch.int32), bucket_OI.to(torch.int16))


@dataclass(frozen=True)
class Shares:
    """The shares of one layer, for one value of their logits.

    Attributes:
        beta_RD: coefficients on the simplex, for the candidates 1 / D to (D − 1) / D. That of the
            candidate 1 is 0, so that the best weight of a row stays (section 3.2).
        share_R1: ``α = Σ_d β_d p_d``, equation (3).
        tail_RD: ``P`` of equation (4) by bucket: ``Σ_{d > k} β_d`` for k from 0 to D − 1.
    """

    beta_RD: Tensor
    share_R1: Tensor
    tail_RD: Tensor

    @classmethod
    def of(cls, logit_RD: Tensor) -> Shares:
        """Make the shares from D − 1 logits, by a plain softmax.

        (The authors' code takes the softmax of a sigmoid, which holds every share between 0.376
        and 0.624.)
        """
        beta_RD = torch.softmax(logit_RD, 1)
        candidates = beta_RD.shape[1] + 1
        rate_D = torch.arange(1, candidates, device=beta_RD.device, dtype=beta_RD.dtype)
        tail_RD = beta_RD.flip(1).cumsum(1).flip(1)
        tail_RD = torch.cat([tail_RD, torch.zeros_like(tail_RD[:, :1])], 1)
        return cls(beta_RD, (beta_RD * rate_D).sum(1, keepdim=True) / candidates, tail_RD)

    def soft(self, ranks: Ranks) -> Tensor:
        """Return ``1 − P``: the probability of every weight to stay."""
        tail_OD = self.tail_RD.expand(len(ranks.bucket_OI), -1)
        return 1 - tail_OD.gather(1, ranks.bucket_OI.long())

    def hard(self, ranks: Ranks, rule: Rule) -> Tensor:
        """Return the mask (O, I), True = kept.

        ``"probability"`` is equation (5): weights with ``P >= α`` are removed. ``"count"`` is the
        authors' code: the ``⌊α I⌋`` lowest are removed.
        """
        if rule == "count":
            inputs = ranks.rank_OI.shape[1]
            return ranks.rank_OI >= (self.share_R1.detach().double() * inputs + 1e-6).floor()
        return ranks.bucket_OI >= (self.tail_RD >= self.share_R1).sum(1, keepdim=True)

    def counted(self, keep_OI: Tensor) -> Tensor:
        """Return the removed share over all rows: counted, with the gradient of α."""
        gone = 1 - keep_OI.float().mean()
        share = self.share_R1.mean()
        return share + (gone - share).detach()

    def masked(self, weight_OI: Tensor, ranks: Ranks, keep_OI: Tensor) -> Tensor:
        """Return ``W ⊙ keep`` with the gradient of ``W ⊙ soft``: straight through, equation (6)."""
        masked: Tensor = _Masked.apply(weight_OI, self.tail_RD, ranks.bucket_OI, keep_OI)  # type: ignore[no-untyped-call]
        return masked


class _Masked(torch.autograd.Function):
    """What changes a mask entry changes the tail of its bucket, with a minus: P is for going."""

    @staticmethod
    def forward(
        ctx: Any, weight_OI: Tensor, tail_RD: Tensor, bucket_OI: Tensor, keep_OI: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight_OI, bucket_OI, keep_OI)
        ctx.shares, ctx.candidates = tail_RD.shape
        return weight_OI * keep_OI.to(weight_OI.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (grad_OI,) = grads
        weight_OI, bucket_OI, keep_OI = ctx.saved_tensors
        wide = torch.promote_types(grad_OI.dtype, torch.float32)
        going_OI = -(grad_OI * weight_OI).to(wide)
        tail_RD = going_OI.new_zeros(len(going_OI), ctx.candidates)
        tail_RD.scatter_add_(1, bucket_OI.long(), going_OI)
        if ctx.shares == 1:
            tail_RD = tail_RD.sum(0, keepdim=True)
        weighed_OI = grad_OI * keep_OI.to(grad_OI.dtype) if ctx.needs_input_grad[0] else None
        return weighed_OI, tail_RD, None, None


def flattest(share: float, candidates: int, rule: Rule) -> Tensor:
    """Find the logits (D − 1,) of the flattest mixture with this share: ``β_d ∝ exp(η d / D)``.

    η by bisection. A share beyond the candidates gets the outermost.
    """
    rate_D = torch.arange(1, candidates, dtype=torch.float64) / candidates
    low, high = -500.0, 500.0
    for _ in range(60):
        middle = (low + high) / 2
        found = Shares.of((middle * rate_D)[None])
        gone = found.share_R1 if rule == "count" else _crossing(found) + 0.5 / candidates
        low, high = (middle, high) if float(gone) < share else (low, middle)
    logit_D = high * rate_D
    return (logit_D - logit_D.mean()).float()


def _crossing(shares: Shares) -> Tensor:
    """Find where P falls to α, between two buckets, as a share (R, 1) of the row."""
    candidates = shares.tail_RD.shape[1]
    before_R1 = (shares.tail_RD >= shares.share_R1).sum(1, keepdim=True) - 1
    upper_R1 = shares.tail_RD.gather(1, before_R1)
    lower_R1 = shares.tail_RD.gather(1, (before_R1 + 1).clamp_max(candidates - 1))
    part_R1 = (upper_R1 - shares.share_R1) / (upper_R1 - lower_R1).clamp_min(1e-12)
    return (before_R1 + part_R1) / candidates
