"""Scores of heads and neurons against literal float64 loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import silu

from prunus.base.errors import InputError, MissingStatisticError
from prunus.maths.moments import ChannelMoments, Moments
from prunus.maths.scores.attention import (
    HeadDivergence,
    ascending,
    between_units,
    distances,
    row_major,
)
from prunus.maths.scores.redundancy import Redundancy
from prunus.maths.scores.taylor import Taylor
from prunus.maths.scores.units import (
    Curvature,
    Flap,
    Gathered,
    Norm,
    Random,
    SecondMoment,
    WandaSp,
    lowest,
)
from prunus.maths.shares.units import adaptive, check, removable, share_of, standardised, uniform
from prunus.maths.stats import ColumnNorm, gather
from prunus.model.blocks import Layer
from prunus.model.units import Depth2


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def maps(rng, heads=4, tokens=6):
    """Causal attention: rows sum to 1, the future is exactly 0."""
    logits = 2 * torch.randn(1, heads, tokens, tokens, generator=rng)
    future = torch.ones(tokens, tokens).triu(1).bool()
    return logits.masked_fill(future, -math.inf).softmax(-1)


def literal_distance(p, q):
    """Equation 1 for one pair of rows."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += 0.5 * a * math.log(a / m) if a > 0 else 0.0
        total += 0.5 * b * math.log(b / m) if b > 0 else 0.0
    return math.sqrt(max(total, 0.0))


def literal_authors(p, q):
    """sqrt(KL(m || p)) on rows clamped at 1e-9 that sum to 1 again."""
    p, q = [max(x, 1e-9) for x in p], [max(x, 1e-9) for x in q]
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    return math.sqrt(
        max(sum((a + b) / 2 * math.log((a + b) / 2 / a) for a, b in zip(p, q, strict=True)), 0.0)
    )


@pytest.mark.parametrize(
    ("kind", "literal"), [("jensen-shannon", literal_distance), ("authors", literal_authors)]
)
def test_divergence_equals_loops(rng, kind, literal):
    samples = [maps(rng), maps(rng)]
    divergence = HeadDivergence(4, kind)
    for sample in samples:
        divergence.update(sample)
    for i in range(4):
        for j in range(4):
            rows = [
                literal(s[0, min(i, j), t].tolist(), s[0, max(i, j), t].tolist())
                for s in samples
                for t in range(6)
            ]
            expected = 0.0 if i == j else sum(rows) / len(rows)
            assert divergence.matrix_HH[i, j] == pytest.approx(expected, abs=1e-7)


def test_equal_heads_have_no_divergence_and_one_of_them_goes(rng):
    same = maps(rng)
    same[:, 2] = same[:, 0]
    divergence = HeadDivergence(4)
    divergence.update(same)
    assert divergence.matrix_HH[0, 2] == 0
    goes_U = ascending(divergence.matrix_HH)
    assert goes_U[0] == 0
    assert goes_U[2] > 0
    assert lowest(goes_U[:, None], 1).tolist() == [False, True, True, True]


def test_opposite_heads_are_as_far_apart_as_can_be():
    far = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    found = float(distances(far, "jensen-shannon")[0, 1, 0])
    assert found == pytest.approx(math.sqrt(math.log(2)))


def test_long_samples_are_thinned_evenly_and_keep_the_last_position(rng):
    long = maps(rng, heads=2, tokens=40)
    thin = HeadDivergence(2, rows=10)
    thin.update(long)
    assert thin.tokens == 10
    chosen = [39 - 4 * k for k in range(10)]
    by_hand = distances(long[0, :, chosen].double(), "jensen-shannon")[0, 1].mean()
    assert thin.matrix_HH[0, 1] == pytest.approx(float(by_hand))


def test_ascending_is_algorithm_1_over_sorted_pairs(rng):
    for units in (2, 5, 9):
        d_UU = torch.rand(units, units, generator=rng, dtype=torch.float64)
        d_UU = (d_UU + d_UU.T) / 2
        pairs = sorted((float(d_UU[i, j]), i, j) for i in range(units) for j in range(i + 1, units))
        goes_U = ascending(d_UU)
        for threshold in (0.2, 0.5, 0.8, 2.0):
            chosen: list[int] = []
            for distance, i, j in pairs:
                if distance < threshold and i not in chosen and j not in chosen:
                    chosen.append(i)
            assert [i for i in range(units) if goes_U[i] < threshold] == sorted(chosen)
        assert int(goes_U.isinf().sum()) == 1  # somebody stays, at any threshold


