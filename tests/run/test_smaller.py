"""Heads and neurons really go: surgery, the loop, and what cannot be done."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import prunus
from helpers.models import load_tiny
from helpers.structured_models import FAMILIES, GQA, IDS, MLP, RUN, build, logits
from prunus.base.errors import CalibrationError, InputError, UnsupportedModelError
from prunus.maths.scores.attention import ascending, row_major
from prunus.methods.build import build_units
from prunus.methods.table import STRUCTURED
from prunus.model.inspect import inspect
from prunus.model.surgery import rehearse, shrink
from prunus.model.units import find_modules
from prunus.run.observer import Silent


def zero(module, keep_U):
    """What ``shrink`` takes away, set to 0 instead."""
    for layer, rows_UM in module.sources:
        rows = rows_UM[~keep_U].flatten()
        layer.weight_OI[rows] = 0
        if layer.bias_O is not None:
            layer.bias_O[rows] = 0
    module.reader.weight_OI[:, module.columns_UN[~keep_U].flatten()] = 0


def look(model):
    blocks, traced = inspect(model, IDS[:1])
    found = [
        (block, module, traced.calls[block.index], traced.inputs[block.index])
        for block in blocks
        for module in find_modules(block, traced.calls[block.index], traced.inputs[block.index])
    ]
    return found


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


def test_masked_and_shrunk_logits_are_equal(family):
    masked, shrunk = build(family), build(family)
    dense = logits(masked)
    generator = torch.Generator().manual_seed(1)
    for (_, wide, *_), (block, module, *_) in zip(look(masked), look(shrunk), strict=True):
        keep_U = torch.rand(module.units, generator=generator) < 0.6
        keep_U[0], keep_U[-1] = True, False
        zero(wide, keep_U)
        gone = module.parameters * int((~keep_U).sum())
        before = sum(p.numel() for p in shrunk.parameters())
        shrink(block.module, block.name, module, keep_U)
        assert before - sum(p.numel() for p in shrunk.parameters()) == gone
    expected = logits(masked)
    assert (expected - dense).abs().max() > 0.1
    torch.testing.assert_close(logits(shrunk), expected, rtol=1e-4, atol=1e-4)
    ids = shrunk.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    again = masked.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(ids, again)  # with a cache of keys and values


def test_what_writes_nothing_goes_without_a_trace(family):
    model = build(family)
    for _, module, *_ in look(model):
        module.reader.weight_OI[:, module.columns_UN[1]] = 0
    expected = logits(model)
    for block, module, *_ in look(model):
        keep_U = torch.arange(module.units) != 1
        shrink(block.module, block.name, module, keep_U)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_modules_are_found_where_the_caller_has_gradients_off():
    with torch.no_grad():
        found = [(module.unit, module.units) for _, module, *_ in look(build("llama"))]
    assert found == [("heads", 2), ("neurons", 96)] * 3


def test_a_rehearsal_leaves_no_trace(family):
    model = build(family)
    before = copy.deepcopy(model.state_dict())
    text, expected = str(model), logits(model)
    for block, module, call, hidden in look(model):
        rehearse(block, module, call, hidden)
    assert str(model) == text
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(logits(model), expected)


def test_a_head_that_is_there_twice_is_found_and_goes():
    model = build("llama", MLP)
    width = 16
    with torch.no_grad():
        attention = model.model.layers[1].self_attn
        for layer in (attention.q_proj, attention.k_proj):
            layer.weight[2 * width : 3 * width] = layer.weight[:width]
    fields = {"tokens_ST": IDS, "settings": {"target": "heads"}, "allocation": "adaptive"}
    one = 4 * 64 * width
    result = prunus.prune(model, method="goa", parameters=one, **fields)
    blocks = result.report.structured.blocks
    assert blocks[1].divergence[0][2] == 0
    assert [block.heads for block in blocks] == [(4, 4), (4, 3), (4, 4)]
    assert blocks[1].kept_heads == [1, 2, 3]


MOE = {**MLP, "num_key_value_heads": 4, "moe_intermediate_size": 32, "head_dim": 16}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}


def test_the_multiply_adds_of_a_token_are_those_of_the_matrices_it_meets():
    model = build("llama")
    weights = [sum(x.weight_OI.numel() for x in block.layers) for block in inspect(model, IDS)[0]]
    found = prunus.prune(model, method="l1", **RUN).report.structured
    assert found.multiply_adds[0] == pytest.approx(sum(weights) + 128 * 64, rel=0.01)
    removed = found.multiply_adds[0] - found.multiply_adds[1]
    assert removed == pytest.approx(found.removed, rel=0.01)
    assert found.predicted_speedup == found.multiply_adds[0] / found.multiply_adds[1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt"])
def test_blocks_and_what_is_around_them_cost_what_the_whole_model_costs(family):
    model = build(family)

    def whole():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=IDS[:1, :1], use_cache=False)
        return counter.get_total_flops() // 2

    before = whole()
    found = prunus.prune(model, method="l1", **RUN).report.structured
    assert found.multiply_adds == (before, whole())


def test_of_the_experts_those_that_a_token_is_sent_to_are_counted():
    model = build("mixtral", {**MLP, **EXPERTS, "num_key_value_heads": 4})
    found = prunus.prune(model, method="l1", settings={"target": "heads"}, **RUN).report.structured
    block = 4 * 64 * 64 + 4 * 64 + 2 * 3 * 64 * 96  # attention, router, two experts of four
    assert found.multiply_adds[0] == pytest.approx(3 * block + 128 * 64, rel=0.01)


def test_heads_of_a_mixture_leave_its_other_numbers_alone():
    model = build("qwen3_moe", {**MOE, **EXPERTS})
    before = model.config.to_dict()
    assert prunus.prune(model, method="l1", settings={"target": "heads"}, **RUN).report.structured
    after = model.config.to_dict()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"num_attention_heads", "num_key_value_heads"}


@pytest.mark.parametrize("fields", [{"method": "goa", "recovery": "both"}, {"method": "flap"}])
def test_spilled_activations_give_the_same_weights(fields, tmp_path):
    held, spilled = build("llama"), build("llama")
    prunus.prune(held, **fields, **RUN)
    prunus.prune(spilled, spill=tmp_path, **fields, **RUN)
    same = zip(held.state_dict().values(), spilled.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recovery", ["none", "before", "after", "both"])
@pytest.mark.parametrize("method", STRUCTURED)
def test_every_method_removes_what_was_asked(method, recovery):
    model = build("llama")
    settings = {"compensation": False} if recovery in ("after", "both") else {}
    fields = {"method": method, "recovery": recovery, "settings": settings, **RUN}
    report = prunus.prune(model, blocks="1:3", **fields).report
    found = report.structured
    assert found.removed == found.parameters[0] - found.parameters[1] + added(model)
    assert 0 <= 0.5 - found.share <= 192 * 2 / found.removable
    assert found.parameters[1] == sum(p.numel() for p in model.parameters())
    assert [layer.block for layer in report.layers] == [1] * 7 + [2] * 7
    assert bool(logits(model).isfinite().all())
    again = build("llama")
    prunus.prune(again, blocks="1:3", **fields)
    assert torch.equal(logits(model), logits(again))  # law 1


def added(model):
    """Biases that compensation brought."""
    return sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias"))


def test_the_second_module_sees_the_first_one_pruned():
    """Wanda-sp's neurons are scored on what the smaller attention before them puts out."""
    model = build("llama")
    prunus.prune(model, method="wanda-sp", **RUN)
    by_hand = build("llama")
    for block in range(3):
        for target in ("heads", "neurons"):
            prunus.prune(
                by_hand,
                method="wanda-sp",
                blocks=f"{block}:{block + 1}",
                settings={"target": target},
                tokens_ST=IDS,
                sparsity=0.5,
            )
    torch.testing.assert_close(logits(by_hand), logits(model), rtol=1e-4, atol=1e-4)


