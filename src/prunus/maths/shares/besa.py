"""BESA: the share of each layer or row to remove, learned from the error at the block's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...base.errors import InputError, at_least, one_of
from ...base.team import ALONE, Team
from ..contracts import Needs, Precision, Replay, Score
from ..grids import Grid
from ..scores import Wanda
from .kept import Ranks, Rule, Shares, flattest

WINDOW = 16  # steps whose mean loss is reported; samples that make the unit
OPEN = 4.0  # logit of a clipping strength at the start: 0.982


@dataclass(frozen=True)
class Learned:
    """The result of a run of gradient descent.

    Attributes:
        shares: by layer, of each of its rows (O,), before the budget is made exact.
        losses: of every step, reconstruction alone; 1 is the uniform mask's, in the mean.
        clipping: γ0 and γ1 (2, O, G) by layer, where they were learned too.
    """

    shares: dict[str, Tensor]
    losses: list[float]
    clipping: dict[str, Tensor]


@dataclass(frozen=True)
class Budget:
    """Layers that share one sparsity target.

    Attributes:
        layers: by name.
        share: of all their weights that is to go.
    """

    layers: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class BESA:
    """Equation (1): ``‖F(W, X_p) − F(W ⊙ M, X_p)‖² / unit + penalty · (k / k̂ − 1)²``.

    The unit is that loss for the uniform mask, so nothing has to be tuned to the size of a model.
    Adam on the logits of the ``Shares``, one sample a step, its rate falling to 0 over all steps.
    Steps come in whole epochs, so every sample is used equally often. With a grid the weights
    are quantised before they are masked (section 3.3), and the logits of the clipping strengths γ0
    and γ1 descend with those of the shares.

    Attributes:
        score: in whose order weights go; the paper's is Wanda.
        per: ``"row"``, or ``"layer"``: one share for all rows of a layer.
        granularity: what meets the target together: ``"block"``, ``"two-blocks"`` (with the error
            measured behind the second) or ``"attention-mlp"``: each half of a block apart.
        reference: what the output is compared with. ``"pruned"``: the dense block on the pruned
            stream, F(W, X_p). Equation (1) prints the same X on both sides, and the authors' code
            does this where it learns shares of rows. ``"dense"``: the dense block on the dense
            stream, F(W, X_fp), as algorithm 1 prints it and as the authors' code does for shares
            of layers (``--prune-dense``). Behind the first blocks, what came in with the inputs
            outweighs what a mask can change, and shares follow noise: on SmolLM2-135M at 60 %
            70.97 instead of 60.09; with a share for each layer 166.33, where Wanda has 120.03.
        rule: how shares become masks while learning; see ``Shares.hard``.
        norm: ``"frobenius"`` of equation (1), or ``"channel"``: each channel's error by the norm of
            its reference, as in the authors' code.
        candidates: D.
        epochs: passes over all samples; the paper makes 1 over 128. 0: as many as make ``steps``.
        steps: at least so many, rounded up to whole epochs, where ``epochs`` is 0.
        rate: Adam's.
        penalty: λ, on the relative deviation from the target.
        rest: mean movement of a share at which learning stops early: only at the end of an epoch,
            and over at least 16 steps. 0: never.
        grid: of joint quantisation; None: weights keep their values.
        clip_rate: Adam's, for the clipping strengths.
        precision: of the products of matrices while learning.

    Reference: Xu et al. 2024 (ICLR), arXiv:2402.16880, section 3. Their code takes Prodigy with a
    coefficient for each model size.
    """

    score: Score = Wanda()
    per: Literal["row", "layer"] = "row"
    granularity: Literal["attention-mlp", "block", "two-blocks"] = "block"
    reference: Literal["dense", "pruned"] = "pruned"
    rule: Rule = "probability"
    norm: Literal["frobenius", "channel"] = "frobenius"
    candidates: int = 100
    epochs: int = 0
    steps: int = 64
    rate: float = 0.1
    penalty: float = 20.0
    rest: float = 1e-3
    grid: Grid | None = None
    clip_rate: float = 0.01
    precision: Precision = "model"

    def __post_init__(self) -> None:
        one_of(
            self,
            per=("row", "layer"),
            granularity=("attention-mlp", "block", "two-blocks"),
            reference=("dense", "pruned"),
            rule=("probability", "count"),
            norm=("frobenius", "channel"),
            precision=get_args(Precision),
        )
        if not 2 <= self.candidates <= 1000 or self.steps < 1 or not self.rate > 0:
            raise InputError(
                "BESA needs 2 to 1000 candidates, at least one step, and a positive rate; got "
                f"{self.candidates}, {self.steps}, {self.rate:g}."
            )
        at_least(0, epochs=self.epochs, rest=self.rest)

    @property
    def needs(self) -> Needs:
        """The statistics of the score."""
        return self.score.needs

    def steps_over(self, samples: int) -> int:
        """Return how many steps are made at most, of whole epochs."""
        return (self.epochs or math.ceil(self.steps / samples)) * samples

    @property
    def span(self) -> int:
        """The number of blocks that learn together."""
        return 2 if self.granularity == "two-blocks" else 1

    def learn(
        self,
        weights: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        budgets: Sequence[Budget],
        replay: Replay,
        stepped: Callable[[int, int], None] = lambda done, total: None,
        team: Team = ALONE,
    ) -> Learned:
        """Learn the shares by gradient descent.

        Each step reads one sample. Of several processes the one that has it makes the step, and
        gives its gradient to the others.

        Args:
            weights: of the layers that are to be pruned, (O, I), by name.
            scores: of the same.
            budgets: every layer in one of them.
            replay: what comes out with other weights, and what should.
            stepped: called after each step with (done, at most).
            team: the processes that learn together, each with its own samples.
        """
        state = _State(self, weights, scores, budgets)
        with torch.no_grad():
            first, uniform = range(min(replay.samples, WINDOW)), state.masked()
            own = [float(self._error(replay, i, uniform)) if replay.has(i) else 0.0 for i in first]
            unit = sum(team.total(*own)) / len(first)
        losses: list[float] = [] if math.isfinite(unit) else [unit]
        total = self.steps_over(replay.samples)
        looked, before = 0, state.shares()
        for step in range(total if unit > 0 and not losses else 0):
            sample, error, loss = step % replay.samples, 0.0, None
            if replay.has(sample):
                found = self._error(replay, sample, state.masked()) / unit
                error, loss = float(found.detach()), found + self.penalty * state.deviation()
            state.descend(loss, 1 - step / total, team)
            losses.append(team.total(error)[0])
            stepped(step + 1, total)
            if sample + 1 == replay.samples and step + 1 - looked >= WINDOW:
                looked, last, before = step + 1, before, state.shares()
                if _moved(last, before) < self.rest:
                    break
        return Learned(state.shares(), losses, state.clipping())

    def _error(self, replay: Replay, sample: int, weights: Mapping[str, Tensor]) -> Tensor:
        target_TD = replay.target(sample).flatten(0, -2).float()
        error_TD = replay.forward(sample, weights).flatten(0, -2).float() - target_TD
        if self.norm == "frobenius":
            return error_TD.square().sum()
        size_D = target_TD.square().sum(0).clamp_min(1e-12)
        return (error_TD.square().sum(0) / size_D).mean()


class _State:
    """The logits during the descent."""

    def __init__(
        self,
        besa: BESA,
        weights: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        budgets: Sequence[Budget],
    ) -> None:
        self.besa, self.weights, self.budgets = besa, weights, budgets
        self.ranks = {name: Ranks.of(scores[name], besa.candidates) for name in weights}
        self.logits = {
            name: self._start(name, budget.share) for budget in budgets for name in budget.layers
        }
        groups = [{"params": list(self.logits.values()), "lr": besa.rate}]
        self.clips = {name: self._open(name) for name in weights} if besa.grid else {}
        if self.clips:
            groups.append({"params": list(self.clips.values()), "lr": besa.clip_rate})
        self.optimiser = torch.optim.Adam(groups)
        self.rates = [float(group["lr"]) for group in self.optimiser.param_groups]
        self.gone: dict[str, Tensor] = {}

    def _start(self, name: str, share: float) -> Tensor:
        weight_OI = self.weights[name]
        rows = len(weight_OI) if self.besa.per == "row" else 1
        logit_D = flattest(share, self.besa.candidates, self.besa.rule).to(weight_OI.device)
        return logit_D.repeat(rows, 1).requires_grad_()

    def _open(self, name: str) -> Tensor:
        weight_OI = self.weights[name]
        assert self.besa.grid is not None
        shape = (2, len(weight_OI), self.besa.grid.groups(weight_OI.shape[1]))
        return torch.full(shape, OPEN, device=weight_OI.device, requires_grad=True)

    def masked(self) -> dict[str, Tensor]:
        """Return every weight as masked; note how much of each is removed."""
        masked = {}
        for name in self.weights:
            shares = Shares.of(self.logits[name])
            keep_OI = shares.hard(self.ranks[name], self.besa.rule)
            self.gone[name] = shares.counted(keep_OI)
            masked[name] = shares.masked(self._quantised(name), self.ranks[name], keep_OI)
        return masked

    def deviation(self) -> Tensor:
        """Return ``Σ (k / k̂ − 1)²`` over the budgets, of the masks made last."""
        total = torch.zeros(())
        for budget in self.budgets:
            sizes = [self.weights[name].numel() for name in budget.layers]
            gone = [self.gone[name] * n for name, n in zip(budget.layers, sizes, strict=True)]
            total = total + (torch.stack(gone).sum() / (sum(sizes) * budget.share) - 1).square()
        return total

    def descend(self, loss: Tensor | None, slowed: float, team: Team) -> None:
        """Make one step of Adam, at this part of its rates; ``loss`` is None but in one process."""
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * slowed
        leaves = [leaf for group in self.optimiser.param_groups for leaf in group["params"]]
        if loss is None:
            grads = [torch.zeros_like(leaf) for leaf in leaves]
        else:  # backward() would leave gradients on the model's norms
            grads = [grad.contiguous() for grad in torch.autograd.grad(loss, leaves)]
        for leaf, grad in zip(leaves, grads, strict=True):
            team.sum_(grad)
            leaf.grad = grad
        self.optimiser.step()

    @torch.no_grad()
    def shares(self) -> dict[str, Tensor]:
        """Return the removed share of each row (O,), by layer."""
        found = {}
        for name, logit_RD in self.logits.items():
            keep_OI = Shares.of(logit_RD).hard(self.ranks[name], self.besa.rule)
            found[name] = 1 - keep_OI.float().mean(1)
        return found

    @torch.no_grad()
    def clipping(self) -> dict[str, Tensor]:
        """Return the clipping strengths."""
        return {name: clip.sigmoid() for name, clip in self.clips.items()}

    def _quantised(self, name: str) -> Tensor:
        if self.besa.grid is None:
            return self.weights[name]
        low_OG, high_OG = self.clips[name].sigmoid()
        return self.besa.grid.fake(self.weights[name], low_OG, high_OG)


def _moved(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float:
    """Return how far a row's share has moved, on average."""
    moves = [(now[name] - before[name]).abs() for name in now]
    return float(torch.cat(moves).mean())