def test_row_major_is_algorithm_1_as_printed(rng):
    d_UU = torch.rand(7, 7, generator=rng, dtype=torch.float64)
    d_UU = (d_UU + d_UU.T) / 2
    chosen: list[int] = []
    edges: set[tuple[int, int]] = set()
    for i in range(7):
        for j in range(7):
            if d_UU[i, j] < 0.5 and (i, j) not in edges and (j, i) not in edges and i != j:
                edges.add((i, j))
                if i not in chosen and j not in chosen:
                    chosen.append(i)
    assert row_major(d_UU, 0.5).isfinite().nonzero().flatten().tolist() == sorted(chosen)


@pytest.mark.parametrize("algorithm", [ascending, lambda d, worth: row_major(d, 0.9, worth)])
def test_of_two_that_are_alike_the_weaker_goes(algorithm):
    d_UU = torch.tensor([[0.0, 0.1, 0.8], [0.1, 0.0, 0.7], [0.8, 0.7, 0.0]])
    assert algorithm(d_UU, torch.tensor([3.0, 1.0, 2.0])).isinf().tolist() == [True, False, False]
    assert algorithm(d_UU, torch.tensor([1.0, 1.0, 0.5])).isinf().tolist() == [False, True, False]


def test_between_groups(rng):
    d_HH = torch.rand(4, 4, generator=rng, dtype=torch.float64)
    d_HH = ((d_HH + d_HH.T) / 2).fill_diagonal_(0)
    assert torch.equal(between_units(d_HH, 1), d_HH)
    d_HH[0, 3] = d_HH[3, 0] = d_HH[1, 2] = d_HH[2, 1] = 0  # the same two heads, swapped
    assert between_units(d_HH, 2)[0, 1] == 0


def linear(name, role, rows, columns, rng, bias=False, block=0):
    module = torch.nn.Linear(columns, rows, bias=bias)
    with torch.no_grad():
        module.weight.copy_(torch.randn(rows, columns, generator=rng))
    return Layer(name, block, module, role, "mlp", name)


def mlp(rng, gated=True, neurons=5, width=4, block=0):
    roles = ("gate", "up") if gated else ("up",)
    made = [linear(role, role, neurons, width, rng) for role in roles]
    rows_UM = torch.arange(neurons)[:, None]
    down = linear("down", "down", width, neurons, rng)
    sources = tuple((layer, rows_UM) for layer in made)
    return Depth2("neurons", block, down, rows_UM.clone(), sources)


def attention(rng, heads=3, width=2, hidden=4):
    """One value row per input, heads of equal width."""
    q, k, v = (linear(name, name, heads * width, hidden, rng) for name in "qkv")
    rows_UM = torch.arange(heads * width).view(heads, width)
    o = linear("o", "o", hidden, heads * width, rng)
    sources = ((q, rows_UM), (k, rows_UM), (v, rows_UM))
    row_I = torch.arange(heads * width)
    return Depth2("heads", 0, o, rows_UM, sources, heads, heads, row_I, v)


