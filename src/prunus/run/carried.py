"""What a checkpoint claims of its zeros, for the quantised one that is made of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..maths.orders.orders import Orders
from ..maths.patterns import parse_pattern
from ..maths.pruners.activation_aware import Claim
from ..report.layer import LayerReport
from ..report.report import FILE as REPORT
from ..report.report import read_report

ELSEWHERE = ("free", "gather")  # orders in which a pattern holds, but not the stored weights


@dataclass(frozen=True)
class Carried:
    """What is carried over from the report beside a checkpoint, and the orders beside that.

    Attributes:
        claims: by layer.
        orders: those in which the claims hold. Folded ones are in the weights by now.
        lost: why a claim cannot be made again, and of how many layers.
    """

    claims: dict[str, Claim] = field(default_factory=dict)
    orders: Orders = field(default_factory=Orders)
    lost: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, folder: Path) -> Carried:
        """Read them; nothing is carried over from a model that prunus did not prune.

        Raises:
            CheckpointError: the report or the file of orders is damaged.
        """
        carried = cls()
        report = read_report(folder) if (folder / REPORT).is_file() else None
        if report is None or report.structured is not None:
            return carried
        known = Orders.read(folder)
        for layer in report.layers:
            carried._take(layer, known)
        return carried

    def _take(self, layer: LayerReport, known: Orders) -> None:
        """Take over the claim of a layer, if its order is known where it has one."""
        order, site = layer.notes.get("order"), str(layer.notes.get("site"))
        notes = {k: v for k, v in layer.notes.items() if k == "pruned_apart"}
        if order in ELSEWHERE:
            kind, name = ("free", layer.name) if order == "free" else ("gathered", site)
            order_I = getattr(known, kind).get(name)
            if order_I is None or len(order_I) != layer.shape[1]:
                self.lost[f"{layer.pattern} in an order that is stored nowhere"] += 1
                return
            getattr(self.orders, kind)[name] = order_I
            notes |= {"order": order, **({"site": site} if order == "gather" else {})}
        pattern = parse_pattern(layer.pattern)
        self.claims[layer.name] = Claim(pattern, layer.requested, notes)
