"""Structure without names: what the probe finds, against what the families' code says."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from helpers.roles import FAMILIES
from prunus.base.errors import NumericalError, UnsupportedModelError
from prunus.model.blocks import find_blocks, find_linears
from prunus.model.inspect import inspect
from prunus.model.replay import Call, check_replay, record, trace
from prunus.model.roles import probe_block

IDS = torch.randint(0, 99, (1, 24), generator=torch.Generator().manual_seed(0))


def build(family, settings, **more):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{"vocab_size": 99, **settings, **more})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_sites_and_kinds(family):
    settings, roles, together = FAMILIES[family]
    blocks, _ = inspect(build(family, settings), IDS)
    assert len(blocks) == 2
    for block in blocks:
        for layer in block.layers:
            expected = next(r for end, r in roles.items() if layer.name.endswith(end))
            assert layer.role == expected, layer.name
            in_mlp = expected in ("gate", "up", "gate_up", "down")
            assert layer.kind == ("mlp" if in_mlp else "attention"), layer.name
        by_role = {layer.role: layer for layer in block.layers}
        assert len(by_role) == len(block.layers)
        for reader in by_role.values():
            same = {r.role for r in block.layers if r.site == reader.site}
            expected_set = next(
                (set(roles.split()) for roles in together if reader.role in roles.split()),
                {reader.role},
            )
            assert same == expected_set
        feeders = {r.role: by_role["down"].site for r in block.layers if r.role in ("gate", "up")}
        for role, site in feeders.items():
            assert by_role[role].feeds == site


def test_a_fused_gate_and_up_is_two_halves():
    blocks, _ = inspect(build("phi3", FAMILIES["phi3"][0]), IDS)
    fused = next(layer for layer in blocks[0].layers if layer.role == "gate_up")
    assert fused.parts == (slice(0, 48), slice(48, 96))


class InTurns(nn.Module):
    """A block whose gate and up rows alternate."""

    def __init__(self):
        super().__init__()
        self.q, self.o = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fused, self.down = nn.Linear(8, 12), nn.Linear(6, 8)

    def forward(self, hidden_states):
        q, k, v = self.q(hidden_states).chunk(3, -1)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden_states + self.o(attended)
        both = self.fused(hidden)
        return hidden + self.down(nn.functional.silu(both[..., ::2]) * both[..., 1::2])


def probe(module):
    hidden = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    return probe_block(0, "b", module, find_linears("b", module), Call((), {}, None), hidden, None)


def test_a_fused_gate_and_up_can_also_alternate():
    torch.manual_seed(0)
    block = probe(InTurns())
    roles = {layer.name: layer for layer in block.layers}
    assert roles["b.fused"].role == "gate_up"
    assert roles["b.fused"].parts == (slice(0, None, 2), slice(1, None, 2))
    assert roles["b.q"].role == "qkv"
    assert roles["b.o"].kind == "attention"


class Skips(InTurns):
    """A block that leaves a layer out."""

    def forward(self, hidden_states):
        return hidden_states + self.o(self.q(hidden_states)[..., :8])


def test_a_layer_that_does_not_run_is_named():
    with pytest.raises(UnsupportedModelError, match=r"b\.fused, b\.down did not run"):
        probe(Skips())


def test_no_blocks_shared_blocks_and_nan_weights():
    settings = FAMILIES["llama"][0]
    with pytest.raises(UnsupportedModelError, match="has no blocks"):
        inspect(build("llama", settings, num_hidden_layers=0), IDS)
    model = build("llama", settings)
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(UnsupportedModelError, match="share weights"):
        find_blocks(model)
    model = build("llama", settings)
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        inspect(model, IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_law_5_replay_equals_forward_bit_for_bit(family):
    model = build(family, FAMILIES[family][0])
    modules = find_blocks(model)
    traced = trace(model, modules, IDS)
    recording = record(model, modules, [IDS], traced)
    hidden = recording.hidden[0]
    with torch.no_grad():
        for index, module in enumerate(modules.values()):
            hidden = recording.calls[index][0](module, hidden)
        output = traced.outputs[-1]
        expected = output[0] if isinstance(output, tuple) else output
    assert torch.equal(hidden, expected)


class Counting(nn.Module):
    """A model whose second block is told what the first one did."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.layers = nn.ModuleList([Scaled(), Scaled()])

    def forward(self, input_ids, use_cache=False):
        hidden = self.embed(input_ids)
        first = self.layers[0](hidden, torch.ones(()))
        return SimpleNamespace(logits=self.layers[1](first, first.mean()))


class Scaled(nn.Module):
    """A block with an argument beside its hidden states."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states, factor):
        return hidden_states + self.linear(hidden_states) * factor


def test_law_5_arguments_that_depend_on_other_blocks_are_refused():
    model = Counting().eval()
    modules, ids = find_blocks(model), torch.arange(6)[None]
    traced = trace(model, modules, ids)
    recording = record(model, modules, [ids], traced)
    check_replay(0, "layers.0", modules["layers.0"], recording, traced)
    with pytest.raises(UnsupportedModelError, match=r"layers\.1: replaying the block differs"):
        check_replay(1, "layers.1", modules["layers.1"], recording, traced)
    assert all("forward" not in module.__dict__ for module in modules.values())
