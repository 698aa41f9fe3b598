"""Scores of units that consist of several rows, layers or heads, against literal loops."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import silu

from prunus.maths.moments import Moments
from prunus.maths.scores.attention import between_units
from prunus.maths.scores.units import Gathered, Random, SecondMoment
from prunus.maths.shares.units import adaptive, uniform
from prunus.maths.stats import gather
from prunus.model.blocks import Layer
from prunus.model.units import Depth2

NEURONS, WIDTH = 5, 4


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def linear(role, weight_OI):
    module = torch.nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False)
    with torch.no_grad():
        module.weight.copy_(weight_OI)
    return Layer(role, 0, module, role, "mlp", role)


def gated_mlp(gate_OI, up_OI, down_OI, layout):
    """The same MLP, with its first level stored in one of three ways."""
    rows_UM = torch.arange(NEURONS)[:, None]
    if layout == "fused":
        both = linear("gate_up", torch.cat([gate_OI, up_OI]))
        sources = ((both, torch.cat([rows_UM, rows_UM + NEURONS], 1)),)
    else:
        made = {"gate": linear("gate", gate_OI), "up": linear("up", up_OI)}
        sources = tuple((made[role], rows_UM) for role in layout.split())
    return Depth2("neurons", 0, linear("down", down_OI), rows_UM, sources)


@pytest.mark.parametrize("layout", ["gate up", "up gate", "fused"])
def test_the_gate_is_the_gate_however_the_layers_are_listed(rng, layout):
    """The authors' code puts the gate's moment alone through silu."""
    gate_OI, up_OI = (torch.randn(NEURONS, WIDTH, generator=rng) for _ in range(2))
    down_OI = torch.randn(WIDTH, NEURONS, generator=rng)
    inputs_TI = torch.randn(50, WIDTH, generator=rng)
    gathered = Gathered(first=gather(inputs_TI, (Moments,)))
    module = gated_mlp(gate_OI, up_OI, down_OI, layout)
    found_U = SecondMoment(gated="code")(module, gathered)[:, 0]
    for i in range(NEURONS):
        gate, up = (float((inputs_TI @ rows[i]).square().mean()) for rows in (gate_OI, up_OI))
        norm = float(down_OI[:, i].square().sum())
        expected = norm * float(silu(torch.tensor(gate))) * up
        assert float(found_U[i]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("per_unit", [1, 2, 3])
def test_groups_of_heads_are_as_far_apart_as_their_heads_from_the_nearest(rng, per_unit):
    """Means over heads, both ways: no head of a group speaks for the others."""
    heads = 6
    d_HH = torch.rand(heads, heads, generator=rng, dtype=torch.float64)
    d_HH = ((d_HH + d_HH.T) / 2).fill_diagonal_(0)
    found_UU = between_units(d_HH, per_unit)
    groups = torch.arange(heads).view(-1, per_unit).tolist()
    assert found_UU.shape == (len(groups), len(groups))
    for a, first in enumerate(groups):
        for b, second in enumerate(groups):
            nearest = [min(float(d_HH[i, j]) for j in second) for i in first]
            nearest += [min(float(d_HH[i, j]) for i in first) for j in second]
            expected = sum(nearest) / len(nearest)
            assert float(found_UU[a, b]) == pytest.approx(expected, abs=1e-12)


def test_heads_and_neurons_of_a_block_draw_from_other_streams(rng):
    mlp = gated_mlp(*(torch.zeros(NEURONS, WIDTH),) * 2, torch.zeros(WIDTH, NEURONS), "gate up")
    heads = Depth2("heads", 0, mlp.reader, mlp.columns_UN, mlp.sources, NEURONS, NEURONS)
    first, second = (Random()(module, Gathered(seed=3)) for module in (mlp, heads))
    assert not torch.equal(first, second)


def fake(unit, units, parameters):
    return SimpleNamespace(block=0, unit=unit, units=units, parameters=parameters)


def test_more_heads_go_where_neurons_cannot_make_up_for_the_rest():
    """357 of 510 parameters: floor(0.7 · 4) = 2 heads and all neurons but one would be 300."""
    modules = [fake("heads", 4, 100), fake("neurons", 11, 10)]
    assert uniform(modules, 0.7) == {(0, "heads"): 3, (0, "neurons"): 5}


def test_adaptive_uses_a_budget_to_its_last_parameter():
    modules = [fake("neurons", 10, 7)]
    scores = {(0, "neurons"): torch.arange(10.0)[:, None]}
    for count in range(1, 9):
        assert adaptive(modules, scores, count / 10) == {(0, "neurons"): count}
