"""Boxes refilled by linear sum assignment, then channels exchanged in pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..contracts import Pattern, Share
from ..patterns import NM
from .exchanges import exchanged, thresholds
from .heuristic import Heuristic
from .retained import along_inputs, retained


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
    sweeps: int = 8
    exchanges: int = 20
    seed: int = 0

    def __call__(self, score_OI: Tensor, pattern: Pattern, sparsity: Share) -> Tensor:
        """Return the order, box after box; position p of it reads channel ``order_I[p]``."""
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
        boxes_KM = exchanged(channels_IO, boxes_KM, pattern, self.exchanges)
        best, stored = (retained(score_OI, pattern, o) for o in (boxes_KM.flatten(), stored_I))
        return boxes_KM.flatten() if best > stored else stored_I


def _refill(channels_IO: Tensor, boxes_KM: Tensor, pattern: NM, slot: int) -> None:
    """Fill one slot of every box again, in place, by the best assignment of channels to boxes."""
    threshold_KO = thresholds(channels_IO, boxes_KM, pattern, slot)
    gain_KK = torch.cdist(threshold_KO, channels_IO[boxes_KM[:, slot]], p=1)
    _, chosen_K = linear_sum_assignment(gain_KK.cpu().numpy(), maximize=True)
    boxes_KM[:, slot] = boxes_KM[torch.from_numpy(chosen_K).to(boxes_KM.device), slot]
