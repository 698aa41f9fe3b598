"""Statistics of a site's input, gathered over calibration tokens.

A tensor's name ends with its axes: ``weight_OI`` has shape (O, I). The legend for every module:

=  ========================================  =  =======================================
O  outputs of a layer (rows of W)            I  inputs of a layer (columns of W)
A  inputs, and a column of ones for a bias   V  vocabulary
S  samples; key positions; a chosen subset   T  tokens of a sample; query positions
L  tokens of a window; weights of a cell     B  batch; columns of one block of a sweep
G  comparison groups; groups with one grid   N  weights of a group; channels of a unit
M  weights of an N:M group; rows of a unit   K  boxes of M channels; the best few; kept set
P  pruned set; pairs                         R  some of the rows
U  units: heads, neurons; rows that trade    C  cells of such a unit
H  heads; the first columns up to a point    D  candidates for a share (BESA)
=  ========================================  =  =======================================

A site is the set of layers that read the same tensor (q/k/v; gate/up). They share its statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from ..base.errors import CalibrationError, MissingStatisticError
from ..base.team import ALONE, Team


class Statistic(Protocol):
    """A running float32 summary of one input tensor X.

    One that takes more than ``ENOUGH`` tokens to be worth more than no statistic at all has
    ``enough(features)``: how many.

    One that can be used with ``--permutation`` also has ``reordered(order_I)``: the same summary of
    ``X[:, order_I]``.
    """

    def __init__(self, features: int, device: torch.device) -> None: ...

    def update(self, inputs_TI: Tensor) -> None:
        """Add more tokens."""
        ...

    def merge(self, team: Team) -> None:
        """Make this the summary of all processes' tokens, with the same bits in each."""
        ...


S = TypeVar("S", bound=Statistic)
ENOUGH = 128  # measured: from here on Wanda's and RIA's outputs err less than magnitude's


