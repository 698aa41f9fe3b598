"""The contracts between parts. The loop knows only one of them: BlockPruner.

Implementations are frozen dataclasses whose fields are their whole configuration: ``repr`` goes to
the log, the fields to the recipe and to ``--set``. Everything here is a pure function of tensors;
only the loop touches modules, hooks, devices and files. Shape suffixes: see ``stats``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from .grids.grid import Quantized
from .stats import Statistic, Statistics
from .views import BlockView, LayerView

if TYPE_CHECKING:
    from .orders.ordering import Ordering

Needs = tuple[type[Statistic], ...]
Share = float | Fraction | Tensor
"""The fraction of a layer's weights to remove; a tensor (O,) has one for each row."""
Plan = Mapping[str, Share]
"""The share of each layer to prune, by layer name; a layer that is not named stays dense."""


def requested(share: Share) -> float:
    """Return a share as one number; of shares of rows, their mean."""
    return float(share.double().mean()) if isinstance(share, Tensor) else float(share)


class Score(Protocol):
    """Importance of keeping weight (o, i), shape (O, I), float32; higher is kept."""

    @property
    def needs(self) -> Needs:
        """The statistics that the score reads."""
        ...

    def __call__(self, weight_OI: Tensor, stats: Statistics) -> Tensor: ...


class Pattern(Protocol):
    """The admissible masks, and the best of them for a score."""

    @property
    def group_size(self) -> int | None:
        """M of N:M; None where any weights may be compared."""
        ...

    def at(self, sparsity: Share) -> Pattern:
        """Return the pattern that a layer of this sparsity ends up with."""
        ...

    def check(self, shape_OI: tuple[int, int], sparsity: Share) -> None:
        """Raise PatternError if a layer of this shape cannot have the pattern."""
        ...

    def mask(self, score_OI: Tensor, sparsity: Share) -> Tensor:
        """Return the bool mask (O, I), True = kept, with the highest retained score."""
        ...


class Permutation(Protocol):
    """An order of the input channels under which the pattern keeps more of the score."""

    def __call__(self, score_OI: Tensor, pattern: Pattern, sparsity: Share) -> Tensor: ...


class Refinement(Protocol):
    """A better mask of the same pattern and sparsity."""

    @property
    def needs(self) -> Needs:
        """The statistics that the refinement reads."""
        ...

    def __call__(
        self, weight_OI: Tensor, mask_OI: Tensor, stats: Statistics, pattern: Pattern
    ) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the mask, and notes for the report."""
        ...


class Update(Protocol):
    """New values for the kept weights on a fixed mask; exactly 0 elsewhere."""

    @property
    def needs(self) -> Needs:
        """The statistics that the update reads."""
        ...

    def __call__(self, weight_OI: Tensor, mask_OI: Tensor, stats: Statistics) -> Tensor: ...


@runtime_checkable
class ReportingUpdate(Protocol):
    """An update that reports something about each layer: a certificate, a raised damp."""

    def solve(
        self, weight_OI: Tensor, mask_OI: Tensor, stats: Statistics
    ) -> tuple[Tensor, Mapping[str, Any]]:
        """Return what ``__call__`` returns, and notes for the report."""
        ...


@dataclass(frozen=True)
class Pruned:
    """The result of pruning one layer."""

    weight_OI: Tensor
    """Exactly 0 wherever ``mask_OI`` is False."""
    mask_OI: Tensor
    """bool, True = kept."""
    order_I: Tensor | None = None
    """The pattern holds for ``mask_OI[:, order_I]``; None: as stored."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the report should say about this layer."""
    quantized: Quantized | None = None
    """The integers, where the file will hold them in place of the weight."""


class LayerPruner(Protocol):
    """A rule that prunes one linear layer. ``Compose`` builds one from parts."""

    @property
    def needs(self) -> Needs:
        """The statistics that the pruner reads."""
        ...

    @property
    def pattern(self) -> Pattern:
        """The pattern of the masks that the pruner makes."""
        ...

    def __call__(self, weight_OI: Tensor, stats: Statistics, sparsity: Share) -> Pruned: ...


class BlockPruner(Protocol):
    """A rule that prunes one block. ``EachLayer`` makes one of a LayerPruner."""

    @property
    def needs(self) -> Needs:
        """The statistics to gather at every site."""
        ...

    @property
    def ordering(self) -> Ordering | None:
        """The orders that the channels are put into first; None leaves them as stored."""
        ...

    def pattern(self, layer: LayerView) -> Pattern:
        """Return the pattern of this layer's mask, for checks before and after the run."""
        ...

    def check(self, block: BlockView, plan: Plan) -> None:
        """Raise InputError, with the layer's name, if this block cannot be pruned."""
        ...

    def __call__(
        self, block: BlockView, stats: Mapping[str, Statistics], plan: Plan
    ) -> Iterator[tuple[LayerView, Pruned]]:
        """Yield the planned layers one by one; the loop writes each before it asks for more."""
        ...


Precision = Literal["model", "bfloat16"]
"""What the products of matrices in a replay are computed in: the model's dtype, or bfloat16, which
new processors multiply twice as fast as float32 or more; sums, norms and what is learned stay in
the dtypes that they have."""


class Replay(Protocol):
    """The recorded calls of one block or several, with weights substituted: differentiable."""

    @property
    def samples(self) -> int:
        """The number of calls, in all processes."""
        ...

    def has(self, sample: int) -> bool:
        """Return whether this process can replay that sample."""
        ...

    def forward(self, sample: int, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the output (B, T, d) with these weights (O, I), by layer name.

        Other parameters are by their full names, as stored.
        """
        ...

    def target(self, sample: int) -> Tensor:
        """Return the output that the sample should have."""
        ...


def parameter_of(layer: str, expert: int | None) -> str:
    """Return the full name of the parameter that holds a layer's weight."""
    return f"{layer}.weight" if expert is None else layer.removesuffix(f".{expert}")