def test_both_removes_the_similar_first_and_then_the_least_important(rng):
    """Heads 0 and 1, and 2 and 3, are similar; of each pair the first goes, then the weakest."""
    module = attention(rng, heads=6)
    inputs_TI = torch.randn(40, 12, generator=rng)
    d_HH = torch.full((6, 6), 0.7, dtype=torch.float64)
    for i, j, distance in ((0, 1, 0.15), (2, 3, 0.1), (4, 5, 0.3)):
        d_HH[i, j] = d_HH[j, i] = distance
    gathered = Gathered(second=gather(inputs_TI, (ChannelMoments,)), divergence_HH=d_HH)
    moments = []
    for h in range(6):
        added_TO = inputs_TI[:, 2 * h : 2 * h + 2].double()[..., None]
        columns_NO = module.reader.weight_OI[:, 2 * h : 2 * h + 2].T.double()
        moments.append(float((added_TO * columns_NO).square().sum((1, 2)).mean()))
    score = Redundancy(score="both", similar=0.2)
    found_U = score(module, gathered)[:, 0]
    rest = sorted((1, 3, 4, 5), key=lambda h: moments[h])
    assert found_U.argsort().tolist() == [2, 0, *rest]
    for h in rest:  # shares of the block, which compare with those of other blocks
        assert float(found_U[h]) == pytest.approx(moments[h] / sum(moments), rel=1e-6)
    plain_UN = Redundancy(score="second-moment")(module, Gathered(second=gathered.second))
    expected = [moment / sum(moments) for moment in moments]
    assert plain_UN[:, 0].tolist() == pytest.approx(expected, rel=1e-6)
    with_threshold = Redundancy(score="both", similar=0.2, threshold=0.4)  # Algorithm 1 alone
    assert torch.equal(with_threshold(module, gathered)[:, 0], ascending(d_HH))
    weaker = Redundancy(score="both", similar=0.2, goes="weaker")(module, gathered)[:, 0]
    first = {2 if moments[2] <= moments[3] else 3, 0 if moments[0] <= moments[1] else 1}
    assert set(weaker.argsort()[:2].tolist()) == first


@pytest.mark.parametrize(
    ("fields", "needs", "wants", "decides"),
    [
        ({}, (), "maps", False),
        ({"threshold": 0.2}, (), "maps", True),
        ({"goes": "weaker"}, (ChannelMoments,), "maps", False),
        ({"score": "both"}, (ChannelMoments,), "maps", False),
        ({"score": "both", "threshold": 0.2}, (), "maps", True),
        ({"score": "second-moment"}, (ChannelMoments,), "nothing", False),
    ],
)
def test_a_score_of_heads_reads_what_it_needs(fields, needs, wants, decides):
    score = Redundancy(**fields)
    assert (score.second, score.wants, score.decides) == (needs, wants, decides)


def quadratic(row, inputs_TI):
    """E[(aᵀx)²], literally."""
    total = 0.0
    for x in inputs_TI.tolist():
        total += sum(a * b for a, b in zip(row.tolist(), x, strict=True)) ** 2
    return total / len(inputs_TI)


def square(column):
    return sum(b * b for b in column.tolist())


@pytest.mark.parametrize("gated", [False, True])
def test_second_moment_of_neurons_equals_loops(rng, gated):
    module = mlp(rng, gated)
    inputs_TI = torch.randn(50, 4, generator=rng) + 0.3
    found = SecondMoment()(module, Gathered(first=gather(inputs_TI, (Moments,))))[:, 0]
    ones = SecondMoment(identity=True)(module, Gathered())[:, 0]
    for i in range(5):
        norm = square(module.reader.weight_OI[:, i])
        rows = [layer.weight_OI[i] for layer, _ in module.sources]
        parts = [norm * quadratic(row, inputs_TI) for row in rows]
        plain = [norm * square(row) for row in rows]
        assert found[i] == pytest.approx(math.prod(parts) / 2, rel=1e-5)  # half behind sigma
        assert ones[i] == pytest.approx(math.prod(plain) / 2, rel=1e-5)


def test_second_moment_as_the_authors_code_reads_it(rng):
    module = mlp(rng)
    inputs_TI = torch.randn(50, 4, generator=rng) + 0.3
    score = SecondMoment(norm=1, gated="code", centred=True)
    found = score(module, Gathered(first=gather(inputs_TI, (Moments,))))[:, 0]
    sigma_II = torch.cov(inputs_TI.double().T)
    (gate, _), (up, _) = module.sources
    for i in range(5):
        g, u = gate.weight_OI[i].double(), up.weight_OI[i].double()
        expected = (
            module.reader.weight_OI[:, i].norm() * silu(g @ sigma_II @ g) * (u @ sigma_II @ u)
        )
        assert found[i] == pytest.approx(float(expected), rel=1e-5)


