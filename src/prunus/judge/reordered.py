"""Whether channels are in another order: shown by the values, whoever put them there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

MOST = 2**14  # rows that are put in order: vocabularies are longer, and no channels
FINGER = 8  # the largest values of a row, by which it is looked for
GLANCE = 16  # rows that are looked for before all others
KNOWN = 4  # orders of one length that are tried on further tensors
CELLS = 2**24  # numbers that are compared at once


@dataclass
class Reordering:
    """Orders of channels that tensors have shown so far, to be tried on further ones.

    A matrix whose zeros are new shows an order if each of its rows (or columns) has all its kept
    values, at their places, in exactly one row of the other matrix. The order of the residual
    stream, which lies on both sides of many layers, is shown by embeddings; of these layers only
    one side is left to find then.

    Attributes:
        known: orders by their length, the first ones that were found.
    """

    known: dict[int, list[Tensor]] = field(default_factory=dict)

    def found(self, new: Tensor, old: Tensor) -> tuple[Tensor, str] | None:
        """Return the old tensor in the order of the new one, and which axes that order is of.

        None unless every nonzero value of the new tensor is then the old one's, and the old one's
        order is another.
        """
        if new.shape != old.shape or new.ndim not in (1, 2) or 0 in new.shape:
            return None
        if new.ndim == 1:
            same = torch.equal(new.sort().values, old.sort().values)
            return (new, "values") if same else None
        for rows, columns in self._tries(new, old):
            ordered = _put(old, rows, columns)
            kept = new != 0
            if torch.equal(new[kept], ordered[kept]):
                axes = [
                    name for name, x in (("outputs", rows), ("inputs", columns)) if x is not None
                ]
                for order in (rows, columns):
                    self._learn(order)
                return ordered, " and ".join(axes)
        return None

    def _tries(self, new: Tensor, old: Tensor) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Yield orders of rows and columns that may be the ones."""
        of_rows = [None, *self.known.get(len(new), [])]
        of_columns = [None, *self.known.get(new.shape[1], [])]
        for columns in of_columns:
            rows = order_of_rows(new, _put(old, None, columns))
            if rows is not None:
                yield rows, columns
        for known in of_rows:
            columns = order_of_rows(new.T, _put(old, known, None).T)
            if columns is not None:
                yield known, columns
        yield from (
            (r, c) for r, c in product(of_rows, of_columns) if r is not None or c is not None
        )

    def _learn(self, order: Tensor | None) -> None:
        if order is None:
            return
        known = self.known.setdefault(len(order), [])
        if len(known) < KNOWN and not any(torch.equal(order, x) for x in known):
            known.append(order)


def order_of_rows(new_RC: Tensor, old_RC: Tensor) -> Tensor | None:
    """Return for each row the row of the old matrix that has its values; None if one has none.

    Compared are the largest values of each row, at their places. Rows without a value get the rows
    that are left over. An order that changes nothing is none.
    """
    rows = len(new_RC)
    if rows > MOST or new_RC.shape[1] < FINGER:
        return None
    some = (new_RC != 0).any(1).nonzero().flatten()
    glance = some[:: max(1, len(some) // GLANCE)]
    if len(some) == 0 or not all(bool(x.any()) for _, x in _matches(glance, new_RC, old_RC)):
        return None
    order, free = [-1] * rows, set(range(rows))
    for row, same_R in _matches(some, new_RC, old_RC):
        chosen = next((x for x in same_R.nonzero().flatten().tolist() if x in free), None)
        if chosen is None:
            return None
        order[row] = chosen
        free.discard(chosen)
    left = iter(sorted(free))
    found = torch.tensor([next(left) if x < 0 else x for x in order])
    return None if torch.equal(found, torch.arange(rows)) else found


def _matches(rows: Tensor, new_RC: Tensor, old_RC: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each row with a mark for every old row that has its largest values at their places."""
    for some in rows.split(max(1, CELLS // (len(old_RC) * FINGER))):
        new_SC = new_RC[some]
        places_SK = new_SC.abs().topk(FINGER, dim=1).indices
        wanted_SK = new_SC.gather(1, places_SK)
        same_RS = ((old_RC[:, places_SK] == wanted_SK) | (wanted_SK == 0)).all(2)
        yield from zip(some.tolist(), same_RS.T, strict=True)


def _put(old: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    old = old if rows is None else old[rows]
    return old if columns is None else old[:, columns]