def test_flaps_bias_takes_up_the_mean_of_what_went():
    model = build("llama")
    inputs = {}
    reader = model.model.layers[0].mlp.down_proj
    hook = reader.register_forward_pre_hook(lambda _, args: inputs.update(x=args[0]))
    logits(model)
    hook.remove()
    weight = reader.weight.detach().clone()
    fields = {"settings": {"target": "neurons"}, "allocation": "uniform", "blocks": "0:1", **RUN}
    prunus.prune(model, method="flap", **fields)
    kept = [int((weight.T == column).all(1).nonzero()) for column in reader.weight.detach().T]
    gone = [i for i in range(96) if i not in kept]
    mean_I = inputs["x"].flatten(0, 1).double().mean(0)
    expected = weight[:, gone].double() @ mean_I[gone]
    torch.testing.assert_close(reader.bias.double(), expected, rtol=1e-4, atol=1e-4)


def test_recovery_and_repair_lower_the_error_and_report_it():
    plain, tokenizer = load_tiny("llama")
    both, _ = load_tiny("llama")
    fields = {"method": "goa", "sparsity": 0.5, "samples": 32, "length": 128}
    prunus.prune(plain, tokenizer=tokenizer, **fields)
    report = prunus.prune(both, tokenizer=tokenizer, recovery="both", **fields).report
    perplexities = [
        prunus.evaluate(model, length=128, windows=20, tokenizer=tokenizer).perplexity
        for model in (plain, both)
    ]
    assert perplexities[1] < 0.7 * perplexities[0]
    for layer in report.layers:
        notes = layer.notes["repair"]
        assert notes["held_out_after"] <= notes["held_out_before"]
        assert ("recovery" in layer.notes) == ((layer.name != "" and layer.notes["units"] != 2)
                                               or layer.block > 0)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "goa", "pattern": "2:4"}, "--pattern does not apply"),
        ({"method": "goa", "update": "keep"}, "--update does not apply"),
        ({"method": "goa", "skip_blocks": "0:1"}, "blocks=A:B"),
        ({"method": "wanda", "blocks": "0:1"}, "--blocks does not apply"),
        ({"method": "wanda", "recovery": "after"}, "--recovery does not apply"),
        ({"method": "l1", "sparsity": 0.0}, "between 0 and 1"),
        ({"method": "l1", "sparsity": 1.0}, "between 0 and 1"),
        ({"method": "l1", "sparsity": 0.2, "parameters": 5}, "give one of them"),
        ({"method": "l1", "parameters": 10**9}, "--parameters"),
        ({"method": "l1", "blocks": "2:9"}, "A:B with 0 <= A < B <= 3"),
        ({"method": "l1", "blocks": "all"}, "A:B"),
        ({"method": "l1", "sparsity": 0.0001}, "Nothing would be removed"),
        ({"method": "l1", "allocation": "owl"}, "Unknown allocation 'owl'"),
        ({"method": "l1", "recovery": "later"}, "Unknown recovery 'later'"),
        ({"method": "flap", "recovery": "after"}, "compensation=false"),
        ({"method": "l1", "settings": {"neurons.p": 1}}, "has no field 'p'"),
        ({"method": "goa", "settings": {"heads.order": "row-major"}}, "for a threshold above 0"),
        (
            {"method": "goa", "allocation": "adaptive", "settings": {"heads.threshold": 0.1}},
            "Leave one of them out",
        ),
        ({"method": "l1", "recovery": "after", "tokens_ST": IDS[:1]}, "at least two"),
        ({"method": "l1", "allocation": "adaptive", "sparsity": 1e-5}, "1e-05 of the parameters"),
        ({"method": "l1", "mlp_only": True, "settings": {"target": "heads"}}, "Drop one"),
        ({"method": "prune-o-matic"}, "Unknown method"),
    ],
)
def test_bad_requests_say_what_to_change(fields, message):
    model = build("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message):
        prunus.prune(model, **{"tokens_ST": IDS, **fields})
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_what_a_structured_run_cannot_do_says_so(tmp_path):
    with pytest.raises(InputError, match="given as a path, with an output"):
        prunus.prune(build("llama"), method="goa", output=tmp_path / "out", resume=True)
    with pytest.raises(CalibrationError, match="reads text"):
        prunus.prune(build("llama"), method="flap", calibration="none")


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("olmo2", GQA, "a norm across heads"),
        ("phi3", {**GQA, "pad_token_id": 0}, "does not compute what it should"),
        ("llama", {**GQA, "num_attention_heads": 1, "num_key_value_heads": 1}, "one must stay"),
    ],
)
def test_attention_that_cannot_shrink_is_refused_and_its_neurons_are_not(family, settings, message):
    model = build(family, settings)
    expected = logits(model)
    with pytest.raises(UnsupportedModelError, match=message):
        prunus.prune(model, method="l1", **RUN)
    assert torch.equal(logits(model), expected)
    report = prunus.prune(model, method="l1", settings={"target": "neurons"}, **RUN).report
    assert report.structured.blocks[0].neurons == (96, 48)