def test_second_moment_of_heads_equals_its_definition(rng):
    """Σ of what each head mixed together, head by head, against the second level's input."""
    module = attention(rng)
    hidden_TI = torch.randn(6, 4, generator=rng)
    maps_HTT = maps(rng, heads=3)[0]
    value = module.values.weight_OI
    mixed = [maps_HTT[h] @ hidden_TI for h in range(3)]
    inputs_TI = torch.cat([mixed[h] @ value[2 * h : 2 * h + 2].T for h in range(3)], 1)
    gathered = Gathered(
        first=gather(hidden_TI, (Moments,)), second=gather(inputs_TI, (ChannelMoments,))
    )
    found_UN = SecondMoment()(module, gathered)
    apart_UN = SecondMoment(mixed=False)(module, gathered)
    assert found_UN.shape == (3, 2)
    for h in range(3):
        for n in range(2):
            norm = square(module.reader.weight_OI[:, 2 * h + n])
            row = value[2 * h + n]
            assert found_UN[h, n] == pytest.approx(norm * quadratic(row, mixed[h]), rel=1e-4)
            assert apart_UN[h, n] == pytest.approx(norm * quadratic(row, hidden_TI), rel=1e-4)


def test_measured_second_moment_is_what_the_channel_adds(rng):
    module = mlp(rng)
    hidden_TI = torch.randn(50, 5, generator=rng)
    gathered = Gathered(second=gather(hidden_TI, (ChannelMoments,)))
    found = SecondMoment(moment="measured")(module, gathered)[:, 0]
    for i in range(5):
        added_TO = hidden_TI[:, i, None] * module.reader.weight_OI[:, i]
        assert found[i] == pytest.approx(float(added_TO.square().sum(1).mean()), rel=1e-5)


def test_a_neuron_that_is_always_off_fools_the_closed_form_alone(rng):
    """Why the measured moment is there: large rows, activations that are all but 0."""
    module = mlp(rng, gated=False)
    inputs_TI = torch.randn(200, 4, generator=rng) + 3
    with torch.no_grad():
        module.sources[0][0].module.weight[2] = -5.0
    hidden_TI = torch.relu(inputs_TI @ module.sources[0][0].weight_OI.T)
    gathered = Gathered(
        first=gather(inputs_TI, (Moments,)), second=gather(hidden_TI, (ChannelMoments,))
    )
    assert int(SecondMoment()(module, gathered)[:, 0].argmax()) == 2
    assert SecondMoment(moment="measured")(module, gathered)[2, 0] == 0


