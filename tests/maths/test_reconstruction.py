"""Block reconstruction on small functions: gradients, Adam, what is kept, what stays."""

from dataclasses import replace

import pytest
import torch

from prunus.base.errors import InputError
from prunus.base.team import ALONE
from prunus.maths.reconstruction import Reconstruction, _Course, state_of, tensors_of

ALL = {"held_out": 0.0, "patience": 0}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Small:
    """``x + tanh(x Uᵀ) Dᵀ + b``, a block of two layers and a bias."""

    def __init__(self, samples=8, noise=0.0, dtype=torch.float64):
        self.inputs = [random(1, 6, 4, seed=i).to(dtype) for i in range(samples)]
        self.dense = {"up": random(5, 4, seed=90), "down": random(4, 5, seed=91)}
        self.dense = {name: x.to(dtype) for name, x in self.dense.items()}
        shaken = [noise * random(1, 6, 4, seed=i + 50).to(dtype) for i in range(samples)]
        self.targets = [self.forward(i, self.dense) + shaken[i] for i in range(samples)]

    @property
    def samples(self):
        return len(self.inputs)

    def has(self, sample):
        return True

    def forward(self, sample, weights):
        up, down = (weights[name].to(self.inputs[0].dtype) for name in ("up", "down"))
        inputs = self.inputs[sample]
        out = inputs + torch.tanh(inputs @ up.T) @ down.T
        return out + weights["bias"] if "bias" in weights else out

    def target(self, sample):
        return self.targets[sample]

    def pruned(self):
        masks = {name: random(*x.shape, seed=7) > 0 for name, x in self.dense.items()}
        return {name: x * masks[name] for name, x in self.dense.items()}

    def loss(self, weights, samples):
        return float(self.error(weights, samples).detach())

    def error(self, weights, samples, whole=1.0):
        """Token by token: squared errors in terms of the target's square, and of all targets'."""
        total = 0.0
        for i in samples:
            sizes = [float((aim.double() ** 2).sum()) for aim in self.target(i)[0]]
            tokens = zip(self.forward(i, weights)[0], self.target(i)[0], sizes, strict=True)
            for out, aim, size in tokens:
                error = ((out.double() - aim.double()) ** 2).sum()
                total += error / size + whole * len(sizes) * error / sum(sizes)
        return total / len(samples)


def test_the_gradient_is_that_of_finite_differences_and_zero_where_a_weight_is_zero():
    small = Small()
    weights = small.pruned() | {"bias": torch.zeros(4, dtype=torch.float64)}
    course = _Course.of(Reconstruction(), weights, small, [0, 1, 2], [3], ALONE)
    grads, loss = course.gradient(weights, 2.0, [1, 2])
    assert loss == pytest.approx(small.loss(weights, [1, 2]) / 2)
    for name, weight in weights.items():
        for place in range(weight.numel()):
            moved = []
            for step in (1e-6, -1e-6):
                other = weight.clone()
                other.view(-1)[place] += step
                moved.append(small.loss({**weights, name: other}, [1, 2]) / 2)
            expected = (moved[0] - moved[1]) / 2e-6
            if name != "bias" and weight.view(-1)[place] == 0:
                assert grads[name].view(-1)[place] == 0
                assert abs(expected) > 1e-6  # it is the mask that holds it
            else:
                assert float(grads[name].view(-1)[place]) == pytest.approx(expected, abs=1e-7)


def test_a_token_counts_the_same_whatever_its_size():
    """One is three hundred times as large as most."""
    small, sizes = Small(), torch.tensor([300, 1, 1, 2, 5, 1])[None, :, None]

    class Sized(Small):
        def forward(self, sample, weights):
            return super().forward(sample, weights) * sizes

    courses = [
        _Course.of(Reconstruction(whole=0), small.pruned(), replay, [0, 1], [2], ALONE)
        for replay in (small, Sized())
    ]
    plain, sized = (course.gradient(small.pruned(), 1.0, [0, 1]) for course in courses)
    assert sized[1] == pytest.approx(plain[1])
    for name in plain[0]:
        torch.testing.assert_close(sized[0][name], plain[0][name])