class ColumnNorm:
    """Root mean square of each input feature over all tokens seen.

    ``rms_I[i] = sqrt(mean_t X[t, i]²)``: the papers' ``‖X_i‖₂`` divided by ``sqrt(T)``, one factor
    for the whole layer, so no mask changes and no sum of 10⁸ squares overflows.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.sum_of_squares_I = torch.zeros(features, dtype=torch.float32, device=device)
        self.tokens = 0

    def update(self, inputs_TI: Tensor) -> None:
        """Add the squares of more tokens; half-precision inputs are squared in float32."""
        self.sum_of_squares_I += inputs_TI.float().square().sum(0)
        self.tokens += len(inputs_TI)

    def merge(self, team: Team) -> None:
        """Add up the sums and the counts of all processes."""
        team.sum_(self.sum_of_squares_I)
        self.tokens = int(team.total(self.tokens)[0])

    def reordered(self, order_I: Tensor) -> ColumnNorm:
        """Return the same statistic of ``X[:, order_I]``."""
        new = ColumnNorm(len(order_I), order_I.device)
        new.sum_of_squares_I, new.tokens = self.sum_of_squares_I[order_I], self.tokens
        return new

    @property
    def rms_I(self) -> Tensor:
        """Root mean square per input feature, shape (I,)."""
        if not self.tokens:
            raise CalibrationError("No calibration token reached this layer; give more text.")
        return (self.sum_of_squares_I / self.tokens).sqrt()


class TokenSample:
    """An even sample of the tokens, large enough to measure a layer's output error.

    Keeps every ``stride``-th token; when twice ``target`` are held, every other one is dropped
    and the stride doubles. The sample is thus spread evenly over all tokens without knowing their
    number, and is the same for the same tokens in any batch size.
    """

    target = 128

    def __init__(self, features: int, device: torch.device) -> None:
        self._rows = [torch.zeros(0, features, dtype=torch.float32, device=device)]
        self._held, self._stride, self._seen = 0, 1, 0

    def update(self, inputs_TI: Tensor) -> None:
        """Take the tokens whose running number is a multiple of the stride."""
        rows_TI = inputs_TI[-self._seen % self._stride :: self._stride].float()
        self._seen += len(inputs_TI)
        self._rows.append(rows_TI.clone())  # a clone: the block may reuse its buffer
        self._held += len(rows_TI)
        while self._held >= 2 * self.target:
            self._halve()

    def _halve(self) -> None:
        kept_TI = torch.cat(self._rows)[::2]
        self._rows, self._held, self._stride = [kept_TI], len(kept_TI), 2 * self._stride

    def merge(self, team: Team) -> None:
        """Gather all processes' samples at the longest stride, then thin them out as above.

        One process's sample of all tokens, if every process's share of them is a whole number of
        strides; else some tokens beside those.
        """
        strides = team.gather(torch.tensor([self._stride]))
        while self._stride < int(strides.max()):
            self._halve()
        self._rows = [team.gather(self.inputs_TI)]
        self._held, self._seen = len(self._rows[0]), int(team.total(self._seen)[0])
        while self._held >= 2 * self.target:
            self._halve()

    def error(self, old_OI: Tensor, new_OI: Tensor) -> float | None:
        """Return ‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖; None where the layer puts out nothing."""
        inputs_TI, old_OI = self.inputs_TI, old_OI.float()
        size = (inputs_TI @ old_OI.T).norm()
        moved = (inputs_TI @ (old_OI - new_OI.float()).T).norm()
        return float(moved / size) if size > 0 else None

    def reordered(self, order_I: Tensor) -> TokenSample:
        """Return the same sample of ``X[:, order_I]``."""
        new = TokenSample(len(order_I), order_I.device)
        new._rows = [self.inputs_TI[:, order_I]]
        new._held, new._stride, new._seen = self._held, self._stride, self._seen
        return new

    @property
    def inputs_TI(self) -> Tensor:
        """The sampled tokens, at most ``2 * target`` rows."""
        return torch.cat(self._rows)

    @property
    def tokens(self) -> int:
        """The number of tokens seen, sampled or not."""
        return self._seen


class Statistics:
    """The statistics of one site, looked up by their type: ``stats[ColumnNorm].rms_I``.

    Attributes:
        team: the processes that have them all, and share the rows of what is solved with them.
        known: False where they are ``white`` for want of tokens.
    """

    team: Team = ALONE
    known = True

    def __init__(
        self, kinds: Iterable[type[Statistic]], features: int, device: torch.device | str = "cpu"
    ) -> None:
        self._by_kind: dict[type[Statistic], Statistic] = {
            kind: kind(features, torch.device(device)) for kind in kinds
        }

    def update(self, inputs: Tensor) -> None:
        """Add a batch; ``inputs`` has shape (..., I)."""
        inputs_TI = inputs.flatten(0, -2)
        for statistic in self._by_kind.values():
            statistic.update(inputs_TI)

    def merge(self, team: Team) -> None:
        """Make these the statistics of all processes' tokens."""
        if team.size > 1:
            for statistic in self._by_kind.values():
                statistic.merge(team)
        self.team = team

    @classmethod
    def white(
        cls, kinds: Iterable[type[Statistic]], features: int, device: torch.device | str = "cpu"
    ) -> Statistics:
        """Make statistics of unknown inputs: uncorrelated, each with mean square 1.

        The inputs are the rows of ``sqrt(I) · identity``. Where a score multiplies the weights with
        statistics only the weights are left of it: Wanda is magnitude, RIA relative importance;
        SparseGPT and MRP, whose Gram matrix is the identity, are magnitude with no update.
        """
        stats = cls(kinds, features, device)
        for start in range(0, features, 256):
            rows_TI = torch.zeros(min(256, features - start), features, device=device)
            rows_TI[:, start:].fill_diagonal_(features**0.5)
            stats.update(rows_TI)
        return stats

    def without_knowledge(self, white: Statistics) -> Statistics:
        """Return ``white`` in place of all but the sample, which measures the error."""
        stats = Statistics((), 0)
        stats._by_kind = {**white._by_kind, TokenSample: self[TokenSample]}
        stats.known, stats.team = False, self.team
        return stats

    def __getitem__(self, kind: type[S]) -> S:
        if kind not in self._by_kind:
            raise MissingStatisticError(
                f"{kind.__name__} was not gathered: name it in the `needs` of the part that reads "
                "it, or run with calibration text if this run had none."
            )
        return cast(S, self._by_kind[kind])

    def reordered(self, order_I: Tensor) -> Statistics:
        """Return the statistics of ``X[:, order_I]``; each is made on demand."""
        return _Reordered(self, order_I)

    def __contains__(self, kind: type[Statistic]) -> bool:
        return kind in self._by_kind


class _Reordered(Statistics):
    """The same statistics in another order. Only what is read is permuted."""

    def __init__(self, stored: Statistics, order_I: Tensor) -> None:
        super().__init__((), 0)
        self._stored, self._order_I = stored, order_I
        self.known, self.team = stored.known, stored.team

    def __getitem__(self, kind: type[S]) -> S:
        if kind not in self._by_kind:
            self._by_kind[kind] = cast(Any, self._stored[kind]).reordered(self._order_I)
        return cast(S, self._by_kind[kind])

    def __contains__(self, kind: type[Statistic]) -> bool:
        return kind in self._stored


def gather(inputs_TI: Tensor, needs: Iterable[type[Statistic]]) -> Statistics:
    """Summarise a plain activation matrix, so that any part can be used without a model.

    >>> from prunus.maths.scores import Wanda
    >>> inputs_TI = torch.tensor([[3.0, 0.0], [4.0, 2.0]])
    >>> stats = gather(inputs_TI, Wanda.needs)
    >>> Wanda()(torch.tensor([[2.0, -1.0]]), stats)
    tensor([[7.0711, 1.4142]])
    """
    stats = Statistics(needs, inputs_TI.shape[-1], inputs_TI.device)
    stats.update(inputs_TI)
    return stats