def test_flap_and_wanda_sp_equal_loops(rng):
    module = attention(rng)
    inputs_TI = torch.randn(30, 6, generator=rng) + torch.arange(6)
    gathered = Gathered(second=gather(inputs_TI, (ChannelMoments, ColumnNorm)))
    flap_UN, wanda_UN = Flap()(module, gathered), WandaSp()(module, gathered)
    squared_UN = Flap(squared_attention=True)(module, gathered)
    for i in range(6):
        x = inputs_TI[:, i].tolist()
        mean = sum(x) / len(x)
        variance = sum((a - mean) ** 2 for a in x) / (len(x) - 1)
        expected = variance * square(module.reader.weight_OI[:, i])
        assert flap_UN[i // 2, i % 2] == pytest.approx(expected, rel=1e-5)
        assert squared_UN[i // 2, i % 2] == pytest.approx(expected**2, rel=1e-5)
        norm = math.sqrt(sum(a * a for a in x) / len(x))
        column = sum(abs(b) for b in module.reader.weight_OI[:, i].tolist())
        assert wanda_UN[i // 2, i % 2] == pytest.approx(column * norm, rel=1e-5)


def of_samples(gradients_SOI):
    """Mean gradient and curvature of a layer, from the gradients of single samples, by loops."""
    samples, outputs, inputs = gradients_SOI.shape
    squares = [
        [sum(float(g[o, i]) ** 2 for g in gradients_SOI) / samples for i in range(inputs)]
        for o in range(outputs)
    ]
    return gradients_SOI.mean(0), torch.tensor(squares, dtype=torch.float64)


def literal_term(weights, gradients, order):
    """|gᵀw|, wᵀHw or |gᵀw − ½ wᵀHw| of one vector, with H = mean_j g_j g_jᵀ written out."""
    samples, size = len(gradients), len(weights)
    first = sum(w * sum(g[i] for g in gradients) / samples for i, w in enumerate(weights))
    second = 0.0
    for a in range(size):
        for b in range(size):
            fisher = sum(g[a] * g[b] for g in gradients) / samples
            second += weights[a] * fisher * weights[b]
    return {"first": abs(first), "second": second, "mixed": abs(first - second / 2)}[order]


@pytest.mark.parametrize("order", ["first", "second", "mixed"])
@pytest.mark.parametrize("by", ["element", "vector"])
def test_taylor_equals_loops(rng, by, order):
    module = attention(rng)
    single = {x.name: torch.randn(4, *x.shape, generator=rng).double() for x in module.layers}
    gradients, curvatures = {}, {}
    for layer in module.layers:
        change_SOI = layer.weight_OI.detach().double() * single[layer.name]
        gradients[layer.name], squares_OI = of_samples(single[layer.name])
        curvatures[layer.name] = Curvature(
            squares_OI, change_SOI.sum(2).square().mean(0), change_SOI.sum(1).square().mean(0)
        )
    gathered = Gathered(gradients=gradients, curvatures=curvatures)
    found = Taylor(by, order)(module, gathered)[:, 0]
    for unit in range(3):
        total = 0.0
        for layer in module.layers:
            reader = layer is module.reader
            weight = layer.weight_OI.detach().double()
            for k in range(2 * unit, 2 * unit + 2):
                vector = (weight[:, k] if reader else weight[k]).tolist()
                each = [(g[:, k] if reader else g[k]).tolist() for g in single[layer.name]]
                if by == "vector":
                    total += literal_term(vector, each, order)
                else:
                    for i, w in enumerate(vector):
                        total += literal_term([w], [[g[i]] for g in each], order)
        assert found[unit] == pytest.approx(total, rel=1e-5)
    with pytest.raises(MissingStatisticError):
        Taylor(by, order)(module, Gathered())


def test_the_second_order_of_a_vector_is_not_that_of_its_elements(rng):
    """Were H its diagonal, "vector" would be "element" again: a sum of squares has no sign."""
    module = mlp(rng)
    ones = {x.name: torch.ones(x.shape) for x in module.layers}
    curvatures = {
        x.name: Curvature(ones[x.name], x.weight_OI.sum(1).square(), x.weight_OI.sum(0).square())
        for x in module.layers
    }
    gathered = Gathered(gradients=ones, curvatures=curvatures)
    by_element = Taylor("element", "second")(module, gathered)
    by_vector = Taylor("vector", "second")(module, gathered)
    assert not torch.allclose(by_element, by_vector)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_norms_equal_loops(rng, power):
    module = mlp(rng)
    found = Norm(power)(module, Gathered())[:, 0]
    for i in range(5):
        parts = [layer.weight_OI[i] for layer, _ in module.sources]
        parts.append(module.reader.weight_OI[:, i])
        expected = sum(abs(w) ** power for part in parts for w in part.tolist())
        assert found[i] == pytest.approx(expected, rel=1e-5)


def test_random_is_the_seeds(rng):
    module, other = mlp(rng), mlp(rng, block=1)
    first = Random()(module, Gathered(seed=3))
    assert torch.equal(first, Random()(module, Gathered(seed=3)))
    assert not torch.equal(first, Random()(module, Gathered(seed=4)))
    assert not torch.equal(first, Random()(other, Gathered(seed=3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moments_are_the_same_in_any_batches(rng, dtype):
    inputs_TI = (torch.randn(37, 5, generator=rng) + 10).to(dtype)
    whole, parts = Moments(5, torch.device("cpu")), Moments(5, torch.device("cpu"))
    channels = ChannelMoments(5, torch.device("cpu"))
    whole.update(inputs_TI)
    for part_TI in inputs_TI.split(7):
        parts.update(part_TI)
        channels.update(part_TI)
    exact = inputs_TI.double()
    torch.testing.assert_close(parts.sum_AA, whole.sum_AA, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.covariance_II, torch.cov(exact.T), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(channels.variance_I, exact.var(0))
    torch.testing.assert_close(channels.mean_I, exact.mean(0))


def test_settings_that_make_no_sense_say_so():
    for make in (
        lambda: SecondMoment(norm=3),
        lambda: SecondMoment(gated="both"),
        lambda: SecondMoment(moment="measured", identity=True),
        lambda: Redundancy(order="random"),
        lambda: Redundancy(score="least"),
        lambda: Redundancy(similar=-1.0),
        lambda: Redundancy(score="second-moment", threshold=0.2),
        lambda: Redundancy(threshold=-0.1),
        lambda: Redundancy(threshold=math.nan),
        lambda: Redundancy(distance="euclid"),
        lambda: Redundancy(goes="both"),
        lambda: Taylor("matrix"),
        lambda: Taylor(order="third"),
    ):
        with pytest.raises(InputError):
            make()


def test_lowest_takes_exactly_as_many_and_of_equals_the_first():
    score_UN = torch.tensor([[1.0], [0.0], [0.0], [5.0]])
    assert lowest(score_UN, 0).all()
    assert lowest(score_UN, 1).tolist() == [True, False, True, True]
    assert lowest(score_UN, 3).tolist() == [False, False, False, True]


def fake(block, unit, units, parameters):
    return SimpleNamespace(block=block, unit=unit, units=units, parameters=parameters)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.34, 0.5, 0.9])
def test_uniform_meets_the_share_of_every_block_to_one_neuron(share):
    modules = [fake(b, *x) for b in (0, 1) for x in (("heads", 3, 400), ("neurons", 100, 30))]
    counts = uniform(modules, share, {})
    for block in (0, 1):
        assert counts[block, "heads"] == math.floor(3 * share)
        gone = 400 * counts[block, "heads"] + 30 * counts[block, "neurons"]
        assert 0 <= share * 4200 - gone < 30


def test_uniform_takes_the_heads_that_a_threshold_finds():
    modules = [fake(0, "heads", 3, 400), fake(0, "neurons", 100, 30)]
    counts = uniform(modules, 0.5, {0: 2})
    assert counts == {(0, "heads"): 2, (0, "neurons"): 43}
    counts = uniform(modules, 0.15, {0: 2})  # 630 parameters: one group fits
    assert counts == {(0, "heads"): 1, (0, "neurons"): 7}
    counts = uniform(modules, 0.15, {0: 2}, capped=False)  # 800 for heads: no neuron beside them
    assert counts == {(0, "heads"): 2, (0, "neurons"): 0}
    counts = uniform(modules, 0.2, {0: 2}, capped=False)  # 840: one neuron fills it up
    assert counts == {(0, "heads"): 2, (0, "neurons"): 1}
    counts = uniform(modules, 0.15, {0: 3}, capped=False)
    assert counts == {(0, "heads"): 2, (0, "neurons"): 0}  # one group stays


def test_adaptive_removes_the_lowest_standardised_scores_within_the_budget(rng):
    modules = [fake(0, "heads", 4, 50), fake(0, "neurons", 20, 3), fake(1, "neurons", 20, 3)]
    scores = {(m.block, m.unit): torch.rand(m.units, 2, generator=rng) * (m.block + 1)
              for m in modules}  # fmt: skip
    worth = []
    for m in modules:
        x = scores[m.block, m.unit].double()
        z_U = ((x - x.mean()) / x.std()).mean(1)
        torch.testing.assert_close(standardised(scores[m.block, m.unit]), z_U)
        worth += [(float(z), m) for z in z_U]
    left, expected = 0.3 * removable(modules), {(m.block, m.unit): 0 for m in modules}
    for _, m in sorted(worth, key=lambda pair: pair[0]):
        if m.parameters <= left and expected[m.block, m.unit] < m.units - 1:
            expected[m.block, m.unit] += 1
            left -= m.parameters
    assert adaptive(modules, scores, 0.3) == expected
    assert left < 3


def divergences(*blocks):
    """Scores of blocks with one pair (two groups) or three pairs of heads, by their distances."""
    scores = {}
    for block, distances_P in enumerate(blocks):
        units = 2 if len(distances_P) == 1 else 3
        d_UU = torch.zeros(units, units, dtype=torch.float64)
        upper = torch.triu_indices(units, units, 1)
        d_UU[upper[0], upper[1]] = torch.tensor(distances_P, dtype=torch.float64)
        scores[block, "heads"] = ascending(d_UU + d_UU.T)[:, None]
    return [fake(block, "heads", len(s), 50) for (block, _), s in scores.items()], scores


@pytest.mark.parametrize(
    ("blocks", "counts"),
    [
        # Two groups each: standardised, all of them are 0, and block 0 would lose one.
        (([0.5], [0.3], [0.1], [0.4]), ([0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1])),
        # Three groups: standardised, −0.707 and 0.707 whatever the distances are. In block 1 the
        # nearest pair is 0.1 apart, and of the two that stay then 0.15.
        (
            ([0.4, 0.5, 0.6], [0.1, 0.2, 0.15], [0.3, 0.3, 0.3]),
            ([0, 1, 0], [0, 2, 0], [0, 2, 1], [0, 2, 2], [1, 2, 2]),
        ),
    ],
)
def test_the_most_similar_heads_of_all_blocks_go_first(blocks, counts):
    modules, scores = divergences(*blocks)
    for removed, expected in enumerate(counts, 1):
        share = (removed * 50 + 1) / removable(modules)
        found = adaptive(modules, scores, share, ("heads",))
        assert [found[block, "heads"] for block in range(len(blocks))] == expected


def test_blocks_in_another_order_lose_the_same_and_nearer_heads_are_lost_first(rng):
    blocks = [torch.rand(3, generator=rng).mul(0.5).add(0.2).tolist() for _ in range(6)]
    modules, scores = divergences(*blocks)
    found = adaptive(modules, scores, 0.3, ("heads",))
    order = torch.randperm(6, generator=rng).tolist()
    there = adaptive(*divergences(*(blocks[b] for b in order)), 0.3, ("heads",))
    assert [there[i, "heads"] for i in range(6)] == [found[b, "heads"] for b in order]
    assert sum(found.values()) == 5
    for block in range(6):  # a tenth of the distances: this block loses what it can
        nearer = [[x / 10 for x in d] if b == block else d for b, d in enumerate(blocks)]
        assert adaptive(*divergences(*nearer), 0.3, ("heads",))[block, "heads"] == 2
        farther = [[x + 1 for x in d] if b == block else d for b, d in enumerate(blocks)]
        assert adaptive(*divergences(*farther), 0.3, ("heads",))[block, "heads"] == 0


def test_comparable_heads_get_their_own_share_and_neurons_the_rest(rng):
    heads, scores = divergences([0.5, 0.6, 0.7], [0.1, 0.2, 0.3])
    neurons = [fake(b, "neurons", 20, 3) for b in (0, 1)]
    scores |= {(b, "neurons"): torch.rand(20, 1, generator=rng) for b in (0, 1)}
    modules = [heads[0], neurons[0], heads[1], neurons[1]]
    found = adaptive(modules, scores, 0.4, ("heads",))
    assert (found[0, "heads"], found[1, "heads"]) == (0, 2)  # 0.4 · 6 groups, the nearest ones
    gone = sum(m.parameters * found[m.block, m.unit] for m in modules)
    assert 0 <= 0.4 * removable(modules) - gone < 3
    worth = [(float(z), b) for b in (0, 1) for z in standardised(scores[b, "neurons"])]
    chosen = [b for _, b in sorted(worth)[: found[0, "neurons"] + found[1, "neurons"]]]
    assert [chosen.count(b) for b in (0, 1)] == [found[b, "neurons"] for b in (0, 1)]


def test_adaptive_leaves_one_unit_of_each_module():
    modules = [fake(0, "heads", 4, 50), fake(0, "neurons", 20, 3)]
    scores = {(0, "heads"): torch.zeros(4, 1), (0, "neurons"): torch.arange(20.0)[:, None]}
    counts = adaptive(modules, scores, 0.99)
    assert counts == {(0, "heads"): 3, (0, "neurons"): 19}


def test_shares_that_cannot_be_had_say_so():
    modules = [fake(0, "heads", 3, 400), fake(0, "neurons", 2, 600)]
    with pytest.raises(InputError, match="Nothing would be removed"):
        check(modules, uniform(modules, 0.1, {}), 0.1)
    with pytest.raises(InputError, match="one unit of each module must stay"):
        check(modules, uniform(modules, 0.95, {}), 0.95)
    assert share_of(modules, 1200) == 0.5
    for parameters in (0, 2400, -5):
        with pytest.raises(InputError, match="--parameters"):
            share_of(modules, parameters)
