"""Query heads removed within key/value groups, as many from each."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunus
from helpers.gguf_files import read
from helpers.models import MODELS
from helpers.structured_models import GQA, IDS, MLP, RUN, build, logits
from prunus.base.errors import InputError, UnsupportedModelError
from prunus.methods.table import STRUCTURED
from prunus.model.inspect import inspect
from prunus.model.surgery import shrink
from prunus.model.units import find_modules
from prunus.report.unit_plots import kept_heads
from prunus.storage.gguf import write_gguf

WIDTH = 16
NINE = {**MLP, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": WIDTH}  # fmt: skip
ALONE = {"target": "heads", "query_heads": True}
ONE = {"tokens_ST": IDS, "sparsity": 0.34}  # one of the three query heads of a group


def squared_norms(attention):
    """‖q‖² + ‖o‖² of every query head, by a loop: keys and values stay whatever goes."""
    found = []
    for head in range(6):
        rows = range(WIDTH * head, WIDTH * (head + 1))
        q_OI, o_OI = attention.q_proj.weight.detach(), attention.o_proj.weight.detach()
        total = sum(float(w) ** 2 for row in rows for w in q_OI[row])
        total += sum(float(w) ** 2 for column in rows for w in o_OI[:, column])
        found.append(total)
    return found


def test_the_weakest_of_every_group_goes_and_the_rest_computes_as_before():
    dense, model = build("llama", NINE), build("llama", NINE)
    report = prunus.prune(model, method="l2", settings=ALONE, **ONE).report.structured
    for block, layer in zip(report.blocks, dense.model.layers, strict=True):
        worth = squared_norms(layer.self_attn)
        gone = [min(range(3 * g, 3 * g + 3), key=lambda head: worth[head]) for g in (0, 1)]
        assert block.kept_heads == [head for head in range(6) if head not in gone]
        assert kept_heads(block) == set(block.kept_heads)
        assert (block.heads, block.kv_heads) == ((6, 4), (2, 2))
        with torch.no_grad():
            for head in gone:
                layer.self_attn.o_proj.weight[:, WIDTH * head : WIDTH * (head + 1)] = 0
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)
    assert report.removed == 3 * 2 * 2 * WIDTH * 96  # q and o of two heads in three blocks


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "starcoder2"])
def test_plain_transformers_loads_the_family_with_its_own_config(family, tmp_path):
    model = build(family, {**NINE, "pad_token_id": 0})
    prunus.prune(model, method="l1", settings=ALONE, **ONE)
    text = model.config
    assert (text.num_attention_heads, text.num_key_value_heads) == (4, 2)
    assert text.head_dim == WIDTH
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("blocks", [None, "1:3"])
def test_it_is_written_verified_loaded_and_exported(blocks, tmp_path):
    """The tiny Llama has two query heads to a key/value head."""
    run = {"method": "goa", "blocks": blocks, "sparsity": 0.5, "recovery": "both"}
    result = prunus.prune(
        MODELS / "llama", output=tmp_path / "out", settings=ALONE, samples=6, length=48, **run
    )
    assert result.verification.ok
    found = result.report.structured
    assert found.stock == (blocks is None)
    assert [b.kv_heads for b in found.blocks if b.kv_heads] == [(2, 2)] * (
        3 if blocks is None else 2
    )
    model = prunus.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, result.model(input_ids=IDS).logits)
    for block in found.blocks:
        if block.heads:
            assert kept_heads(block) == set(block.kept_heads)
            assert {head // 2 for head in block.kept_heads} == {0, 1}  # one of each group
    made = write_gguf(tmp_path / "out", tmp_path / "out.gguf")
    keys = read(tmp_path / "out.gguf")[0]
    count = keys[f"{made.architecture}.attention.head_count"]
    assert count == (2 if blocks is None else [4, 2, 2])
    if blocks is None:
        again = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="out.gguf", dtype=torch.float32
        )
        with torch.no_grad():
            assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("allocation", ["uniform", "adaptive"])
@pytest.mark.parametrize("method", STRUCTURED)
def test_every_method_takes_as_many_from_each_group(method, allocation):
    model = build("llama", NINE)
    settings = {"query_heads": True, **({"compensation": False} if method == "flap" else {})}
    fields = {"tokens_ST": IDS, "sparsity": 0.4, "allocation": allocation}
    found = prunus.prune(model, method=method, settings=settings, **fields).report.structured
    for block in found.blocks:
        groups = [sum(head // 3 == g for head in block.kept_heads) for g in (0, 1)]
        assert groups[0] == groups[1] == block.heads[1] // 2
        assert block.kv_heads == (2, 2)
    assert found.removed == found.parameters[0] - found.parameters[1]
    assert allocation == "adaptive" or all(block.heads[1] == 4 for block in found.blocks)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_any_heads_of_a_group_may_go(family):
    """Not only its first ones: masked and shrunk compute the same."""
    masked, shrunk = build(family, NINE), build(family, NINE)
    heads_UG = torch.tensor([[2, 3], [0, 4], [1, 5]])
    blocks, traced = inspect(shrunk, IDS[:1])
    for block in blocks:
        call, hidden = traced.calls[block.index], traced.inputs[block.index]
        (module,) = find_modules(block, call, hidden, ("heads",), query_heads=True)
        module = module.each.together(heads_UG)
        shrink(block.module, block.name, module, torch.tensor([False, True, True]))
        reader = masked.model.layers[block.index].self_attn.o_proj
        with torch.no_grad():
            for head in (2, 3):
                reader.weight[:, WIDTH * head : WIDTH * (head + 1)] = 0
    torch.testing.assert_close(logits(shrunk), logits(masked), rtol=1e-4, atol=1e-4)


def test_where_one_key_serves_all_heads_it_changes_nothing():
    found = []
    for settings in ({"target": "heads"}, ALONE):
        model = build("gemma")
        prunus.prune(model, method="l2", settings=settings, **RUN)
        found.append(logits(model))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("family", "config", "settings", "error", "message"),
    [
        ("llama", MLP, ALONE, UnsupportedModelError, "one query head only"),
        ("gpt2", None, ALONE, UnsupportedModelError, "one query head only"),
        ("phi3", {**GQA, "pad_token_id": 0}, ALONE, UnsupportedModelError, "does not compute"),
        ("llama", GQA, {**ALONE, "heads.threshold": 0.3}, InputError, "Leave one of them out"),
    ],
)
def test_what_cannot_be_had_says_so_before_anything_changes(
    family, config, settings, error, message
):
    model = build(family, config)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        prunus.prune(model, method="goa", settings=settings, **RUN)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
