"""The loop against a literal re-implementation, and its promises when things go wrong."""

from itertools import product

import pytest
import torch
from torch import nn

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import (
    CalibrationError,
    InputError,
    NumericalError,
    PatternError,
    PrunusError,
)
from prunus.maths.contracts import Pruned
from prunus.maths.patterns import Unstructured
from prunus.maths.pruners import Compose, EachLayer
from prunus.maths.scores import Magnitude, Wanda
from prunus.methods.build import build_method
from prunus.model.inspect import inspect, start
from prunus.model.replay import Recording
from prunus.run.loop import prune_blocks
from prunus.run.observer import Silent

IDS = torch.randint(0, 500, (5, 40), generator=torch.Generator().manual_seed(7))
CPU = torch.device("cpu")


def linears(block):
    return {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}


@torch.no_grad()
def literal_wanda(model, blocks, stages=("",), sparsity=0.5):
    """Wanda by whole forwards of the whole model: block by block, dense block on pruned inputs.

    Or stage by stage, the layers whose names have one of the stage's letters at the end.
    """
    for block, stage in product(blocks, stages):
        norms, handles = {}, []
        of_stage = {n: m for n, m in linears(block).items() if n.endswith(stage)}
        for name, module in of_stage.items():

            def add(_, args, name=name, norms=norms):
                squares_I = args[0].double().flatten(0, -2).square().sum(0)
                norms[name] = norms.get(name, 0) + squares_I

            handles.append(module.register_forward_pre_hook(add))
        for ids_T in IDS:
            model(input_ids=ids_T[None])
        for handle in handles:
            handle.remove()
        for name, module in of_stage.items():
            score_OI = module.weight.double().abs() * norms[name].sqrt()
            for row, scores in enumerate(score_OI.tolist()):
                order = sorted(range(len(scores)), key=lambda j: (scores[j], j))
                module.weight[row, order[: int(len(scores) * sparsity)]] = 0


def pruned_by_prunus(model, method="wanda", observer=None, **plan_of):
    blocks, traced = inspect(model, IDS)
    plan = {x.name: 0.5 for block in blocks for x in block.layers if plan_of.get(x.role, True)}
    recording = start(model, blocks, traced, IDS)
    observer = observer or Silent()
    pruner = build_method(method)
    return prune_blocks(blocks, recording, pruner, plan, device=CPU, observer=observer), blocks


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_wanda_equals_the_literal_loop_over_whole_forwards(family):
    """Law 6 too: the second block's statistics are those behind the pruned first one."""
    ours, _ = load_tiny(family)
    theirs, _ = load_tiny(family)
    blocks = {"llama": "model.layers", "opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers"}
    literal_wanda(theirs, theirs.get_submodule(blocks[family]))
    pruned_by_prunus(ours)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_true_sequential_equals_the_literal_loop_site_by_site():
    ours, _ = load_tiny("llama")
    theirs, _ = load_tiny("llama")
    stages = (("q_proj", "k_proj", "v_proj"), "o_proj", ("gate_proj", "up_proj"), "down_proj")
    literal_wanda(theirs, theirs.model.layers, stages)
    result = prunus.prune(ours, method="wanda", true_sequential=True, tokens_ST=IDS)
    assert len(result.report.layers) == 3 * 7
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    plain, _ = load_tiny("llama")
    prunus.prune(plain, method="wanda", tokens_ST=IDS)
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(plain.get_parameter(name), ours.get_parameter(name))


def test_the_reported_error_is_that_of_the_layers_output(tiny_llama):
    model, _ = tiny_llama
    seen, dense = [], {}
    layer = model.model.layers[1].mlp.gate_proj
    dense = layer.weight.detach().clone()

    class Watch(Silent):
        def block(self, index, total, name, step):
            if index == 1 and step == "record":
                self.handle = layer.register_forward_pre_hook(lambda _, a: seen.append(a[0][0]))
            elif index == 1 and step == "prune":
                self.handle.remove()

    reports, _ = pruned_by_prunus(model, observer=Watch())
    report = next(r for r in reports if r.name == "model.layers.1.mlp.gate_proj")
    inputs_TI = torch.cat(seen).double()  # 200 tokens: fewer than the sample holds
    moved = (inputs_TI @ (dense - layer.weight.detach()).double().T).norm()
    expected = float(moved / (inputs_TI @ dense.double().T).norm())
    assert report.relative_output_error == pytest.approx(expected, rel=1e-5)
    assert 0 < expected < 1


def test_a_layer_left_out_of_the_plan_stays_dense(tiny_llama):
    model, _ = tiny_llama
    before = {n: p.clone() for n, p in model.named_parameters()}
    reports, _ = pruned_by_prunus(model, down=False, q=False)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"{r.name}.weight" for r in reports}
    assert not any("down_proj" in name or "q_proj" in name for name in changed)


