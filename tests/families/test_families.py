"""The causal families of transformers, small and random: streamed, pruned, saved, loaded again.

That a replayed block gives what the model's own forward gives is checked in every run (law 5).
"""

import copy
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunus
from helpers.models import MODELS
from helpers.random_models import DEEPSEEK, FAMILIES, GQA, IDS, MIXTURES, MLP, SHARED, STATE, build
from prunus.base.errors import PatternError, UnsupportedModelError
from prunus.judge.greedy import cache_of
from prunus.model.replay import hidden_of, record, trace

OUTSIDE = r"\d+% of its weights outside of linear layers and experts: "
DBRX = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}}  # fmt: skip
REFUSED = {
    # All experts one below the other in a parameter of two dimensions: nothing says how many.
    "dbrx": (DBRX, OUTSIDE + r"ffn\.experts\.mlp\.w1"),
    # Matrices for all heads in parameters of two dimensions, multiplied by baddbmm.
    "recurrent_gemma": (MLP, OUTSIDE + r"temporal_block\.conv_1d"),
}


@pytest.mark.parametrize("family", sorted(FAMILIES | MIXTURES))
def test_streamed_pruned_saved_and_loaded(family, tmp_path):
    model = build(family, (FAMILIES | MIXTURES)[family])
    model.save_pretrained(tmp_path / "dense")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "llama" / file, tmp_path / "dense")
    run = {"method": "wanda", "tokens_ST": IDS, "min_tokens": 8}
    report = prunus.prune(tmp_path / "dense", output=tmp_path / "out", **run).report
    prunus.prune(model, **run)  # in memory
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert 0.49 < report.sparsity <= 0.5
    inside = sum(p.numel() for p in model.parameters()) - report.coverage.embeddings
    assert report.coverage.pruned_weights > 0.95 * inside
    experts = [layer for layer in report.layers if layer.expert is not None]
    assert bool(experts) == (family in MIXTURES)
    assert any("by_weights_alone" not in layer.notes for layer in experts) or not experts
    assert all(layer.role != "other" or family == "jetmoe" for layer in experts)  # its queries


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "gpt_oss", "llama", "rwkv"])
def test_streamed_in_half_precision(family, dtype, tmp_path):
    """Also what transformers keeps in float32 there: RWKV's decay, routers."""
    dense = build(family, (FAMILIES | MIXTURES)[family]).to(dtype)
    for name, tensor in list(dense.state_dict(keep_vars=True).items()):
        if name.endswith(("time_decay", "e_score_correction_bias")):
            tensor.data = torch.randn(tensor.shape)  # more digits than half precision has
    dense.save_pretrained(tmp_path / "dense")
    run = {"method": "wanda", "tokens_ST": IDS, "min_tokens": 8}
    prunus.prune(tmp_path / "dense", output=tmp_path / "out", **run)
    held = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    prunus.prune(held, **run)
    streamed = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(streamed[name], p) for name, p in held.state_dict().items())


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_what_cannot_be_handled_yet_says_so(family):
    settings, reason = REFUSED[family]
    with pytest.raises(UnsupportedModelError, match=reason):
        prunus.prune(build(family, settings), method="wanda", tokens_ST=IDS)


