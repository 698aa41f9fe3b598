"""The processes of one run under ``torchrun``: what they share, and what they tell each other.

Each has its own part of the calibration samples and its own rows of every solve. All else they do
alike, on the same bits: sums are made in the order of the ranks, and a block's weights are those of
the first process, which alone writes. So they must be processes of one kind of machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import PrunusError, TeamError

PATIENCE = timedelta(hours=1)  # others wait while the first hashes, assembles and verifies
PIECE = 2**24  # numbers that are summed at once: bounds memory


@dataclass(frozen=True)
class Team:
    """The processes that work on one run. One alone sends nothing, and costs nothing.

    What is called here is called by all processes, in the same order.

    Attributes:
        rank: of this process.
        size: how many there are.
        local: its number among those of this machine, and of its CUDA device.
        beside: how many of them share this machine's memory, this one included.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    beside: int = 1

    @classmethod
    @contextmanager
    def join(cls) -> Iterator[Team]:
        """Return the team that ``torchrun`` started this process in; a team of one otherwise.

        Raises:
            TeamError: the processes cannot reach each other.
        """
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            yield ALONE
            return
        local = int(os.environ.get("LOCAL_RANK", 0))
        backend = "gloo"
        if torch.cuda.is_available() and dist.is_nccl_available():
            backend = "cpu:gloo,cuda:nccl"
        try:
            store, rank, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
            # After a restart by torchrun the store still has the addresses of the dead.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=PATIENCE
            )
        except (RuntimeError, ValueError) as error:
            raise TeamError(
                f"The {size} processes could not reach each other ({_reason(error)}). Start them "
                "with torchrun, all at once."
            ) from None
        try:
            yield cls(rank, size, local, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
        finally:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return the process's own CUDA device, if CUDA is asked for without a number.

        Raises:
            TeamError: there are fewer devices than processes on this machine.
        """
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        if self.local >= torch.cuda.device_count():
            raise TeamError(
                f"This machine has {torch.cuda.device_count()} CUDA devices, and process "
                f"{self.local} of it has none. Start as many processes as devices, or give "
                "--device cpu."
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def share(self, count: int, unit: int = 1) -> slice:
        """Return this process's part of ``count`` consecutive things, in whole units."""
        units = count // unit
        lo, hi = (units * rank // self.size * unit for rank in (self.rank, self.rank + 1))
        return slice(lo, count if self.rank == self.size - 1 else hi)

    def splitting(self, rows: int, unit: int = 1) -> Team:
        """Return the team, or a team of one if there are fewer units of rows than processes."""
        return self if rows // unit >= self.size else ALONE

    def sum_(self, tensor: Tensor) -> None:
        """Sum over the processes, in place and in rank order: the same bits on each."""
        if self.size == 1:
            return
        if not tensor.is_contiguous():
            whole = tensor.contiguous()
            self.sum_(whole)
            tensor.copy_(whole)
            return
        for part in tensor.view(-1).split(PIECE):
            total = torch.zeros_like(part)
            for rank in range(self.size):
                heard = part.clone() if rank == self.rank else torch.empty_like(part)
                total += _broadcast(heard, rank)
            part.copy_(total)

    def total(self, *values: float) -> tuple[float, ...]:
        """Sum some numbers over the processes, in float64."""
        if self.size == 1:
            return values
        numbers = torch.tensor(values, dtype=torch.float64)
        self.sum_(numbers)
        return tuple(numbers.tolist())

    def gather(self, rows: Tensor) -> Tensor:
        """Stack the rows of all processes in rank order; their numbers may differ."""
        if self.size == 1:
            return rows
        parts = []
        for rank in range(self.size):
            count = _broadcast(torch.tensor(len(rows)), rank)
            shape = (int(count), *rows.shape[1:])
            own = rank == self.rank
            parts.append(_broadcast(rows.contiguous() if own else rows.new_empty(shape), rank))
        return torch.cat(parts)

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace the values by the first process's, in place."""
        if self.size > 1:
            tensor.copy_(_broadcast(tensor.contiguous(), 0))

    def told(self, value: Any) -> Any:
        """Return what the first process says, through JSON; the others' values are ignored."""
        if self.size == 1:
            return value
        return json.loads(self._texts(json.dumps(value) if self.first else "")[0])

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Continue in all processes or in none: if one fails, it says why and the others end too.

        Inside the processes do not talk; here they wait for each other.

        Raises:
            TeamError: in all but the first that failed.
        """
        if self.size == 1:
            yield
            return
        error = None
        try:
            yield
        except PrunusError as raised:
            error = raised
        said = self._texts("" if error is None else str(error))
        failed = next((rank for rank, text in enumerate(said) if text), None)
        if failed is None:
            return
        if error is not None and failed == self.rank:
            raise error
        raise TeamError(f"Process {failed} of {self.size}: {said[failed]}", said=True)

    def _texts(self, text: str) -> list[str]:
        """Return the texts of all processes."""
        own = torch.tensor([*text.encode(), 0], dtype=torch.uint8)
        return bytes(self.gather(own).tolist()).decode().split("\0")[:-1]


ALONE = Team()


def _broadcast(tensor: Tensor, rank: int) -> Tensor:
    try:
        dist.broadcast(tensor, rank)
    except RuntimeError as error:
        raise TeamError(
            "Another process of this run has died, or cannot be reached any more "
            f"({_reason(error)}). Blocks that are done are kept: start all processes again with "
            "--resume."
        ) from error
    return tensor


def _reason(error: Exception) -> str:
    """Return the reason without the place in the backend's code, and its advice."""
    return str(error).split("] ")[-1].split(". ")[0]