class Broken:
    """A pruner that fails, or returns what it must not, at the second block."""

    needs = Wanda.needs

    def __init__(self, how):
        self.how = how

    def pattern(self, layer):
        return Unstructured("row")

    def check(self, block, plan):
        pass

    def __call__(self, block, stats, plan):
        for layer in block.planned(plan):
            weight_OI = layer.weight_OI.clone()
            mask_OI = torch.ones_like(weight_OI, dtype=torch.bool)
            if block.index == 1 and self.how == "raise":
                raise RuntimeError("boom")
            if block.index == 1 and self.how == "nan":
                weight_OI[0, 0] = float("nan")
            if block.index == 1 and self.how == "nonzero":
                mask_OI[0, 0] = False
            yield layer, Pruned(weight_OI, mask_OI)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raise", RuntimeError, "boom"),
        ("nan", NumericalError, r"model\.layers\.1\.self_attn\.q_proj: its new weights hold NaN"),
        ("nonzero", PrunusError, "left values on pruned weights"),
    ],
)
def test_law_6_hooks_are_gone_after_an_error(how, error, message, tiny_llama):
    model, _ = tiny_llama
    blocks, traced = inspect(model, IDS)
    plan = {layer.name: 0.5 for block in blocks for layer in block.layers}
    recording = start(model, blocks, traced, IDS)
    with pytest.raises(error, match=message):
        prune_blocks(blocks, recording, Broken(how), plan, device=CPU, observer=Silent())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_hooks_are_gone_when_a_statistic_fails(tiny_llama, monkeypatch):
    model, _ = tiny_llama
    blocks, traced = inspect(model, IDS)
    recording = start(model, blocks, traced, IDS)
    monkeypatch.setattr("prunus.maths.stats.ColumnNorm.update", lambda *_: 1 / 0)
    plan = {layer.name: 0.5 for layer in blocks[0].layers}
    with pytest.raises(ZeroDivisionError):
        prune_blocks(blocks, recording, build_method("ria"), plan, device=CPU, observer=Silent())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_nan_activations_stop_the_run_with_the_blocks_name(tiny_llama):
    model, _ = tiny_llama
    blocks, traced = inspect(model, IDS)
    recording = start(model, blocks, traced, IDS)
    recording.hidden[3][0, 5] = float("nan")
    plan = {layer.name: 0.5 for layer in blocks[0].layers}
    with pytest.raises(NumericalError, match=r"model\.layers\.0 puts out NaN .* sample 3"):
        prune_blocks(blocks, recording, build_method("ria"), plan, device=CPU, observer=Silent())


def test_a_pattern_that_does_not_fit_stops_before_anything_changes(tiny_llama):
    model, _ = tiny_llama
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(PatternError, match=r"q_proj \(64 × 64\): 3:7 needs .* by 7; this"):
        prunus.prune(model, method="wanda", pattern="3:7", tokens_ST=IDS)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_equal_call_arguments_are_held_once(tiny_llama):
    model, _ = tiny_llama
    blocks, traced = inspect(model, IDS)
    recording: Recording = start(model, blocks, traced, IDS)
    cosines = {
        call.kwargs["position_embeddings"][0].data_ptr()
        for calls in recording.calls
        for call in calls
    }
    assert len(cosines) == 1  # 3 blocks × 5 samples


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_keep_their_dtype_and_law_2(dtype):
    model, _ = load_tiny("llama")
    model.to(dtype)
    result = prunus.prune(model, method="ria", tokens_ST=IDS)
    assert result.report.sparsity == pytest.approx(0.5, abs=1e-9)
    assert all(p.dtype == dtype for p in model.parameters())


def test_one_row_one_token_one_sample(tiny_llama):
    model, _ = tiny_llama
    result = prunus.prune(model, method="wanda", tokens_ST=IDS[:1, :2])
    assert result.report.sparsity == 0.5


def test_without_text_data_free_methods_run_and_others_refuse(tiny_llama):
    model, _ = tiny_llama
    report = prunus.prune(model, method="magnitude", calibration="none").report
    assert report.protocol is None
    assert {layer.relative_output_error for layer in report.layers} == {None}
    with pytest.raises(CalibrationError, match=r"ria so set reads activations \(ColumnNorm\)"):
        prunus.prune(model, method="ria", calibration="none")
    blocks, _ = inspect(model, IDS)
    plan = {layer.name: 0.5 for layer in blocks[0].layers}
    with pytest.raises(PrunusError, match="ColumnNorm was not gathered"):
        prune_blocks(
            blocks,
            None,
            EachLayer(Compose(Wanda(), build_method("wanda").pattern(None))),
            plan,
            device=CPU,
            observer=Silent(),
        )
    assert Magnitude.needs == ()


