"""A model whose matrices or norms are zero is understood like any other of its architecture."""

import pytest
import torch
from torch import nn

import prunus
from helpers.channels import SUBNORMS, built, channels_of, shuffled
from helpers.models import load_tiny
from helpers.pairs import each
from helpers.random_models import FAMILIES, MIXTURES
from helpers.random_models import IDS as TOKENS
from helpers.random_models import build as random_model
from helpers.structured_models import FAMILIES as STRUCTURED
from helpers.structured_models import build
from prunus.base.errors import UnsupportedModelError
from prunus.model.blocks import find_blocks
from prunus.model.inspect import inspect
from prunus.model.nonzero import without_zeros
from prunus.model.units import find_modules

IDS = torch.randint(0, 500, (1, 32), generator=torch.Generator().manual_seed(3))
METHODS = ["magnitude", "wanda", "ria", "sparsegpt", "mrp-sm", "besa", "dass"]
SMALLER = ["goa", "l1", "l2", "random", "wanda-sp", "flap", "llm-pruner"]


def owners(block):
    """The modules of a block that have parameters of their own."""
    return [path for path, m in block.named_modules() if list(m.parameters(recurse=False))]


def emptied(model, path, index=1):
    """The model with one module of a block at zero, weights and biases; the undoing of it."""
    name = list(find_blocks(model))[index]
    module = model.get_submodule(f"{name}.{path}" if path else name)
    before = {n: p.detach().clone() for n, p in module.named_parameters(recurse=False)}
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)
    return lambda: [module.get_parameter(n).data.copy_(values) for n, values in before.items()]


def understood(model, ids):
    """All that is seen of its blocks."""
    blocks, _ = inspect(model, ids)
    layers = [
        (x.name, x.role, x.kind, x.site, x.feeds, x.parts, x.by_hand)
        for block in blocks
        for x in block.layers
    ]
    return layers, [(block.interior, block.routers) for block in blocks]


def test_every_module_of_a_trained_model_at_zero_is_understood_and_folds(family):
    model, _ = load_tiny(family)
    plain = understood(model, IDS)
    for path in owners(find_blocks(model)[next(iter(find_blocks(model)))]):
        undo = emptied(model, path)
        assert understood(model, IDS) == plain, path
        folded, undo_fold = folds_and_back(model)
        assert folded == 6, path
        undo_fold()
        undo()


@torch.no_grad()
def folds_and_back(model):
    """The number of interiors, after random orders in all of them left the logits as they were."""
    before = model(input_ids=IDS).logits
    held = {name: p.clone() for name, p in model.named_parameters()}
    channels = channels_of(model)
    assert all(torch.equal(held[name], p) for name, p in model.named_parameters())
    channels.apply(shuffled(channels))
    off = (model(input_ids=IDS).logits - before).abs().max()
    assert float(off) <= 1e-4 * float(before.abs().max())
    return len(channels.interiors), lambda: [
        p.data.copy_(held[name]) for name, p in model.named_parameters()
    ]


def everything(model, index=1):
    """The block's own numbers, all of them, at zero."""
    for parameter in list(find_blocks(model).values())[index].parameters():
        nn.init.zeros_(parameter)


def test_a_block_of_nothing_but_zeros_is_understood_and_folds(family):
    model, _ = load_tiny(family)
    plain = understood(model, IDS)
    everything(model)
    assert understood(model, IDS) == plain
    assert folds_and_back(model)[0] == 6


OTHERS = ["qwen3", "olmo2", "gemma2", "glm4", "falcon", "mamba", "mamba2", "rwkv", "mixtral",
          "qwen2_moe", "gpt_oss", "deepseek_v3", "qwen3_next"]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_every_module_of_other_architectures_at_zero_is_understood(name):
    """Norms on queries, norms behind a layer, latent attention, states, routers, experts."""
    model = random_model(name, (FAMILIES | MIXTURES)[name])
    plain = understood(model, TOKENS[:1])
    for path in owners(list(find_blocks(model).values())[1]):
        undo = emptied(model, path)
        assert understood(model, TOKENS[:1]) == plain, path
        undo()


