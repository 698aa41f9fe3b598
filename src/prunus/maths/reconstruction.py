"""Block reconstruction: new values for the kept weights, from the error at the block's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..base.errors import InputError, at_least, one_of
from ..base.team import ALONE, Team
from .contracts import Precision, Replay
from .held_out import held_out

EPSILON = 1e-8  # of Adam
SMALLEST = 1e-6  # size of a token, squared and in terms of the mean, that it counts with at least


@dataclass(frozen=True)
class Reconstruction:
    """Lower ``‖F(W, X) − F(W ⊙ M, X_p)‖²`` over the weights W that the mask M keeps, by Adam.

    The loss of a sample of T tokens has two parts,
    ``Σ_t ‖F_t − Y_t‖² / ‖Y_t‖² + whole · T Σ_t ‖F_t − Y_t‖² / Σ_t ‖Y_t‖²``. In the first, the
    squared error of what the block puts out for each token is relative to what it should be: blocks
    behind read what a norm has made of that, so its size does not count there. The second is that
    of all tokens, relative to all of them. In some block of many models the first token of a window
    becomes a hundred times as large as any other, and attention rests on it (Sun et al. 2024,
    "Massive Activations", arXiv:2402.17762). The first part alone would give it up, as one token of
    a thousand; the second alone would learn it and little else. Losses are in terms of the held-out
    loss at the start: 1 is the block as it was pruned.

    Adam's rate rises over the first ``warmup`` of all steps and then falls in a line to 0. Each
    layer has a rate in terms of its weights, ``rate · rms(W ⊙ M)``, so that nothing has to be tuned
    to the size of a model. A weight that is 0 has a gradient of 0 and stays 0.

    A quarter of the samples (``held_out``) is not learned from, and has no text in common with the
    others. After each pass over those it says how good the weights are, and the best of all passes
    are kept: the old ones, if none was better.

    Attributes:
        span: what is reconstructed together: a ``"block"``, or each ``"half"`` of it, first
            attention and then the MLP.
        reference: what the output is compared with. ``"dense"``: the dense block on the dense
            stream, F(W, X), which also asks the block to mend what the blocks before it have
            broken. ``"pruned"``: the dense block on the pruned stream, F(W, X_p).
        steps: at least so many, rounded up to whole passes over the samples.
        passes: over the samples, at least so many: much text teaches more in several.
        batch: samples in a step.
        rate: Adam's, in terms of the root mean square of a layer's kept weights.
        beta1: how slowly Adam's mean of the gradients forgets.
        beta2: the same of their squares.
        decay: of the weights in each step, times the rate.
        warmup: share of the steps in which the rate rises.
        held_out: share of the samples that judge. 0: all are learned from, and judge.
        patience: passes without a better one after which it ends early; 0: never.
        norms: whether biases and the weights of norms learn too.
        precision: of the products of matrices while learning, and while judging.
        whole: how much the second part of the loss counts.

    Reference: Guo et al. 2024, "EBFT", arXiv:2402.12419, section 3: AdamW at 2e-4 for all layers
    alike, ten passes in batches of 8, no samples held out.
    """

    span: Literal["block", "half"] = "block"
    reference: Literal["pruned", "dense"] = "dense"
    blocks: int = 1
    steps: int = 96
    passes: int = 4
    batch: int = 1
    rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    decay: float = 0.0
    warmup: float = 0.1
    held_out: float = 0.25
    patience: int = 3
    norms: bool = False
    precision: Precision = "model"
    whole: float = 1.0

    def __post_init__(self) -> None:
        one_of(
            self,
            span=("block", "half"),
            reference=("pruned", "dense"),
            precision=get_args(Precision),
        )
        at_least(1, blocks=self.blocks, steps=self.steps, passes=self.passes, batch=self.batch)
        if self.span == "half" and self.blocks > 1:
            raise InputError(
                f"--set reconstruct.blocks={self.blocks} has whole blocks learn together, and "
                "--reconstruct half each half of one. Give --reconstruct block."
            )
        if not self.rate > 0:
            raise InputError(f"rate is {self.rate:g}; it must be above 0.")
        if not all(0 <= x < 1 for x in (self.beta1, self.beta2, self.warmup, self.held_out)):
            raise InputError(
                "beta1, beta2, warmup and held_out are at least 0 and below 1; got "
                f"{self.beta1:g}, {self.beta2:g}, {self.warmup:g}, {self.held_out:g}."
            )
        at_least(0, decay=self.decay, patience=self.patience, whole=self.whole)

    def judges(self, samples: int, groups: Sequence[int] = ()) -> list[int]:
        """Return the samples that are held out: spread evenly, and at least one.

        Args:
            samples: how many there are.
            groups: of samples that have text in common, which stay together; none: none have.

        Raises:
            InputError: a single sample leaves none to learn from.
        """
        if self.held_out == 0:
            return []
        if samples < 2:
            raise InputError(
                "--reconstruct learns from some calibration samples and is judged by others, so it "
                f"needs at least 2; got {samples}. Give more --samples, or --set "
                "reconstruct.held_out=0 to learn from all without a judge."
            )
        share = self.held_out
        even = [i for i in range(samples) if int((i + 1) * share) > int(i * share)]
        even = (even or [samples - 1])[: samples - 1]
        rest = [i for i in range(samples) if i not in even]
        return held_out(groups or range(samples), len(even), even + rest)

    def steps_over(self, teachers: int) -> int:
        """Return how many steps are made at most: whole passes over the samples that teach."""
        each = math.ceil(teachers / self.batch)
        return max(math.ceil(self.steps / each), self.passes) * each

    def work_over(self, samples: int) -> int:
        """Return how many forwards of a sample that takes at most; a gradient counts as two more.

        With ``patience`` it may take fewer.
        """
        judges = len(self.judges(samples))
        teachers = samples - judges
        passes = self.steps_over(teachers) // math.ceil(teachers / self.batch)
        return 3 * teachers * passes + (judges or teachers) * (passes + 1)

    def descend(
        self,
        weights: Mapping[str, Tensor],
        replay: Replay,
        *,
        groups: Sequence[int] = (),
        begun: State | None = None,
        keep: Callable[[State, bool], None] = lambda state, finished: None,
        stepped: Callable[[int, int], None] = lambda done, total: None,
        team: Team = ALONE,
    ) -> Reconstructed:
        """Return better values for all weights that are not 0.

        Of several processes each has its own samples; gradients and losses are summed.

        Args:
            weights: of pruned layers (O, I), or other parameters, by name.
            replay: what comes out with other weights, and what should.
            groups: of samples that have text in common: they judge, or teach, together.
            begun: where an earlier run was interrupted.
            keep: given the state after each step, to be continued from later, and at the end, with
                whether that is the end.
            stepped: called after each step with (done, at most).
            team: the processes that learn together.
        """
        judges = self.judges(replay.samples, groups)
        teachers = [i for i in range(replay.samples) if i not in judges]
        course = _Course.of(self, weights, replay, teachers, judges or teachers, team)
        state = begun or course.start(weights)
        total = self.steps_over(len(teachers))
        while self._goes_on(state, total):
            state.losses.append(course.descend(state, self._slowed(state.step, total)))
            if state.step % course.each == 0:
                course.look(state)
            keep(state, False)
            stepped(state.step, total)
        keep(state, True)
        return state.result(weights, course.each)

    def _goes_on(self, state: State, total: int) -> bool:
        """Whether there is another step: not without an error, nor once it is NaN or inf."""
        best = min(range(len(state.held)), key=lambda i: state.held[i])
        rested = 0 < self.patience <= len(state.held) - 1 - best
        sound = all(map(math.isfinite, [state.unit, *state.losses[-1:], *state.held]))
        return state.step < total and state.unit > 0 and sound and not rested

    def _slowed(self, step: int, total: int) -> float:
        """Return the part of the rate that a step has."""
        rising = self.warmup * total
        return min((step + 1) / (rising + 1), (total - step) / max(total - rising, 1))


@dataclass(frozen=True)
class Reconstructed:
    """The result of a descent.

    Attributes:
        weights: the best that were seen, in the dtypes that they had.
        losses: of every step, on the samples that it learned from.
        means: of the losses of each pass.
        held: the held-out loss before the first step and after each pass; 1 at the start.
        unit: what 1 stands for: the loss of a held-out sample, in the mean.
    """

    weights: dict[str, Tensor]
    losses: list[float]
    means: list[float]
    held: list[float]
    unit: float

    @property
    def best(self) -> float:
        """The held-out loss of these weights."""
        return min(self.held)


@dataclass
class State:
    """Where a descent is; all that it needs to continue.

    Attributes:
        weights: as they are, in float32 or wider.
        means: of gradients, Adam's.
        squares: of squared gradients.
        best: the weights with the lowest held-out loss so far.
        unit: see ``Reconstructed``.
        losses: of the steps so far.
        held: held-out losses.
    """

    weights: dict[str, Tensor]
    means: dict[str, Tensor]
    squares: dict[str, Tensor]
    best: dict[str, Tensor]
    unit: float
    losses: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=lambda: [1.0])

    @property
    def step(self) -> int:
        """How many have been made."""
        return len(self.losses)

    def result(self, weights: Mapping[str, Tensor], each: int) -> Reconstructed:
        """Return the best weights, in the dtypes of these; ``each`` steps are a pass."""
        best = {name: x.to(weights[name].dtype) for name, x in self.best.items()}
        passes = [self.losses[i : i + each] for i in range(0, len(self.losses), each)]
        means = [sum(losses) / len(losses) for losses in passes]
        return Reconstructed(best, self.losses, means, self.held, self.unit)


PARTS = ("weights", "means", "squares", "best")


def tensors_of(state: State) -> dict[str, Tensor]:
    """Return the state as tensors by name, for a file."""
    found = {f"{part}/{n}": x for part in PARTS for n, x in getattr(state, part).items()}
    numbers = {"losses": state.losses, "held": state.held, "unit": [state.unit]}
    return found | {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}


def state_of(tensors: Mapping[str, Tensor]) -> State:
    """Return the state of which these are the tensors."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if name:
            parts[part][name] = tensor
    losses, held = tensors["losses"].tolist(), tensors["held"].tolist()
    return State(**parts, unit=float(tensors["unit"]), losses=losses, held=held)