@pytest.mark.parametrize("whole", [0.0, 0.3, 1.0])
def test_the_token_that_is_much_larger_than_all_others_has_a_part_of_the_loss_of_its_own(whole):
    """Attention of the blocks behind rests on it. With an error of its own size, it adds T."""
    small = Small(samples=2)
    small.targets = [x * torch.tensor([300, 1, 1, 2, 5, 1])[None, :, None] for x in small.targets]
    weights, how = small.pruned(), Reconstruction(whole=whole)
    loss = _Course.of(how, weights, small, [0], [1], ALONE).gradient(weights, 1.0, [0])[1]
    assert loss == pytest.approx(float(small.error(weights, [0], whole)))
    sizes = small.targets[0][0].square().sum(1)
    first = (small.forward(0, weights) - small.targets[0])[0, 0].square().sum() / sizes[0]
    assert first == pytest.approx(1, abs=0.02)
    assert loss - float(small.error(weights, [0], 0)) == pytest.approx(6 * whole, rel=0.05)


def test_a_token_that_should_put_out_zeros_has_a_finite_loss():
    small = Small()
    small.targets[0][0, 2] = 0
    course = _Course.of(Reconstruction(), small.pruned(), small, [0], [1], ALONE)
    loss = course.gradient(small.pruned(), 1.0, [0])[1]
    error = small.forward(0, small.pruned())[0, 2].square().sum()
    assert loss > error / (1e-6 * small.targets[0].square().sum(2).mean())
    assert loss < float("inf")

    class Silent(Small):
        def forward(self, sample, weights):
            return super().forward(sample, weights) * 0

    assert Reconstruction(steps=4).descend(small.pruned(), Silent()).losses == []


def kept_states(how, weights, replay):
    """What would be on disk after each step."""
    found = []

    def keep(state, finished):
        found.append({name: x.clone() for name, x in tensors_of(state).items()})

    how.descend(weights, replay, keep=keep)
    return found


def test_the_steps_are_those_of_adam_written_out():
    small = Small(samples=5)
    how = Reconstruction(steps=7, passes=1, batch=2, rate=0.05, decay=0.1, warmup=0.3, **ALL)
    start = small.pruned()
    states = kept_states(how, start, small)
    assert how.steps_over(5) == 9  # three passes of three steps
    assert replace(how, passes=4).steps_over(5) == 12

    weights = {name: x.clone() for name, x in start.items()}
    mean, square = ({name: torch.zeros_like(x) for name, x in start.items()} for _ in range(2))
    unit = small.loss(start, range(5))
    for step in range(9):
        order = torch.randperm(5, generator=torch.Generator().manual_seed(step // 3)).tolist()
        batch = order[step % 3 * 2 : step % 3 * 2 + 2]
        leaves = {name: x.clone().requires_grad_() for name, x in weights.items()}
        (small.error(leaves, batch) / unit).backward()
        slow = min((step + 1) / (0.3 * 9 + 1), (9 - step) / (9 - 0.3 * 9))
        for name, leaf in leaves.items():
            kept = start[name] != 0
            grad = leaf.grad * kept
            mean[name] = 0.9 * mean[name] + 0.1 * grad
            square[name] = 0.95 * square[name] + 0.05 * grad**2
            first = mean[name] / (1 - 0.9 ** (step + 1))
            second = square[name] / (1 - 0.95 ** (step + 1))
            rate = 0.05 * slow * start[name][kept].pow(2).mean().sqrt()
            move = first / (second.sqrt() + 1e-8) + 0.1 * weights[name]
            weights[name] = weights[name] - rate * move
            torch.testing.assert_close(states[step][f"weights/{name}"], weights[name])


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 0.0), (30.0, 0.0), (0.01, 3.0)])
def test_the_held_out_loss_never_rises(rate, noise):
    """The best weights are kept: the old ones, to the bit, where no others were better."""
    small = Small(noise=noise)
    how = Reconstruction(steps=60, rate=rate, patience=0)
    start = small.pruned()
    found = how.descend(start, small)
    judges = how.judges(8)
    assert judges == [3, 7]
    before, after = small.loss(start, judges), small.loss(found.weights, judges)
    assert after == pytest.approx(found.best * found.unit)
    assert found.unit == pytest.approx(before)
    assert found.best == min(found.held) <= found.held[0] == 1
    assert len(found.held) == 1 + len(found.means) == 11
    if found.best == 1:
        assert all(torch.equal(found.weights[name], start[name]) for name in start)
    assert (found.best < 0.9) == (rate < 1 and noise == 0.0)
    for name, weight in start.items():
        assert torch.equal(found.weights[name] == 0, weight == 0)