def test_partial_sparsity(tiny_llama):
    model, _ = tiny_llama
    report = prunus.prune(model, method="wanda", tokens_ST=IDS, skip_blocks="0:2").report
    assert {layer.block for layer in report.layers} == {2}
    model, _ = load_tiny("llama")
    report = prunus.prune(model, method="dass", tokens_ST=IDS, mlp_only=True).report
    assert {layer.role for layer in report.layers} == {"gate", "up", "down"}
    assert report.coverage.pruned_weights == 3 * 3 * 64 * 160
    for bad, most in (("2:1", ""), ("0:4", " <= 3, the number of blocks"), ("x", ""), ("-1:2", "")):
        with pytest.raises(InputError, match=f"A:B with 0 <= A < B{most}; got '{bad}'"):
            prunus.prune(model, method="wanda", tokens_ST=IDS, skip_blocks=bad)
    with pytest.raises(InputError, match="Nothing is left to prune"):
        prunus.prune(model, method="wanda", tokens_ST=IDS, skip_blocks="0:3")


def test_better_methods_are_better_on_every_trained_family(family):
    """Real behaviour: dense < MRP < Wanda < magnitude in held-out perplexity, at 50 %."""
    found = {}
    for method in ("dense", "magnitude", "wanda", "mrp-sm"):
        model, tokenizer = load_tiny(family)
        biases = {n: p.clone() for n, p in model.named_parameters() if n.endswith("bias")}
        if method != "dense":
            prunus.prune(model, method=method, tokenizer=tokenizer, samples=16, length=128)
        found[method] = prunus.evaluate(
            model, "builtin", tokenizer=tokenizer, length=128, windows=20
        ).perplexity
        assert all(torch.equal(model.get_parameter(n), p) for n, p in biases.items())
    assert found["dense"] < 0.9 * found["wanda"] < found["wanda"] < 0.95 * found["magnitude"], found
    assert found["dense"] < found["mrp-sm"] < 0.97 * found["wanda"], found


def test_coverage_counts_what_is_there(tiny_llama):
    model, _ = tiny_llama
    coverage = prunus.prune(model, method="magnitude", calibration="none").report.coverage
    block = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160
    assert coverage.pruned_weights == coverage.block_weights == 3 * block
    assert coverage.parameters == 512 * 64 + 3 * (block + 2 * 64) + 64
    assert MODELS.exists()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 2]], r"got list"),
        (torch.arange(9), r"got Tensor torch\.int64 \(9,\)"),
        (torch.ones(2, 9), r"float32"),
        (torch.ones(2, 1, dtype=torch.int64), "one sample of two tokens; got 2 × 1"),
        (torch.ones(0, 9, dtype=torch.int64), "got 0 × 9"),
        (torch.full((1, 9), 512), "id 512 is outside of the model's 512 embeddings"),
        (torch.full((1, 9), -1), "id -1 is outside"),
    ],
)
def test_token_ids_are_checked(tokens, message, tiny_llama):
    with pytest.raises(CalibrationError, match=message):
        prunus.prune(tiny_llama[0], method="wanda", tokens_ST=tokens)


def test_int32_token_ids_will_do(tiny_llama):
    assert prunus.prune(tiny_llama[0], method="wanda", tokens_ST=IDS.int()).report.sparsity == 0.5


def test_only_transformers_models_and_no_dtype_for_them(tiny_llama):
    with pytest.raises(InputError, match="PreTrainedModel, unwrapped; got DataParallel"):
        prunus.prune(nn.DataParallel(tiny_llama[0]), method="wanda", tokens_ST=IDS)
    with pytest.raises(InputError, match="for models that are loaded"):
        prunus.prune(tiny_llama[0], method="wanda", tokens_ST=IDS, dtype="float16")


def test_a_blocks_own_forward_is_put_back(tiny_llama):
    """accelerate hooks a module by giving it a forward of its own."""
    model, _ = tiny_llama
    calls = []
    block = model.model.layers[1]
    original = block.forward

    def wrapped(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    block.forward = wrapped
    prunus.prune(model, method="wanda", tokens_ST=IDS)
    assert block.forward is wrapped
    assert calls


def test_scores_that_overflow_name_the_layer(tiny_llama):
    with pytest.raises(NumericalError, match=r"layers\.\d\.[a-z_.]+: The scores hold NaN or inf"):
        prunus.prune(tiny_llama[0], method="ria", settings={"score.power": 400.0}, tokens_ST=IDS)


def test_a_run_that_covers_little_fails_loudly(tiny_llama):
    model, _ = tiny_llama
    model.extra = nn.Parameter(torch.zeros(1000, 1000))
    with pytest.raises(InputError, match=r"Only 129,024 of the 1,129,472 weights .* \(11%\)"):
        prunus.prune(model, method="magnitude")


def test_linear_layers_beside_the_blocks_are_not_passed_over(tiny_llama):
    model, _ = tiny_llama
    model.side = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
    with pytest.raises(InputError, match=r"Outside of the blocks lie 4 linear layers \(side\.0"):
        prunus.prune(model, method="magnitude")
