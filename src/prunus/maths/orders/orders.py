"""``channel_orders.json``: the orders that a checkpoint's channels were put into."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base.errors import CheckpointError

FILE = "channel_orders.json"
KINDS = ("folded", "gathered", "free")  # beside that of the residual stream


@dataclass
class Orders:
    """The orders of a checkpoint: position p has the channel that was at ``order_I[p]`` before.

    Attributes:
        residual: of the residual stream, folded into the whole model; None: as it was.
        folded: by site, folded into the layers that make the site's channels.
        gathered: by site, not in the weights as stored: the order in which the pattern holds,
            real behind an index in front of the site, which ``prunus.load`` puts there.
        free: by layer, not in the weights as stored and used by nothing that runs: the order in
            which the layer's pattern holds, for ``prunus.verify`` to check.
    """

    residual: Tensor | None = None
    folded: dict[str, Tensor] = field(default_factory=dict)
    gathered: dict[str, Tensor] = field(default_factory=dict)
    free: dict[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.residual is not None or any(getattr(self, kind) for kind in KINDS)

    def to_json(self) -> str:
        """Return the text of the file."""
        residual = None if self.residual is None else self.residual.tolist()
        content = {"residual": residual, **self.noted()}
        return json.dumps(content, separators=(",", ":")) + "\n"

    def noted(self, names: Collection[str] | None = None) -> dict[str, dict[str, list[int]]]:
        """Return the orders of these sites and layers, or of all, as JSON can hold them."""
        return {
            kind: {
                name: order_I.tolist()
                for name, order_I in getattr(self, kind).items()
                if names is None or name in names
            }
            for kind in KINDS
        }

    def take_up(self, noted: Mapping[str, Any]) -> None:
        """Add the orders that an earlier run has noted.

        Raises:
            CheckpointError: one that does not name every channel once.
        """
        for kind in KINDS:
            known = noted.get(kind, {})  # an earlier version did not write free orders
            getattr(self, kind).update({name: _order(name, x) for name, x in known.items()})

    @classmethod
    def read(cls, folder: Path) -> Orders:
        """Read the orders beside a checkpoint; none if it has no such file.

        Raises:
            CheckpointError: the file is damaged, or holds something that is no order.
        """
        path = folder / FILE
        if not path.exists():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            residual = content["residual"]
            orders = cls(None if residual is None else _order("the residual stream", residual))
            _ = content["folded"], content["gathered"]  # which every version has written
            orders.take_up(content)
            return orders
        except (
            *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
            CheckpointError,
        ):
            raise CheckpointError(f"{path} is damaged: it holds no orders of channels.") from None


def is_order(order_I: Tensor, channels: int) -> bool:
    """Return whether it names each of so many channels once."""
    return torch.equal(order_I.cpu().long().sort().values, torch.arange(channels))


def _order(name: str, channels: list[int]) -> Tensor:
    whole = all(type(channel) is int for channel in channels)  # 0.5 would become 0
    order_I = torch.tensor(channels, dtype=torch.int64)
    if not whole or not is_order(order_I, len(channels)):
        raise CheckpointError(f"The order of channels of {name} does not name each of them once.")
    return order_I