def test_a_block_at_its_optimum_stays():
    """Where nothing is left to learn, and where what is learned does not help on other text."""
    small = Small()
    done = Reconstruction(steps=20).descend(small.dense, small)
    assert done.losses == []
    assert all(torch.equal(done.weights[name], small.dense[name]) for name in small.dense)

    class Linear(Small):  # least squares in closed form
        def forward(self, sample, weights):
            return self.inputs[0] @ weights["up"][:4].T

    same = Linear(noise=1.0)
    same.targets = [same.targets[0]] * 8
    mask = torch.tensor([True, False, True, True])
    inputs, target = same.inputs[0][0][:, mask], same.targets[0][0]
    optimum = torch.zeros(4, 4, dtype=torch.float64)
    squares = target.square().sum(1, keepdim=True)
    size = (1 / squares + 1 / squares.mean()).rsqrt()
    optimum[:, mask] = torch.linalg.lstsq(inputs / size, target / size).solution.T
    found = Reconstruction(steps=50).descend({"up": optimum}, same)
    assert found.best == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(found.weights["up"], optimum, rtol=1e-5, atol=1e-6)


def test_it_ends_early_when_nothing_gets_better():
    small = Small(noise=3.0)
    long = Reconstruction(steps=300, rate=0.5, patience=0).descend(small.pruned(), small)
    short = Reconstruction(steps=300, rate=0.5, patience=2).descend(small.pruned(), small)
    best = short.held.index(short.best)
    assert len(short.held) == best + 3 < len(long.held)
    assert short.held == long.held[: len(short.held)]


def test_bfloat16_weights_move_by_less_than_their_own_steps():
    small = Small(dtype=torch.bfloat16)
    start = small.pruned()
    how = Reconstruction(steps=150, rate=5e-4, patience=0)
    found = how.descend(start, small)
    assert found.best < 0.99
    for name, weight in start.items():
        assert found.weights[name].dtype == torch.bfloat16
        assert torch.equal(found.weights[name] == 0, weight == 0)
        assert not torch.equal(found.weights[name], weight)
    assert small.loss(found.weights, how.judges(8)) == pytest.approx(found.best * found.unit)


def test_a_descent_continues_from_any_step_to_the_same_bits():
    small = Small(noise=0.3)
    how = Reconstruction(steps=25, batch=2, rate=0.05)
    start = small.pruned()
    whole = how.descend(start, small)
    for state in kept_states(how, start, small)[::4]:
        rest = how.descend(start, small, begun=state_of(state))
        assert rest.losses == whole.losses
        assert rest.held == whole.held
        assert all(torch.equal(rest.weights[name], whole.weights[name]) for name in start)


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [
        (8, 0.25, [3, 7]),
        (16, 0.25, [3, 7, 11, 15]),
        (3, 0.25, [2]),
        (2, 0.9, [1]),
        (5, 0.5, [1, 3]),
        (4, 0.0, []),
        (1, 0.0, []),
    ],
)
def test_samples_that_judge_are_spread_evenly(samples, share, expected):
    assert Reconstruction(held_out=share).judges(samples) == expected


def test_without_judges_all_samples_teach_and_judge():
    small = Small(samples=1)
    found = Reconstruction(steps=50, rate=0.02, **ALL).descend(small.pruned(), small)
    assert found.best < 0.5
    with pytest.raises(InputError, match=r"at least 2; got 1\. Give more --samples"):
        Reconstruction().judges(1)


def test_the_work_is_counted():
    calls = []

    class Counted(Small):
        def forward(self, sample, weights):
            calls.append(3 if any(x.requires_grad for x in weights.values()) else 1)
            return super().forward(sample, weights)

    small = Counted()
    calls.clear()
    how = Reconstruction(steps=7, batch=4, patience=0)
    how.descend(small.pruned(), small)
    assert sum(calls) == how.work_over(8) == 4 * 6 * 3 + 5 * 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"span": "layer"}, "span is block or half, not 'layer'"),
        ({"reference": "both"}, "reference is pruned or dense, not 'both'"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"passes": 0}, "passes is 0; it must be 1 or more"),
        ({"batch": 0}, "batch is 0; it must be 1 or more"),
        ({"rate": 0.0}, "rate is 0; it must be above 0"),
        ({"held_out": 1.0}, "below 1; got 0.9, 0.95, 0.1, 1"),
        ({"patience": -1}, "patience"),
    ],
)
def test_fields_that_make_no_sense_are_rejected(wrong, said):
    with pytest.raises(InputError, match=said):
        Reconstruction(**wrong)