@dataclass(frozen=True)
class _Course:
    """The samples of a descent, and what is done with them."""

    how: Reconstruction
    kept: dict[str, Tensor]
    rates: dict[str, float]
    replay: Replay
    teachers: list[int]
    judges: list[int]
    team: Team

    @classmethod
    def of(cls, how: Reconstruction, weights: Mapping[str, Tensor], *rest: Any) -> _Course:
        """Note which weights learn, and how fast: of a vector all, of a matrix those not 0."""
        kept = {name: (x != 0) | (x.ndim == 1) for name, x in weights.items()}
        rates = {
            name: how.rate * float(_wide(x)[kept[name]].square().mean().sqrt())
            for name, x in weights.items()
            if bool(kept[name].any())
        }
        return cls(how, kept, rates, *rest)

    @property
    def each(self) -> int:
        """How many steps make a pass."""
        return math.ceil(len(self.teachers) / self.how.batch)

    def start(self, weights: Mapping[str, Tensor]) -> State:
        own, best = ({n: _wide(x.detach()).clone() for n, x in weights.items()} for _ in range(2))
        means, squares = ({n: torch.zeros_like(x) for n, x in own.items()} for _ in range(2))
        return State(own, means, squares, best, self._judged(weights))

    def _batch(self, step: int) -> list[int]:
        """Return the samples of a step; each pass has an order of its own."""
        done, part = divmod(step, self.each)
        order = torch.randperm(len(self.teachers), generator=torch.Generator().manual_seed(done))
        chosen = order[part * self.how.batch : (part + 1) * self.how.batch].tolist()
        return [self.teachers[i] for i in chosen]

    def descend(self, state: State, slowed: float) -> float:
        """Make one step at this part of the rate; return the loss before it."""
        grads, loss = self.gradient(state.weights, state.unit, self._batch(state.step))
        for name, grad in grads.items():
            self._adam(state, name, grad, slowed)
        return loss

    def gradient(
        self, weights: Mapping[str, Tensor], unit: float, batch: Sequence[int]
    ) -> tuple[dict[str, Tensor], float]:
        """Return the gradient of a batch's mean loss for the kept weights, and that loss."""
        leaves = {name: x.detach().requires_grad_() for name, x in weights.items()}
        sums = {name: torch.zeros_like(x) for name, x in weights.items()}
        error = 0.0
        for sample in filter(self.replay.has, batch):
            with torch.enable_grad():
                loss = self._error(sample, leaves) / (unit * len(batch))
                found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            error += float(loss.detach())
            for name, grad in zip(leaves, found, strict=True):
                if grad is not None:
                    sums[name] += grad
        for name, total in sums.items():
            self.team.sum_(total)
            total *= self.kept[name]
        return sums, self.team.total(error)[0]

    def _adam(self, state: State, name: str, grad: Tensor, slowed: float) -> None:
        """``w ← w − η (m̂ / (√v̂ + ε) + λ w)`` for the weights that are not 0."""
        how, weight = self.how, state.weights[name]
        mean, square = state.means[name], state.squares[name]
        mean.lerp_(grad, 1 - how.beta1)
        square.lerp_(grad.square(), 1 - how.beta2)
        done = state.step + 1
        # Nothing beside EPSILON; but the root of exactly 0 can take eighty times as long.
        squared = (square / (1 - how.beta2**done)).add_(EPSILON**4)
        size = squared.sqrt_().add_(EPSILON)
        move = (mean / (1 - how.beta1**done)).div_(size)
        weight.sub_((move + how.decay * weight).mul_(self.rates.get(name, 0.0) * slowed))

    def look(self, state: State) -> None:
        """Judge the weights, and keep them if they are the best so far."""
        found = self._judged(state.weights) / state.unit
        if found < min(state.held):
            for name, weight in state.weights.items():
                state.best[name].copy_(weight)
        state.held.append(found)

    @torch.no_grad()
    def _judged(self, weights: Mapping[str, Tensor]) -> float:
        own = [float(self._error(i, weights)) for i in self.judges if self.replay.has(i)]
        return self.team.total(sum(own))[0] / len(self.judges)

    def _error(self, sample: int, weights: Mapping[str, Tensor]) -> Tensor:
        target_TD = _wide(self.replay.target(sample)).flatten(0, -2)
        error_TD = _wide(self.replay.forward(sample, weights)).flatten(0, -2) - target_TD
        size_T = target_TD.square().sum(1)
        mean = size_T.mean().clamp_min(torch.finfo(size_T.dtype).tiny / SMALLEST)
        counts_T = 1 / size_T.maximum(SMALLEST * mean) + self.how.whole / mean
        return (error_TD.square().sum(1) * counts_T).sum()


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
