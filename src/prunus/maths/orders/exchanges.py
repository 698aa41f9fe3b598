"""Exchanges of pairs of channels: the assignment's last step, the greedy search's for a large M."""

from __future__ import annotations

import torch
from torch import Tensor

from ..patterns import NM

GAIN = 1e-7  # of all scores: less is rounding


def exchanged(channels_IO: Tensor, boxes_KM: Tensor, pattern: NM, rounds: int) -> Tensor:
    """Return the boxes after at most ``rounds`` rounds of the best exchanges, while any gains."""
    if rounds < 1:
        return boxes_KM
    search = Exchanges(channels_IO, boxes_KM, pattern)
    for _ in range(rounds):
        if not search.one_round():
            break
    return search.boxes_KM


class Exchanges:
    """The gain of every exchange of two channels of different boxes, kept up to date.

    Exact: an exchange gains the sum of what each of its two boxes gains. With channel v in place of
    its own at position a, a's box keeps ``Σ max(v, t_a)`` beside what its others keep.
    """

    def __init__(self, channels_IO: Tensor, boxes_KM: Tensor, pattern: NM) -> None:
        self.channels_IO, self.boxes_KM, self.pattern = channels_IO, boxes_KM.clone(), pattern
        self.least = GAIN * float(channels_IO.sum(dtype=torch.float64))
        inputs = boxes_KM.numel()
        self._threshold_IO = torch.empty_like(channels_IO)
        # 2 Σ max(v_b, t_a), less Σ t_a: for position a (rows) and the channel at position b
        self._kept_II = channels_IO.new_empty(inputs, inputs)
        self._refresh(torch.arange(len(boxes_KM), device=boxes_KM.device))

    def one_round(self) -> bool:
        """Make the best exchanges, at most one per box; return whether there were any."""
        size, order_I = self.pattern.of, self.boxes_KM.flatten()
        best_I, partner_I = self.gain_II().max(1)
        touched, moved = set[int](), order_I.clone()
        for a in best_I.argsort(descending=True).tolist():
            if best_I[a] <= self.least:
                break
            b = int(partner_I[a])
            if a // size not in touched and b // size not in touched:
                touched |= {a // size, b // size}
                moved[a], moved[b] = order_I[b], order_I[a]
        self.boxes_KM = moved.view(-1, size)
        if touched:
            self._refresh(torch.tensor(sorted(touched), device=moved.device))
        return bool(touched)

    def escape(self, generator: torch.Generator) -> None:
        """Exchange one random channel of a random pair of boxes, whatever that loses."""
        a, b = torch.randperm(len(self.boxes_KM), generator=generator)[:2].tolist()
        i, j = torch.randint(self.pattern.of, (2,), generator=generator).tolist()
        here, there = int(self.boxes_KM[a, i]), int(self.boxes_KM[b, j])
        self.boxes_KM[a, i], self.boxes_KM[b, j] = there, here
        self._refresh(torch.tensor(sorted({a, b}), device=self.boxes_KM.device))

    def gain_II(self) -> Tensor:
        """Return the gain of exchanging the channels at positions a and b; 0 within a box."""
        gain_II = self._kept_II - self._kept_II.diagonal()[:, None]
        gain_II = (gain_II + gain_II.T) / 2
        boxes, size = self.boxes_KM.shape
        within_KMKM = gain_II.view(boxes, size, boxes, size)
        box_K = torch.arange(boxes, device=gain_II.device)
        within_KMKM[box_K, :, box_K] = 0
        return gain_II

    def _refresh(self, box_R: Tensor) -> None:
        """Recompute thresholds and kept scores of these boxes."""
        size = self.pattern.of
        position_R = (box_R[:, None] * size + torch.arange(size, device=box_R.device)).flatten()
        threshold_RMO = all_thresholds(self.channels_IO, self.boxes_KM[box_R], self.pattern)
        self._threshold_IO[position_R] = threshold_RMO.flatten(0, 1)
        ordered_IO = self.channels_IO[self.boxes_KM.flatten()]
        total_I = ordered_IO.sum(1)
        rows_RI = torch.cdist(self._threshold_IO[position_R], ordered_IO, p=1)
        self._kept_II[position_R] = rows_RI + total_I
        if len(position_R) < len(ordered_IO):
            columns_IR = torch.cdist(self._threshold_IO, ordered_IO[position_R], p=1)
            self._kept_II[:, position_R] = columns_IR + total_I[position_R]


def thresholds(channels_IO: Tensor, boxes_KM: Tensor, pattern: NM, slot: int) -> Tensor:
    """Return t: per box and row, the keep-th largest score of the box without its slot."""
    rest_KR = torch.cat([boxes_KM[:, :slot], boxes_KM[:, slot + 1 :]], 1)
    return torch.stack([channels_IO[rest_R].topk(pattern.keep, 0).values[-1] for rest_R in rest_KR])


def all_thresholds(channels_IO: Tensor, boxes_RM: Tensor, pattern: NM) -> Tensor:
    """Return the same for every slot, (R, M, O): the next score where the slot's own is kept."""
    own_RMO = channels_IO[boxes_RM]
    highest_RKO = own_RMO.topk(pattern.keep + 1, 1).values
    last_R1O, next_R1O = highest_RKO[:, -2:].split(1, 1)
    return torch.where(own_RMO >= last_R1O, next_R1O, last_R1O)