EIGHT = {**MLP, "num_attention_heads": 8, "num_key_value_heads": 8}


@pytest.mark.parametrize("sparsity", [None, 0.25])
@pytest.mark.parametrize("order", ["ascending", "row-major"])
def test_a_threshold_takes_the_heads_that_are_below_it_when_their_turn_comes(order, sparsity):
    """All of them; beside a share that was asked for, no more than that."""
    some = 0
    for tau in (0.2, 0.22, 0.25):
        settings = {"heads.order": order, "heads.threshold": tau, "heads.goes": "first"}
        fields = {"settings": {**settings, "target": "heads"}, "tokens_ST": IDS}
        report = prunus.prune(build("llama", EIGHT), method="goa", sparsity=sparsity, **fields)
        for block in report.report.structured.blocks:  # as they were when they were chosen
            divergence_HH = torch.tensor(block.divergence).double()
            goes_U = (
                ascending(divergence_HH) if order == "ascending" else row_major(divergence_HH, tau)
            )
            below = (goes_U < tau).nonzero().flatten().tolist()
            gone = sorted(set(range(8)) - set(block.kept_heads))
            assert set(gone) <= set(below)
            assert len(gone) == min(len(below), 8 if sparsity is None else 2)
            assert block.below == (len(below), len(gone))
            some += len(gone)
    assert some


