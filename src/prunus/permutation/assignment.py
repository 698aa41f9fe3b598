"""Boxes refilled by linear sum assignment, then channels exchanged in pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..patterns import NM
from ..types import Pattern
from .heuristic import Heuristic
from .retained import along_inputs, retained

GAIN = 1e-7  # of the retained score: less is rounding


@dataclass(frozen=True)
class Assignment:
    """Take one channel out of each box; put all back where together they keep most; repeat.

    For box b without its slot, let ``t_b`` be the keep-th largest of what is left, per row. With
    channel v in the slot the box keeps the ``keep − 1`` largest and ``max(v, t_b)``, and
    ``Σ max(v, t) = (Σv + Σt + ‖v − t‖₁) / 2``. The sums are the same in every assignment, so the
    K × K matrix to maximise is one L1 distance: no sorting, no gather.

    Attributes:
        start: the order to begin with.
        sweeps: over all M slots; the authors make one. From the second on each box's
            channels get their slots at random, so that any two can change places in the end.
        exchanges: rounds of pairwise exchanges after that, at most, until none gains.
        seed: of the random slots.

    Never keeps less than the stored order does. Reference: Zhang et al. 2024, "Plug-and-Play",
    section 4.2, step 2, and appendix C; random slots, more sweeps and exchanges are ours.
    """

    start: Heuristic = Heuristic()
    sweeps: int = 20
    exchanges: int = 20
    seed: int = 0

    def __call__(self, score_OI: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
        """The order: boxes one after the other; position p of it reads channel ``order_I[p]``."""
        pattern = along_inputs(pattern, score_OI)
        stored_I = torch.arange(score_OI.shape[1], device=score_OI.device)
        if pattern.keep == pattern.of or score_OI.shape[1] == pattern.of:
            return stored_I
        channels_IO = score_OI.float().T.contiguous()
        boxes_KM = self.start(score_OI, pattern, sparsity).view(-1, pattern.of).clone()
        generator = torch.Generator().manual_seed(self.seed)
        for sweep in range(self.sweeps):
            if sweep:
                slots_KM = torch.rand(boxes_KM.shape, generator=generator).argsort(1)
                boxes_KM = boxes_KM.gather(1, slots_KM.to(boxes_KM.device))
            for slot in range(pattern.of):
                _refill(channels_IO, boxes_KM, pattern, slot)
        best = retained(score_OI, pattern, boxes_KM.flatten())
        for _ in range(self.exchanges):
            tried_KM = _exchange(channels_IO, boxes_KM, pattern)
            now = retained(score_OI, pattern, tried_KM.flatten())
            if now <= best * (1 + GAIN):
                break
            best, boxes_KM = now, tried_KM
        return boxes_KM.flatten() if best > retained(score_OI, pattern, stored_I) else stored_I


def _refill(channels_IO: Tensor, boxes_KM: Tensor, pattern: NM, slot: int) -> None:
    """One slot of every box, in place: the best assignment of its channels to the boxes."""
    threshold_KO = _thresholds(channels_IO, boxes_KM, pattern, slot)
    gain_KK = torch.cdist(threshold_KO, channels_IO[boxes_KM[:, slot]], p=1)
    _, chosen_K = linear_sum_assignment(gain_KK.cpu().numpy(), maximize=True)
    boxes_KM[:, slot] = boxes_KM[torch.from_numpy(chosen_K).to(boxes_KM.device), slot]


def _thresholds(channels_IO: Tensor, boxes_KM: Tensor, pattern: NM, slot: int) -> Tensor:
    """t: per box and row, the keep-th largest of the box without its slot."""
    rest_KR = torch.cat([boxes_KM[:, :slot], boxes_KM[:, slot + 1 :]], 1)
    return torch.stack([channels_IO[rest_R].topk(pattern.keep, 0).values[-1] for rest_R in rest_KR])


def _exchange(channels_IO: Tensor, boxes_KM: Tensor, pattern: NM) -> Tensor:
    """The best exchanges of two channels of different boxes, at most one for each box.

    Exact: the gain of an exchange is the sum of what each of the two boxes gains.
    """
    order_I = boxes_KM.flatten()
    boxes, size = boxes_KM.shape
    threshold_MKO = torch.stack(
        [_thresholds(channels_IO, boxes_KM, pattern, slot) for slot in range(size)]
    )
    threshold_IO = threshold_MKO.transpose(0, 1).flatten(0, 1)  # by position, as order_I
    ordered_IO = channels_IO[order_I]
    # Σ max(v, t) less Σ max(own, t), for position a (rows) and the channel at position b
    gain_II = torch.cdist(threshold_IO, ordered_IO, p=1) + ordered_IO.sum(1)
    gain_II -= gain_II.diagonal().clone()[:, None]
    gain_II = (gain_II + gain_II.T) / 2
    for box in range(boxes):
        gain_II[box * size : (box + 1) * size, box * size : (box + 1) * size] = 0
    best_I, partner_I = gain_II.max(1)
    touched, order = set[int](), order_I.clone()
    for a in best_I.argsort(descending=True).tolist():
        b = int(partner_I[a])
        if best_I[a] <= 0:
            break
        if a // size in touched or b // size in touched:
            continue
        touched |= {a // size, b // size}
        order[a], order[b] = order_I[b], order_I[a]
    return order.view(boxes, size)
