"""The number of units of each module to remove."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from ...base.errors import InputError
from ..views import Unit, UnitsView

Key = tuple[int, Unit]
"""BlockView, and kind of unit."""
Counts = Mapping[Key, int]


def removable(modules: Sequence[UnitsView]) -> int:
    """Count the parameters in all units of these modules."""
    return sum(module.units * module.parameters for module in modules)


def costs(modules: Sequence[UnitsView]) -> dict[Key, int]:
    """Count the parameters of one unit of each module, as it is now."""
    return {(module.block, module.unit): module.parameters for module in modules}


def removed(cost: Mapping[Key, int], counts: Counts) -> int:
    """Count the parameters in the removed units."""
    return sum(counts[key] * parameters for key, parameters in cost.items())


def uniform(
    modules: Sequence[UnitsView],
    share: float,
    heads: Mapping[int, int] = MappingProxyType({}),
    capped: bool = True,
) -> dict[Key, int]:
    """Remove the same share of every block: heads first, then neurons until the share is met.

    ``floor(share · U)`` groups of heads are removed, or more if all neurons but one would not make
    up for the rest; or as many as ``heads`` has for a block. The rest of the block's parameters
    comes from its neurons. Never more than the share is removed, and less by at most one unit, as
    long as one unit of each module can stay. Not ``capped``: ``heads`` are removed even where they
    are more than the share.
    """
    counts: dict[Key, int] = {}
    for block, both in _by_block(modules).items():
        left = share * removable(both)
        neurons = sum((m.units - 1) * m.parameters for m in both if m.unit == "neurons")
        for module in both:  # heads come first
            count = left / module.parameters
            if module.unit == "heads":
                even = math.floor(share * module.units + 1e-9)
                needed = math.ceil((left - neurons) / module.parameters - 1e-9)
                asked = heads.get(block, max(even, needed))
                count = min(count, asked) if capped or block not in heads else asked
            count = min(max(math.floor(count + 1e-9), 0), module.units - 1)
            counts[block, module.unit] = count
            left -= count * module.parameters
    return counts


def _by_block(modules: Sequence[UnitsView]) -> dict[int, list[UnitsView]]:
    blocks: dict[int, list[UnitsView]] = {}
    for module in modules:
        blocks.setdefault(module.block, []).append(module)
    return blocks


@dataclass
class Quota:
    """How many units of each module to remove: known before, or by a threshold as scores come.

    Attributes:
        modules: to be pruned.
        share: of their parameters.
        counts: of each module; with a threshold those of blocks to come are not yet right.
        below: how many heads a threshold takes, by their scores (U, N); None: there is none.
        capped: whether the share limits what the threshold takes; neurons fill it up either way.
        found: how many heads of each block were below the threshold.
    """

    modules: Sequence[UnitsView]
    share: float
    counts: dict[Key, int]
    below: Callable[[Tensor], int] | None = None
    capped: bool = True
    found: dict[int, int] = field(default_factory=dict)

    def of(self, module: UnitsView, score_UN: Tensor) -> int:
        """Return the number for a module, by its scores.

        Heads come before the neurons of their block.
        """
        block = module.block
        if self.below is not None and module.unit == "heads":
            both = [m for m in self.modules if m.block == block]
            self.found[block] = self.below(score_UN)
            self.counts |= uniform(both, self.share, {block: self.found[block]}, self.capped)
        return self.counts[block, module.unit]


def adaptive(
    modules: Sequence[UnitsView],
    scores: Mapping[Key, Tensor],
    share: float,
    comparable: Container[Unit] = (),
) -> dict[Key, int]:
    """Remove the units with the lowest scores of all modules, up to the share.

    FLAP's "AL-AM": scores (U, N) are standardised over all channels of a module, so that attention
    and MLP, early and late blocks compare; a unit is worth the mean of its channels. Units go from
    the lowest on, as long as they fit into the budget; at least one of each module stays.

    Units of ``comparable`` kinds have scores that mean the same in every block, such as divergences
    between heads. Standardised over the two or three of a block these would be the same numbers
    whatever they were. They compete among themselves, as they are, for the share of their own
    parameters, and the other kinds fill up the rest.

    Reference: An et al. 2024 (AAAI), FLAP, arXiv:2312.11983: its adaptive search, "AL-AM".
    """
    counts = {(module.block, module.unit): 0 for module in modules}
    own = [module for module in modules if module.unit in comparable]
    others = [module for module in modules if module.unit not in comparable]
    raw = [scores[m.block, m.unit].double().cpu().mean(1) for m in own]
    counts |= _lowest_of_all(own, raw, share * removable(own))
    budget = share * removable(modules) - removed(costs(modules), counts)
    alike = [standardised(scores[m.block, m.unit]) for m in others]
    return counts | _lowest_of_all(others, alike, budget)


def _lowest_of_all(
    modules: Sequence[UnitsView], worth: Sequence[Tensor], budget: float
) -> dict[Key, int]:
    """Count the units of each module that are among the lowest of all and fit into the budget."""
    counts = {(module.block, module.unit): 0 for module in modules}
    if not modules:
        return counts
    value = torch.cat([*worth])
    which = torch.repeat_interleave(
        torch.arange(len(modules)), torch.tensor([len(worth_U) for worth_U in worth])
    )
    for unit in value.argsort(stable=True).tolist():
        module = modules[int(which[unit])]
        key = module.block, module.unit
        if counts[key] < module.units - 1 and module.parameters <= budget + 1e-6:
            counts[key] += 1
            budget -= module.parameters
    return counts


def standardised(score_UN: Tensor) -> Tensor:
    """Compute ``(mean_n S[u, n] − mean) / std`` over finite scores, (U,); 0 if all are equal."""
    score_UN = score_UN.double().cpu()
    finite = score_UN[score_UN.isfinite()]
    if len(finite) < 2 or not float(finite.std()) > 0:
        return torch.where(score_UN.isfinite().all(1), 0.0, math.inf).double()
    return ((score_UN - finite.mean()) / finite.std()).mean(1)


def check(modules: Sequence[UnitsView], counts: Counts, share: float) -> None:
    """Raise InputError if nothing would be removed, or if the share is out of reach."""
    gone = removed(costs(modules), counts)
    total, blocks = removable(modules), {m.block for m in modules}
    if not gone:
        least = min(module.parameters for module in modules)
        raise InputError(
            f"Nothing would be removed: {share:g} of the parameters in these units is "
            f"{share * total / len(blocks):,.0f} per block, but the smallest unit has {least:,}. "
            f"Remove more{', or use --allocation adaptive' if share * total >= least else ''}."
        )
    short = share * total - gone
    if short > 0.02 * total and all(counts[m.block, m.unit] == m.units - 1 for m in modules):
        raise InputError(
            f"{share:g} cannot be removed: one unit of each module must stay, so at most "
            f"{gone / total:.3g} can be. Remove less."
        )


def share_of(modules: Sequence[UnitsView], parameters: int) -> float:
    """Return the share that a budget in parameters is."""
    total = removable(modules)
    if not 0 < parameters < total:
        raise InputError(
            f"--parameters is the number to remove, above 0 and below the {total:,} in the "
            f"heads and neurons of these blocks; got {parameters:,}."
        )
    return parameters / total