@pytest.mark.parametrize("target", ["heads", "both"])
def test_a_threshold_decides_alone_where_no_share_was_asked_for(target):
    """The default share is 0.2, less than one of four heads. One head of each block stays."""
    settings = {"heads.threshold": 0.8, "target": target}
    report = prunus.prune(
        build("llama", MLP), method="goa", settings=settings, tokens_ST=IDS
    ).report
    blocks = report.structured.blocks
    assert [block.heads for block in blocks] == [(4, 1)] * 3
    assert [block.below for block in blocks] == [(3, 3)] * 3
    assert "heads.threshold decided: 9 groups" in report.structured.bound
    neurons = None if target == "heads" else (96, 96)  # the heads are more than the share
    assert [block.neurons for block in blocks] == [neurons] * 3
    assert report.requested == (0.75 if target == "heads" else 0.2)


def test_neurons_fill_up_what_a_threshold_leaves_of_the_share():
    settings = {"heads.threshold": 1e-6}
    report = prunus.prune(
        build("llama", MLP), method="goa", settings=settings, tokens_ST=IDS
    ).report
    found = report.structured
    assert [block.heads for block in found.blocks] == [(4, 4)] * 3
    assert 0 <= 0.2 - found.share <= 3 * 192 / found.removable
    assert "no two heads are closer" in found.bound


@pytest.mark.parametrize("cap", [{"sparsity": 0.5}, {"parameters": 6 * 4 * 64 * 16}])
def test_a_share_beside_a_threshold_is_a_cap_and_the_report_says_so(cap):
    settings = {"heads.threshold": 0.8, "target": "heads"}
    seen = Counting()
    model = build("llama", MLP)
    fields = {"settings": settings, "tokens_ST": IDS, **cap}
    report = prunus.prune(model, method="goa", observer=seen, **fields).report
    assert [block.below for block in report.structured.blocks] == [(3, 2)] * 3
    expected = "the share decided in every block: of 9 groups of heads below heads.threshold 6"
    assert expected in report.structured.bound
    assert report.structured.bound in seen.said
    assert report.summary()["bound"] == report.structured.bound


