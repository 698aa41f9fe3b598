"""Orders of channels folded into models, gathered before layers, and read back."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunus
from helpers.channels import IDS, SUBNORMS, built, channels_of, shuffled
from helpers.models import FAMILIES as TRAINED
from helpers.models import MODELS, load_tiny
from helpers.roles import FAMILIES as CONFIGS
from helpers.roles import WIDE
from prunus.base.errors import CheckpointError, InputError, UnsupportedModelError
from prunus.maths.orders import Assignment
from prunus.maths.orders.ordering import Ordering, thinned, together
from prunus.maths.orders.orders import Orders
from prunus.maths.patterns import NM
from prunus.maths.scores import Wanda
from prunus.maths.stats import gather
from prunus.methods.build import build_method
from prunus.model.inspect import inspect, start
from prunus.model.interior import find_interiors
from prunus.model.residual import Residual
from prunus.model.weights import InMemory
from prunus.run.observer import Silent
from prunus.run.passes import residual_order

TWO_FOUR = NM(2, 4)
RUN = {"pattern": "2:4", "samples": 3, "length": 64}
ALSO = {
    "olmo2": SUBNORMS,  # norms on whole queries and keys, as wide as the residual stream
    "gemma3_text": {**SUBNORMS, "head_dim": 8},
    "phi": {**WIDE, "intermediate_size": 48},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "starcoder2": SUBNORMS,
}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def folds(model, least=1 / 2):
    before = logits(model)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    channels = channels_of(model)
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    channels.apply(shuffled(channels))
    changed = sum(not torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert changed > len(weights) * least
    assert float((logits(model) - before).abs().max()) <= 1e-4 * float(before.abs().max())
    return channels


def test_folding_alone_leaves_the_logits_of_trained_models(family):
    """Llama with grouped queries, Gemma, OPT, GPT-2, BLOOM, GPT-NeoX, Phi-3; most tie the head."""
    model, _ = load_tiny(family)
    channels = folds(model)
    assert len(channels.interiors) == 6


@pytest.mark.parametrize("name", [*CONFIGS, *ALSO])
def test_folding_alone_leaves_the_logits_of_every_family(name):
    config = ALSO[name] if name in ALSO else CONFIGS[name][0]
    assert len(folds(built(name, config)).interiors) == 4


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_of_a_mamba_the_stream_alone_is_folded(name):
    """Its inner channels pass a convolution and a scan; their sites keep their order."""
    more = {"num_heads": 8, "head_dim": 64, "n_groups": 1} if name == "mamba2" else {}
    model = built(name, {"hidden_size": 256, "num_hidden_layers": 2, "state_size": 8, **more})
    channels = folds(model, least=1 / 4)
    assert channels.interiors == {}
    assert all(axis < 2 for _, axis in channels.residual.axes)


def test_embeddings_narrower_than_the_stream_keep_their_order():
    """OPT-350m: a projection into the stream and one out of it."""
    config = {**WIDE, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    model = built("opt", config)
    table = model.get_input_embeddings().weight.clone()
    folds(model)
    assert torch.equal(model.get_input_embeddings().weight, table)


def test_what_cannot_be_folded_is_refused_and_left_as_it_was():
    """BitNet norms the inputs of o and down, channel by channel."""
    model = built("bitnet", SUBNORMS)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0 puts out something else"):
        channels_of(model)
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("fold_residual", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loud", [1.0, 2000.0])
def test_a_small_error_beside_loud_channels_is_seen(loud, dtype, fold_residual):
    """Norms within a tenth of 1, and a channel of the stream that dwarfs all others."""
    model = built("bitnet", SUBNORMS)
    for name, parameter in model.named_parameters():
        if "sub_norm" in name:
            parameter.data = 1 + 0.1 * torch.randn_like(parameter)
    model.get_input_embeddings().weight.data[:, 5] *= loud
    with pytest.raises(UnsupportedModelError, match="of what it adds to a channel"):
        channels_of(model.to(dtype), fold_residual)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rehearsed_without_a_false_alarm(dtype, family):
    model = load_tiny(family)[0].to(dtype)
    before = {name: p.clone() for name, p in model.named_parameters()}
    channels_of(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "groups", "rows"),
    [
        ("llama", [(2, 8), (2, 8)], [*range(8), *range(8), *range(8, 16), *range(8, 16)]),
        ("phi3", [(2, 8), (2, 8)], [*range(48, 56), *range(48, 56)] + 2 * [*range(56, 64)]),
        ("gpt2", [(1, 8)] * 4, [*range(64, 96)]),
        ("bloom", [(1, 8)] * 4, [24 * h + 16 + c for h in range(4) for c in range(8)]),
        ("falcon", [(4, 8)], 4 * [*range(40, 48)]),
    ],
)
def test_heads_and_value_rows_are_found_by_looking(name, groups, rows, dtype):
    model = built(name, CONFIGS[name][0]).to(dtype)
    blocks, traced = inspect(model, IDS)
    for block in blocks:
        found = find_interiors(block, traced.calls[block.index], traced.inputs[block.index])
        interior = next(x for x in found.values() if x.reader.role == "o")
        assert [tuple(group.shape) for group in interior.groups] == groups
        assert interior.sources[0][1].tolist() == rows
        assert torch.cat([g.flatten() for g in interior.groups]).sort().values.tolist() == list(
            range(32)
        )


def test_norms_of_queries_are_not_the_stream():
    model = built("olmo2", SUBNORMS)
    residual = Residual.of(InMemory(model), *inspect(model, IDS))
    touched = {name for name, _ in residual.axes}
    assert len(touched) == len(residual.axes)
    for name, _ in model.named_parameters():
        assert (name in touched) != name.endswith(("q_norm.weight", "k_norm.weight")), name


def test_heads_that_share_values_are_searched_together():
    """The order of a key/value head is that of its query heads' scores, one below the other."""
    model, _ = load_tiny("llama")
    interior = channels_of(model).interiors["model.layers.1.self_attn.o_proj"]
    score_OI = torch.rand(64, 64, generator=torch.Generator().manual_seed(1)) ** 3
    order_I = interior.search(score_OI, TWO_FOUR, Assignment())
    for columns_HN in interior.groups:
        assert columns_HN.shape == (2, 16)
        stacked = torch.cat([score_OI[:, columns_HN[0]], score_OI[:, columns_HN[1]]])
        expected_N = Assignment()(stacked, TWO_FOUR, 0.5)
        for columns_N in columns_HN:
            assert torch.equal(order_I[columns_N], columns_N[expected_N])