def test_a_norm_that_multiplies_with_nothing_is_not_always_zero():
    """Gemma's multiply with 1 + weight."""
    model, _ = load_tiny("gemma")
    plain = understood(model, IDS)
    nn.init.constant_(model.model.layers[1].input_layernorm.weight, -1.0)
    assert understood(model, IDS) == plain


@pytest.mark.parametrize("half", [0, 1])
def test_half_of_a_fused_layer_at_zero(half):
    model, _ = load_tiny("phi3")
    plain = understood(model, IDS)
    weight = model.model.layers[1].mlp.gate_up_proj.weight.data
    weight.chunk(2)[half].zero_()
    assert understood(model, IDS) == plain
    assert folds_and_back(model)[0] == 6


def heads_and_neurons(model):
    found = []

    def further(block, traced):
        call, hidden = traced.calls[block.index], traced.inputs[block.index]
        for module in find_modules(block, call, hidden):
            found.append((module.columns_UN, [rows_UM for _, rows_UM in module.sources]))

    inspect(model, TOKENS[:1], further=further)
    return found


@pytest.mark.parametrize("name", STRUCTURED)
def test_heads_and_neurons_are_found_among_zeros(name):
    model = build(name)
    plain = heads_and_neurons(model)
    for path in owners(list(find_blocks(model).values())[1]):
        undo = emptied(model, path)
        for (columns, rows), (columns_0, rows_0) in zip(
            plain, heads_and_neurons(model), strict=True
        ):
            assert torch.equal(columns, columns_0), path
            assert all(map(torch.equal, rows, rows_0)), path
        undo()


def test_a_wrong_fold_shows_behind_a_layer_of_zeros():
    """BitNet norms the input of down, channel by channel; nothing of it is passed on here."""
    model = built("bitnet", SUBNORMS)
    for block in model.model.layers:
        nn.init.zeros_(block.mlp.down_proj.weight)
    with pytest.raises(UnsupportedModelError, match="of what it adds to a channel"):
        channels_of(model)


def test_zeros_get_the_same_numbers_in_any_order_of_channels():
    torch.manual_seed(0)
    layer, order = nn.Linear(6, 8), torch.randperm(8)
    layer.weight.data[::2, 1:4] = 0
    layer.bias.data[3] = 0
    with without_zeros(layer):
        weight, bias = layer.weight.clone(), layer.bias.clone()
    assert bool(weight.all())
    held = layer.weight, layer.bias
    with torch.no_grad():
        kept = layer.weight != 0
        assert torch.equal(weight[kept], layer.weight[kept])
        layer.weight.copy_(layer.weight[order])
        layer.bias.copy_(layer.bias[order])
    with without_zeros(layer, moves={"weight": [(0, order)], "bias": [(0, order)]}):
        assert torch.equal(layer.weight, weight[order])
        assert torch.equal(layer.bias, bias[order])
    assert layer.weight is held[0]
    assert layer.bias is held[1]


ZEROS = ["", "q_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "input_layernorm"]


def with_zeros(what):
    model, _ = load_tiny("llama")
    block = model.model.layers[1]
    for name, parameter in block.named_parameters():
        if what in name:
            nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize(
    ("method", "what"), sorted({*each(METHODS, ZEROS), *each(["sparsegpt"], ZEROS)})
)
def test_methods_prune_a_model_with_zeros(method, what):
    """Every layer has its share of zeros, and the logits are numbers."""
    pattern = {"pattern": "2:4", "permutation": "fold"}
    if method in ("besa", "dass"):  # one learns shares, one prunes along outputs
        pattern = {"settings": {"allocation.steps": 4}} if method == "besa" else {}
    model = with_zeros(what)
    report = prunus.prune(model, method=method, tokens_ST=IDS.repeat(2, 1), **pattern).report
    assert report.sparsity >= 0.5 - 1e-3
    with torch.no_grad():
        assert bool(model(input_ids=IDS).logits.isfinite().all())


@pytest.mark.parametrize(("method", "what"), each(SMALLER, ZEROS))
def test_heads_and_neurons_go_from_a_model_with_zeros(method, what):
    model = with_zeros(what)
    count = model.num_parameters()
    prunus.prune(model, method=method, sparsity=0.4, tokens_ST=IDS.repeat(4, 1))
    assert model.num_parameters() < count
    with torch.no_grad():
        assert bool(model(input_ids=IDS).logits.isfinite().all())