def test_the_report_names_the_blocks_that_the_share_decided():
    model = build("llama", MLP)
    with torch.no_grad():
        for layer in (1, 2):  # in block 1 two pairs of heads are the same, in block 2 one
            attention = model.model.layers[layer].self_attn
            for matrix in (attention.q_proj.weight, attention.k_proj.weight):
                matrix[16:32] = matrix[:16]
                if layer == 1:
                    matrix[48:] = matrix[32:48]
    settings = {"heads.threshold": 1e-3, "target": "heads"}
    found = prunus.prune(
        model, method="goa", settings=settings, sparsity=0.25, tokens_ST=IDS
    ).report.structured
    assert [block.below for block in found.blocks] == [(0, 0), (2, 1), (1, 1)]
    assert found.bound == (
        "the share decided in block 1, heads.threshold in the others: of 3 groups of heads below "
        "heads.threshold 2 were removed"
    )


def test_a_threshold_under_which_nothing_goes_says_so():
    model = build("llama", MLP)
    before = copy.deepcopy(model.state_dict())
    settings = {"heads.threshold": 1e-6, "target": "heads"}
    with pytest.raises(InputError, match=r"No two heads are closer .* nothing was removed"):
        prunus.prune(model, method="goa", settings=settings, **RUN)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("threshold", [1e-6, 0.8])
def test_a_share_of_less_than_one_head_beside_a_threshold_is_refused_before_text_is_read(threshold):
    """No matter how close heads are; this was reported as heads that are too far apart."""
    settings = {"heads.threshold": threshold, "target": "heads"}
    seen = Counting()
    with pytest.raises(InputError, match=r"is less in every block than .* raise it, or leave it"):
        prunus.prune(
            build("llama", MLP), method="goa", settings=settings, sparsity=0.2, tokens_ST=IDS,
            observer=seen,
        )  # fmt: skip
    assert not seen.samples


def test_similar_heads_in_blocks_where_the_share_is_less_than_one_say_so():
    """Block 0 has two heads, of which 0.3 is less than one; the others have no similar ones."""
    model = build("llama", MLP)
    prunus.prune(model, method="l1", blocks="0:1", settings={"target": "heads"}, **RUN)
    with torch.no_grad():
        for matrix in ("q_proj", "k_proj"):
            weight = getattr(model.model.layers[0].self_attn, matrix).weight
            weight[16:] = weight[:16]
    settings = {"heads.threshold": 1e-3, "target": "heads"}
    with pytest.raises(InputError, match=r"1 heads or groups .* Raise the share, or leave it out"):
        prunus.prune(model, method="goa", settings=settings, sparsity=0.3, tokens_ST=IDS)


@pytest.mark.parametrize("score", ["second-moment", "both"])
@pytest.mark.parametrize("allocation", ["uniform", "adaptive"])
def test_heads_go_by_what_they_add(score, allocation):
    """A head that adds next to nothing goes first, unless two are the same."""
    model = build("llama", MLP)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 32:48] *= 1e-3
        if score == "both":
            for matrix in ("q_proj", "k_proj"):
                weight = getattr(model.model.layers[1].self_attn, matrix).weight
                weight[48:] = weight[:16]
    settings = {"target": "heads", "heads.score": score}
    settings |= {"heads.similar": 0.001} if score == "both" else {}
    fields = {"sparsity": 0.25, "settings": settings, "tokens_ST": IDS, "allocation": allocation}
    blocks = prunus.prune(model, method="goa", **fields).report.structured.blocks
    if score == "second-moment":
        assert 2 not in blocks[1].kept_heads
        assert blocks[1].divergence is None
    else:
        assert len({0, 3} - set(blocks[1].kept_heads)) == 1
    if allocation == "uniform":
        assert [len(block.kept_heads) for block in blocks] == [3, 3, 3]
    else:
        assert sum(len(block.kept_heads) for block in blocks) == 9