def test_the_residual_order_is_that_of_all_dense_scores():
    """Against hooks on the whole model; then with so few rows that they are thinned."""
    model, _ = load_tiny("llama")
    inputs, handles = {}, []
    readers = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    for name, module in model.named_modules():
        if name.endswith(readers):
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, n=name: inputs.setdefault(n, []).append(args[0].flatten(0, -2))
                )
            )
    for ids_T in IDS:
        logits_of = model(input_ids=ids_T[None])
    assert logits_of is not None
    for handle in handles:
        handle.remove()
    scores = []
    for name, batches in inputs.items():
        weight_OI = model.get_submodule(name).weight.detach()
        score_OI = Wanda()(weight_OI, gather(torch.cat(batches).detach(), Wanda.needs))
        scores.append(score_OI / score_OI.mean())
    blocks, traced = inspect(model, IDS)
    plan = {layer.name: 0.5 for block in blocks for layer in block.layers}
    where = {"device": torch.device("cpu"), "observer": Silent()}

    def found(rows):
        ordering = Ordering("fold", Wanda(), TWO_FOUR, rows=rows)
        recording = start(model, blocks, traced, IDS)
        with torch.no_grad():
            return residual_order(blocks, recording, ordering, plan, **where)

    assert torch.equal(found(10**6), Assignment()(torch.cat(scores), TWO_FOUR, 0.5))
    share = 300 // 15
    few = torch.cat([score_OI[:: -(-len(score_OI) // share)] for score_OI in scores])
    assert torch.equal(found(300), Assignment()(few, TWO_FOUR, 0.5))


def test_scores_of_a_site_weigh_alike_and_are_thinned_evenly():
    scores = [torch.rand(3, 8), 1000 * torch.rand(5, 8), torch.zeros(2, 8)]
    stacked = together(scores)
    assert stacked.shape == (10, 8)
    assert float(stacked[:3].mean()) == pytest.approx(1)
    assert float(stacked[3:8].mean()) == pytest.approx(1)
    assert not stacked[8:].any()
    assert thinned(torch.arange(10.0)[:, None], 4).flatten().tolist() == [0, 3, 6, 9]
    assert len(thinned(stacked, 100)) == 10
    with pytest.raises(InputError, match="rows"):
        Ordering("fold", Wanda(), TWO_FOUR, rows=0)


FOLDED = [*((family, "wanda") for family in TRAINED), ("llama", "magnitude"), ("opt", "mrp-sm")]


@pytest.mark.parametrize(("family", "method"), FOLDED)
def test_fold_is_the_method_on_a_model_whose_channels_were_stored_so(family, method, tmp_path):
    """The oracle folds the orders into the dense model and prunes it without a permutation.

    Read back from the file on disk: hardware's 2:4, by plain transformers, equal to the source.
    """
    source = MODELS / family
    result = prunus.prune(source, method=method, permutation="fold", output=tmp_path / "out", **RUN)
    assert {x.notes["order"] for x in result.report.layers} == {"fold"}
    folded, tokenizer = load_tiny(family)
    channels_of(folded).apply(Orders.read(tmp_path / "out"))
    prunus.prune(folded, method=method, tokenizer=tokenizer, **RUN)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    expected = folded.state_dict()
    for name, parameter in plain.state_dict().items():
        same = ((parameter != 0) == (expected[name] != 0)).float().mean()
        gap = float((parameter - expected[name]).norm() / expected[name].norm().clamp_min(1e-6))
        rounding = method == "mrp-sm"  # its solver stops at a tolerance, and decides by rounding
        assert same > (0.98 if rounding else 0.99999), (name, same)
        assert gap < (0.15 if rounding else 1e-5), (name, gap)
    assert torch.equal(logits(plain), logits(result.model))
    checked = prunus.verify(tmp_path / "out", source=source, pattern="2:4", reload=False)
    assert checked.ok, checked.problems
    assert checked.patterns == {"2:4": len(result.report.layers)}
    closed = [x.notes["score_gap_closed"] for x in result.report.layers]
    assert sum(closed) / len(closed) > 0.1


def test_fold_keeps_more_than_the_stored_order_and_gather_more_than_fold():
    closed = {}
    for permutation in ("fold", "gather", "free"):
        model, tokenizer = load_tiny("llama")
        run = {**RUN, "method": "wanda", "permutation": permutation, "tokenizer": tokenizer}
        layers = prunus.prune(model, **run).report.layers
        closed[permutation] = sum(x.notes["score_gap_closed"] for x in layers) / len(layers)
    assert 0.2 < closed["fold"] < closed["gather"] < closed["free"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gathered_weights_are_real_behind_an_index(name, tmp_path):
    """Plain transformers reads right weights; prunus.load has 2:4 in memory; the logits agree."""
    out = tmp_path / "out"
    result = prunus.prune(MODELS / name, method="wanda", permutation="gather", output=out, **RUN)
    plain = AutoModelForCausalLM.from_pretrained(out).eval()
    indexed = prunus.load(out)
    assert torch.equal(logits(plain), logits(result.model))
    assert torch.allclose(logits(indexed), logits(plain), atol=1e-5)
    kinds = {"gather": 0, "fold": 0}
    for layer in result.report.layers:
        kinds[layer.notes["order"]] += 1
        for model, ordered in ((indexed, True), (plain, layer.notes["order"] == "fold")):
            weight = model.get_submodule(layer.name).weight.detach()
            weight_OI = weight.T if layer.transposed else weight
            assert bool(((weight_OI != 0).reshape(-1, 4).sum(1) <= 2).all()) == ordered
    assert kinds == {"gather": 15 if name == "llama" else 6, "fold": 6}
    assert prunus.verify(out, source=MODELS / name, reload=False).ok
    asked = prunus.verify(out, pattern="2:4", reload=False)
    assert len(asked.problems) == kinds["gather"]
    assert "has 2:4 behind an index, but not in the stored order" in asked.problems[0]
    with pytest.raises(InputError, match="Copy the checkpoint's folder"):
        indexed.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(InputError, match="through indices"):
        prunus.prune(indexed, method="magnitude")
    one = {"tokenizer": load_tiny(name)[1], "length": 64, "windows": 2}
    beside = prunus.evaluate(indexed, "builtin", against=indexed, **one)
    assert beside.perplexity == pytest.approx(prunus.evaluate(plain, "builtin", **one).perplexity)
    assert beside.against.kl == pytest.approx(0, abs=1e-9)
    assert "prunus.load" in (out / "README.md").read_text()


def test_a_sites_gathered_order_is_shared_and_its_masks_are_the_patterns(tmp_path):
    model, tokenizer = load_tiny("llama")
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = prunus.prune(
        model, method="magnitude", permutation="gather", tokenizer=tokenizer, pattern="2:4"
    )
    assert len(result.orders.gathered) == len(result.orders.folded) == 6
    site = "model.layers.0.self_attn.q_proj"
    names = [f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"]
    scores = [dense[name].abs() / dense[name].abs().mean() for name in names]
    # v's rows were folded into the order of o's inputs first; rows do not matter to columns
    order_I = result.orders.gathered[site]
    assert torch.equal(order_I, Assignment()(torch.cat(scores), TWO_FOUR, 0.5)) or (
        order_I.sort().values.tolist() == list(range(64))
    )
    for name in names[:2]:
        mask_OI = TWO_FOUR.mask(dense[name][:, order_I].abs(), 0.5)
        kept_OI = dict(model.named_parameters())[name][:, order_I] != 0
        assert torch.equal(kept_OI, mask_OI)


@pytest.mark.parametrize("permutation", ["fold", "gather"])
def test_with_parts_of_a_model_stages_and_updates(permutation, tmp_path):
    result = prunus.prune(
        MODELS / "llama", method="ria", update="least-squares", refine="swaps", mlp_only=True,
        true_sequential=True, permutation=permutation, output=tmp_path / "out",
        settings={"permutation.sweeps": 3, "score.power": 0.4}, **RUN,
    )  # fmt: skip
    assert "Assignment(start=Heuristic(snake=True), sweeps=3" in result.report.pruner
    assert prunus.verify(tmp_path / "out", source=MODELS / "llama", reload=False).ok
    assert {x.role for x in result.report.layers} == {"gate", "up", "down"}
    assert all("o_proj" not in site for site in result.orders.folded)


def test_heads_too_narrow_for_the_pattern_stay_stored(tmp_path):
    """32 weights a group, 16 channels a head."""
    result = prunus.prune(
        MODELS / "llama", method="wanda", pattern="16:32", permutation="fold", samples=2, length=64,
        output=tmp_path / "out",
    )  # fmt: skip
    orders = {x.name.rsplit(".", 1)[-1]: x.notes["order"] for x in result.report.layers}
    assert orders.pop("o_proj") == "stored"
    assert set(orders.values()) == {"fold"}
    assert {x.notes["score_gap_closed"] for x in result.report.layers if x.role == "o"} == {0.0}


def test_an_error_in_the_middle_leaves_gathered_weights_in_their_places():
    model, _ = load_tiny("llama")
    channels = channels_of(model, fold_residual=False)
    blocks, _ = inspect(model, IDS)
    block = blocks[0]
    before = {layer.name: layer.weight_OI.clone() for layer in block.layers}
    plan = {layer.name: 0.5 for layer in block.layers if layer.role in "qkv"}
    stats = {site: gather(torch.randn(99, 64), Wanda.needs) for site in block.sites}
    ordering = Ordering("gather", Wanda(), TWO_FOUR)

    def interrupted():
        with channels.arranged(block, stats, plan, ordering):
            assert not torch.equal(block.layers[0].weight_OI, before[block.layers[0].name])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(layer.weight_OI, before[layer.name]) for layer in block.layers)


def test_damaged_orders(tmp_path):
    out = tmp_path / "out"
    prunus.prune(
        MODELS / "llama", method="magnitude", pattern="2:4", permutation="gather", output=out
    )
    good = json.loads((out / "channel_orders.json").read_text())
    site = "model.layers.0.self_attn.q_proj"
    for damaged in (
        {**good, "gathered": {}},
        {**good, "gathered": {**good["gathered"], site: [0, 1, 2]}},
        {**good, "gathered": {**good["gathered"], site: [0] * 64}},
        {"residual": None},
        [],
    ):
        (out / "channel_orders.json").write_text(json.dumps(damaged))
        for use in (prunus.load, lambda path: prunus.verify(path, reload=False)):
            with pytest.raises(CheckpointError, match="order"):
                use(out)
    shutil.copy(out / "channel_orders.json", tmp_path)
    (out / "channel_orders.json").write_text(
        json.dumps({**good, "folded": {"model.layers.0.mlp.down_proj": [1, 0]}})
    )
    with pytest.raises(CheckpointError, match="does not fit this model"):
        prunus.verify(out, source=MODELS / "llama", reload=False)


def test_options_that_need_a_permutation():
    with pytest.raises(InputError, match="--search is for a run with --permutation"):
        build_method("wanda", TWO_FOUR, search="greedy")
    with pytest.raises(InputError, match="for a run with --permutation"):
        build_method("wanda", TWO_FOUR, settings={"permutation.sweeps": 2})
    with pytest.raises(InputError, match="gredy"):
        build_method("wanda", TWO_FOUR, permutation="fold", search="gredy")
    pruner = build_method(
        "wanda", TWO_FOUR, {"permutation.rows": 99}, permutation="fold", search="heuristic"
    )
    assert "Heuristic(snake=True), rows=99" in repr(pruner)
