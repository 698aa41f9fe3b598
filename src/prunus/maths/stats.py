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
    ``X[:, order_I]``. One that can be used where tokens count differently (``--set
    calibration.answers``) takes ``update(inputs_TI, weights_T)``: a token of weight 2 counts as two
    equal ones.
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
        self.tokens: float = 0  # their weights, where they have some

    def update(self, inputs_TI: Tensor, weights_T: Tensor | None = None) -> None:
        """Add the squares of more tokens; half-precision inputs are squared in float32."""
        inputs_TI = weighed(inputs_TI.float(), weights_T)
        self.sum_of_squares_I += inputs_TI.square().sum(0)
        self.tokens += count_of(inputs_TI, weights_T)

    def merge(self, team: Team) -> None:
        """Add up the sums and the counts of all processes."""
        team.sum_(self.sum_of_squares_I)
        self.tokens = team.total(self.tokens)[0]

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
    number, and is the same for the same tokens in any batch size. With weights the stride is one of
    weight: a token is taken once for each of its multiples within the token's share of the sum.
    """

    target = 128

    def __init__(self, features: int, device: torch.device) -> None:
        self._rows = [torch.zeros(0, features, dtype=torch.float32, device=device)]
        self._held, self._stride, self._tokens = 0, 1, 0
        self._seen: float = 0  # the sum of the tokens' weights

    def update(self, inputs_TI: Tensor, weights_T: Tensor | None = None) -> None:
        """Take the tokens whose running number is a multiple of the stride."""
        if weights_T is None:
            rows_TI = inputs_TI[int(-self._seen % self._stride) :: self._stride].float()
            self._seen += len(inputs_TI)
        else:
            rows_TI = inputs_TI[self._passed(weights_T).to(inputs_TI.device)].float()
        self._tokens += len(inputs_TI)
        self._rows.append(rows_TI.clone())  # a clone: the block may reuse its buffer
        self._held += len(rows_TI)
        while self._held >= 2 * self.target:
            self._halve()

    def _passed(self, weights_T: Tensor) -> Tensor:
        """Return the indices of the tokens to take, as often as a multiple of the stride is met."""
        ends_T = self._seen + weights_T.double().cpu().cumsum(0)
        starts_T = torch.cat([torch.tensor([self._seen], dtype=torch.float64), ends_T[:-1]])
        times_T = (ends_T / self._stride).ceil() - (starts_T / self._stride).ceil()
        self._seen = float(ends_T[-1]) if len(ends_T) else self._seen
        return torch.arange(len(weights_T)).repeat_interleave(times_T.long())

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
        self._held, self._seen = len(self._rows[0]), team.total(self._seen)[0]
        self._tokens = int(team.total(self._tokens)[0])
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
        new._tokens = self._tokens
        return new

    @property
    def inputs_TI(self) -> Tensor:
        """The sampled tokens, at most ``2 * target`` rows."""
        return torch.cat(self._rows)

    @property
    def tokens(self) -> int:
        """The number of tokens seen, sampled or not, whatever they weigh."""
        return self._tokens


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

    def update(self, inputs: Tensor, weights_T: Tensor | None = None) -> None:
        """Add a batch; ``inputs`` has shape (..., I). Each token may have a weight; None: all 1."""
        inputs_TI = inputs.flatten(0, -2)
        for statistic in self._by_kind.values():
            if weights_T is None:
                statistic.update(inputs_TI)
            else:
                cast(Any, statistic).update(inputs_TI, weights_T)

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
    """Statistics of a layer in another order of its inputs. Only what is read is permuted."""

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


def weighed(inputs_TI: Tensor, weights_T: Tensor | None) -> Tensor:
    """Return ``sqrt(w_t) · X[t]``, whose squares and products are those of X, times the weights."""
    return inputs_TI if weights_T is None else inputs_TI * weights_T.to(inputs_TI)[:, None].sqrt()


def count_of(inputs_TI: Tensor, weights_T: Tensor | None) -> float:
    """Return the number of tokens, or the sum of their weights in float64."""
    return len(inputs_TI) if weights_T is None else float(weights_T.double().sum())


def gather(
    inputs_TI: Tensor, needs: Iterable[type[Statistic]], weights_T: Tensor | None = None
) -> Statistics:
    """Summarise a plain activation matrix, so that any part can be used without a model.

    >>> from prunus.maths.scores import Wanda
    >>> inputs_TI = torch.tensor([[3.0, 0.0], [4.0, 2.0]])
    >>> stats = gather(inputs_TI, Wanda.needs)
    >>> Wanda()(torch.tensor([[2.0, -1.0]]), stats)
    tensor([[7.0711, 1.4142]])
    """
    stats = Statistics(needs, inputs_TI.shape[-1], inputs_TI.device)
    stats.update(inputs_TI, weights_T)
    return stats