def test_settings_that_need_each_other_come_in_any_order():
    settings = {"heads.order": "row-major", "heads.score": "both", "heads.threshold": "0.3"}
    pruner = build_units("goa", settings)
    assert (pruner.heads.order, pruner.heads.score) == ("row-major", "both")
    assert pruner.heads.threshold == 0.3
    assert pruner.heads.goes == "weaker"  # as the row has it


def test_three_shares_say_what_was_removed_of_what():
    model = build("llama")
    count = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.model.layers[1].parameters())
    fields = {"settings": {"target": "heads"}, "blocks": "1:3", **RUN}
    report = prunus.prune(model, method="l1", **fields).report
    gone = 2 * 64 * 16 * 6  # of each of two blocks one group: two heads' q and o, one's k and v
    found = report.structured
    assert found.share == 0.5
    assert found.share_of_blocks == pytest.approx(gone / (2 * block))
    assert found.share_of_model == pytest.approx(gone / count)
    assert found.in_range == (2 * block, 2 * block - gone)
    said = report.summary()
    assert said["removed_share"] == 0.5
    assert said["removed_share_of_blocks"] == found.share_of_blocks
    assert said["removed_share_of_model"] == found.share_of_model
    assert found.shares == (
        f"50.0% of the parameters in heads of the chosen blocks, {gone / (2 * block):.1%} of all "
        f"parameters in these blocks, {gone / count:.1%} of the whole model"
    )


def test_where_neurons_run_out_more_heads_go():
    model = build("llama", {**GQA, "intermediate_size": 32})
    found = prunus.prune(model, method="l1", **{**RUN, "sparsity": 0.49}).report.structured
    assert found.blocks[0].kv_heads == (2, 1)
    assert found.share > 0.47
    model = build("llama", {**GQA, "intermediate_size": 32})
    with pytest.raises(InputError, match=r"can be\. Remove less"):
        prunus.prune(model, method="l1", **{**RUN, "sparsity": 0.9})


class Counting(Silent):
    """Which steps there were, and how many samples went through a block."""

    def __init__(self):
        self.steps, self.samples, self.said = [], 0, []

    def say(self, text):
        self.said.append(text)

    def block(self, index, total, name, step):
        self.steps.append(step)

    def sample(self, done, total):
        self.samples += 1


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "llm-pruner", "parameters": 10**9},
        {"method": "flap", "parameters": 10**9},
        {"method": "goa", "sparsity": 0.0001},
        {"method": "goa", "allocation": "adaptive", "settings": {"heads.threshold": 0.1}},
    ],
)
def test_what_the_model_alone_forbids_is_refused_before_text_is_read(fields):
    seen = Counting()
    with pytest.raises(InputError):
        prunus.prune(build("llama"), tokens_ST=IDS, observer=seen, **fields)
    assert not seen.samples


def test_an_observer_is_told_of_every_pass():
    seen = Counting()
    prunus.prune(build("llama"), method="flap", observer=seen, **RUN)
    assert [step for step in seen.steps if step == "prune"] == ["prune"] * 6
    assert seen.steps.index("prune") > seen.steps.index("look record")
    seen = Counting()
    prunus.prune(build("llama"), method="goa", recovery="before", observer=seen, **RUN)
    assert {"recover", "record", "compare", "prune", "advance"} == set(seen.steps)


def test_no_data_at_all():
    model, tokenizer = load_tiny("llama")
    report = prunus.prune(model, method="goa", calibration="none", sparsity=0.5).report
    assert report.protocol is None
    assert "identity=True" in report.pruner
    model, _ = load_tiny("llama")
    fields = {"method": "goa", "calibration": "self", "samples": 4, "length": 32, "sparsity": 0.3}
    report = prunus.prune(model, tokenizer=tokenizer, **fields).report
    assert report.protocol.source == "self"


def test_a_matrix_of_zeros_loses_as_many_neurons_as_any_other():
    """Which of its rows belong to a neuron is seen with random numbers in their place."""
    dense, model = build("llama"), build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    for each in (dense, model):
        prunus.prune(each, method="goa", **RUN)
    shapes = [{n: p.shape for n, p in each.named_parameters()} for each in (dense, model)]
    assert shapes[0] == shapes[1]
    assert not model.model.layers[1].mlp.up_proj.weight.any()
