"""``channel_orders.json``: the orders that a checkpoint's channels were put into."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...base.errors import CheckpointError

FILE = "channel_orders.json"


@dataclass
class Orders:
    """The orders of a checkpoint: position p has the channel that was at ``order_I[p]`` before.

    Attributes:
        residual: of the residual stream, folded into the whole model; None: as it was.
        folded: by site, folded into the layers that make the site's channels.
        gathered: by site, not in the weights as stored: the order in which the pattern holds,
            real behind an index in front of the site, which ``prunus.load`` puts there.
    """

    residual: Tensor | None = None
    folded: dict[str, Tensor] = field(default_factory=dict)
    gathered: dict[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.residual is not None or self.folded or self.gathered)

    def to_json(self) -> str:
        """Return the text of the file."""
        content = {
            "residual": None if self.residual is None else self.residual.tolist(),
            "folded": {site: order_I.tolist() for site, order_I in self.folded.items()},
            "gathered": {site: order_I.tolist() for site, order_I in self.gathered.items()},
        }
        return json.dumps(content, separators=(",", ":")) + "\n"

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
            residual, folded, gathered = (content[k] for k in ("residual", "folded", "gathered"))
            return cls(
                None if residual is None else _order(residual),
                {site: _order(order) for site, order in folded.items()},
                {site: _order(order) for site, order in gathered.items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            raise CheckpointError(f"{path} is damaged: it holds no orders of channels.") from None


def _order(channels: list[int]) -> Tensor:
    order_I = torch.tensor(channels, dtype=torch.int64)
    if not torch.equal(order_I.sort().values, torch.arange(len(channels))):
        raise ValueError("not every channel once")
    return order_I