def test_a_layer_that_is_multiplied_by_hand_has_its_statistics():
    """Mamba's ``dt_proj.weight @ x``: what x is, x_proj's output says."""
    model, seen = build("mamba", STATE), []
    mixer = model.backbone.layers[0].mixer
    rank, dense_OI = mixer.time_step_rank, mixer.dt_proj.weight.detach().clone()
    hook = mixer.x_proj.register_forward_hook(lambda _, args, out: seen.append(out[..., :rank]))
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        for ids_T in IDS:
            model(input_ids=ids_T[None])
    hook.remove()
    inputs_TI = torch.cat([x.flatten(0, 1) for x in seen[1:]]).double()
    prunus.prune(model, method="wanda", tokens_ST=IDS)
    score_OI = dense_OI.double().abs() * inputs_TI.square().sum(0).sqrt()
    for row, kept in zip(score_OI.tolist(), (mixer.dt_proj.weight != 0).tolist(), strict=True):
        order = sorted(range(rank), key=lambda j: (row[j], j))
        assert [not kept[j] for j in order] == [True] * (rank // 2) + [False] * (rank - rank // 2)
    assert type(mixer.dt_proj.weight) is torch.nn.Parameter
    assert mixer.dt_proj.bias is not None
    with torch.no_grad():
        assert not torch.equal(model(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_the_optimal_update_serves_state_space_models(family):
    """Against keeping the weights on the same mask, layer by layer of the first block."""
    ids = torch.randint(0, 128, (8, 64), generator=torch.Generator().manual_seed(1))
    report = prunus.prune(build(family, FAMILIES[family]), method="mrp-sm", tokens_ST=ids).report
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    for layer in report.layers:
        assert layer.notes["gap"] <= 1e-3
        assert layer.relative_output_error < layer.error_before_update


def test_a_model_that_changes_the_stream_between_blocks_is_refused():
    model = build("rwkv", {"hidden_size": 64, "num_hidden_layers": 8})
    with pytest.raises(UnsupportedModelError, match="rescale_every set to 0"):
        prunus.prune(model, method="wanda", tokens_ST=IDS)
    model = build("rwkv", {"hidden_size": 64, "num_hidden_layers": 8, "rescale_every": 0})
    assert prunus.prune(model, method="wanda", tokens_ST=IDS).report.sparsity == 0.5


@torch.no_grad()
def test_two_streams_do_not_share_what_blocks_leave_for_later_ones():
    """Gemma 4's last blocks read keys and values of earlier ones, out of a mapping."""
    dense = build("gemma4_text", SHARED)
    pruned = copy.deepcopy(dense)
    for parameter in pruned.model.layers.parameters():
        parameter.mul_(0.5)
    blocks, ours = dict(enumerate(dense.model.layers)), list(pruned.model.layers)
    one = record(dense, blocks, IDS.split(1), trace(dense, blocks, IDS))
    other = one.copy()
    for index, block in blocks.items():
        one.advance(index, ours[index], torch.device("cpu"))
        other.advance(index, block, torch.device("cpu"))
    for model, recording in ((pruned, one), (dense, other)):
        outputs = trace(model, dict(enumerate(model.model.layers)), IDS).outputs
        torch.testing.assert_close(torch.cat(list(recording.hidden)), hidden_of(outputs[-1]))


@pytest.mark.parametrize("family", ["llama", "mamba", "mamba2", "rwkv"])
@torch.no_grad()
def test_bench_decodes_from_what_each_family_calls_its_cache(family):
    model = build(family, FAMILIES[family])
    before = model(input_ids=IDS[:1, :-1], use_cache=True)
    step = model(input_ids=IDS[:1, -1:], use_cache=True, **cache_of(before)).logits[:, -1]
    whole = model(input_ids=IDS[:1], use_cache=False).logits[:, -1]
    torch.testing.assert_close(step, whole, rtol=1e-3, atol=1e-4)


def test_a_model_whose_blocks_hand_more_than_hidden_states_to_the_next_is_refused():
    """GLM's second kind of attention reads the tokens that the block before it has chosen."""
    settings = {
        **DEEPSEEK, "num_hidden_layers": 4, "mlp_layer_types": ["dense"] * 4, "index_topk": 8,
        "index_head_dim": 16, "index_n_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    alone = build("glm_moe_dsa", {**settings, "indexer_types": ["full"] * 4})
    assert prunus.prune(alone, method="wanda", tokens_ST=IDS).report.sparsity == 0.5
    model = build("glm_moe_dsa", {**settings, "indexer_types": ["full", "shared"] * 2})
    with pytest.raises(UnsupportedModelError, match="arguments depend on other blocks"):
        prunus.prune(model, method="wanda", tokens_ST=IDS)


def test_dass_without_a_gated_mlp_is_refused():
    with pytest.raises(UnsupportedModelError, match="dass needs a gated MLP"):
        prunus.prune(build("mamba", STATE), method="dass", tokens_ST=IDS)


def test_a_fold_in_half_precision_does_not_stumble_over_a_router():
    model = build("minimax_m2", MIXTURES["minimax_m2"]).bfloat16()
    report = prunus.prune(
        model, method="wanda", pattern="2:4", permutation="fold", tokens_ST=IDS
    ).report
    assert report.sparsity == 0.5


def test_a_refused_model_is_in_training_mode_still():
    model = build("llama", GQA).train()
    with pytest.raises(PatternError):
        prunus.prune(model, method="wanda", pattern="7:9", tokens_ST=IDS)
    assert all(module.training for module in model.modules())
