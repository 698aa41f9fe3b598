"""Mixtures of experts: each expert is a layer with the tokens that were routed to it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import prunus
from helpers.models import MODELS
from helpers.random_models import IDS, MIXTURES, build
from prunus.base.errors import InputError, UnsupportedModelError
from prunus.maths.gram import Gram
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.scores import RIA, Magnitude, RelativeImportance, Wanda
from prunus.maths.stats import ColumnNorm, Statistics, TokenSample
from prunus.methods.build import build_method
from prunus.methods.table import METHODS
from prunus.model.blocks import find_linears
from prunus.model.inspect import inspect, start
from prunus.model.replay import Call
from prunus.model.roles import probe_block
from prunus.model.routing import fed
from prunus.run.gather import gathered
from prunus.run.observer import Silent
from prunus.run.unit import replaced

SHOWN = ("mixtral", "gpt_oss", "qwen2_moe", "llama4_text")


def small(family):
    return build(family, MIXTURES[family])


def saved(family, folder):
    small(family).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "llama" / file, folder)
    return folder


def starving(family="gpt_oss", expert=1):
    """A model whose routers never choose that expert."""
    model = small(family)
    for layer in model.model.layers:
        layer.mlp.router.bias.data[expert] = -1e6
    return model


def dense(model, name, expert):
    """Of an expert, outputs first."""
    weight = model.get_parameter(name)[expert].detach().clone()
    transposed = type(model).__name__.startswith(("GptOss", "Llama4"))
    return weight.T if transposed else weight


def routed_tokens(model, family):
    """A literal loop: by expert, the inputs of gate_up and of down in block 0, in float64."""
    experts, seen = model.model.layers[0].get_submodule(MODULE[family]), []
    hook = experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        for ids_T in IDS:
            model(input_ids=ids_T[None])
    hook.remove()
    first, last = {}, {}
    for args in seen:
        if family == "llama4_text":  # all tokens for each expert; those of others are zeros
            for expert, x_TI in enumerate(args[0].view(4, -1, args[0].shape[-1])):
                first.setdefault(expert, []).extend(x_TI[x_TI.any(-1)].double())
            continue
        for token, chosen in enumerate(args[1].tolist()):
            for expert in chosen:
                first.setdefault(expert, []).append(args[0][token].double())
    name = f"model.layers.0.{MODULE[family]}.gate_up_proj"
    for expert, rows in first.items():
        y_TO = torch.stack(rows) @ dense(model, name, expert).double().T
        if family == "gpt_oss":
            y_TO += experts.gate_up_proj_bias[expert].double()
            gate, up = y_TO[:, ::2].clamp(max=experts.limit), y_TO[:, 1::2]
            up = up.clamp(-experts.limit, experts.limit)
            last[expert] = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
        else:
            gate, up = y_TO.chunk(2, -1)
            last[expert] = nn.functional.silu(gate) * up
    return {expert: torch.stack(rows) for expert, rows in first.items()}, last


MODULE = {"llama4_text": "feed_forward.experts"} | dict.fromkeys(
    ("mixtral", "gpt_oss", "qwen2_moe"), "mlp.experts"
)


@pytest.mark.parametrize("family", SHOWN)
def test_statistics_are_those_of_a_literal_loop_over_routed_tokens(family):
    model = small(family)
    first, last = routed_tokens(model, family)
    blocks, traced = inspect(model, IDS)
    recording = start(model, blocks, traced, IDS)
    recording.min_tokens = 0
    stats = gathered(blocks[0], recording, (ColumnNorm, Gram), torch.device("cpu"), Silent())
    experts = [layer for layer in blocks[0].layers if layer.expert is not None]
    assert len(experts) == 8
    for layer in experts:
        expected_TI = (first if layer.role == "gate_up" else last)[layer.expert]
        found = stats[layer.site]
        assert found[TokenSample].tokens == len(expected_TI)
        rms_I, gram_II = expected_TI.square().mean(0).sqrt(), expected_TI.T @ expected_TI
        torch.testing.assert_close(found[ColumnNorm].rms_I.double(), rms_I, rtol=1e-4, atol=1e-7)
        gram_II = gram_II / len(expected_TI)
        torch.testing.assert_close(found[Gram].matrix_II.double(), gram_II, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", SHOWN)
def test_masks_are_those_of_the_routed_tokens(family):
    model = small(family)
    first, _ = routed_tokens(model, family)
    names = f"model.layers.0.{MODULE[family]}.gate_up_proj"
    before = [dense(model, names, expert) for expert in range(4)]
    implementation = model.config._experts_implementation
    report = prunus.prune(model, method="wanda", tokens_ST=IDS, min_tokens=1).report
    for expert, weight_OI in enumerate(before):
        score_OI = weight_OI.double().abs() * first[expert].square().sum(0).sqrt()
        kept_OI = dense(model, names, expert) != 0
        for row, kept in zip(score_OI.tolist(), kept_OI.tolist(), strict=True):
            order = sorted(range(64), key=lambda j: (row[j], j))
            assert [kept[j] for j in order] == [False] * 32 + [True] * 32
        assert torch.equal(dense(model, names, expert)[kept_OI], weight_OI[kept_OI])
    assert report.experts[0].tokens == [len(first[expert]) for expert in range(4)]
    assert model.config._experts_implementation == implementation  # as the user had it


def test_every_expert_is_a_layer_and_routers_are_dense(tmp_path):
    model = small("qwen2_moe")
    gate = model.model.layers[0].mlp.shared_expert_gate.weight.clone()
    router = model.model.layers[0].mlp.gate.weight.clone()
    blocks, _ = inspect(model, IDS)
    layers = {layer.name.removeprefix("model.layers.0.mlp."): layer for layer in blocks[0].layers}
    for expert in range(4):
        up, down = layers[f"experts.gate_up_proj.{expert}"], layers[f"experts.down_proj.{expert}"]
        assert (up.role, down.role, up.kind, down.kind) == ("gate_up", "down", "mlp", "mlp")
        assert (up.site, up.feeds, down.site) == (up.name, down.name, down.name)
        assert up.parts == (slice(0, 32), slice(32, 64))
        assert down.site in blocks[0].interior
        assert up.site not in blocks[0].interior
    assert layers["shared_expert.up_proj"].role == "up"
    assert blocks[0].routers == ("model.layers.0.mlp.shared_expert_gate",)
    prunus.prune(model, method="magnitude", calibration="none")
    assert torch.equal(model.model.layers[0].mlp.shared_expert_gate.weight, gate)
    assert torch.equal(model.model.layers[0].mlp.gate.weight, router)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"besa"}))  # which learns how much goes
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_an_expert_that_no_token_reached(method, pattern):
    """By its weights alone, in the method's own groups; its kept weights stay."""
    model, names = starving(), "model.layers.0.mlp.experts.gate_up_proj"
    before_OI = dense(model, names, 1)
    run = {"tokens_ST": IDS, "pattern": pattern, "min_tokens": 1}
    report = prunus.prune(model, method=method, **run).report
    layer = next(x for x in report.layers if x.name == f"{names}.1")
    assert layer.notes["tokens"] == 0
    assert report.experts[0].tokens[1] == 0
    reads = bool(build_method(method).needs)
    assert report.experts[0].by_weights_alone == ([1] if reads else [])
    assert layer.relative_output_error is None
    after_OI = dense(model, names, 1)
    assert int((after_OI == 0).sum()) == after_OI.numel() // 2
    torch.testing.assert_close(after_OI[after_OI != 0], before_OI[after_OI != 0], rtol=0, atol=1e-6)
    score = RelativeImportance() if method in ("ri", "ria") else Magnitude()
    groups = {"wanda": "row", "dass": "column"}
    mask = NM(2, 4) if pattern or "-m" in method[3:] else Unstructured(groups.get(method, "layer"))
    if method == "dass":
        mask = NM(2, 4, "output") if pattern else mask
        for half in (slice(0, None, 2), slice(1, None, 2)):
            expected_OI = mask.mask(score(before_OI[half], Statistics((), 0)), 0.5)
            assert torch.equal(after_OI[half] != 0, expected_OI)
    elif method not in ("sparsegpt", "mrp-ss", "mrp-sm", "mrp-ms") or pattern:
        expected_OI = mask.mask(score(before_OI, Statistics((), 0)), 0.5)
        assert torch.equal(after_OI != 0, expected_OI)


def test_white_inputs_leave_only_the_weights(layer):
    weight_OI = layer[0]
    white = Statistics.white((ColumnNorm, Gram), 48)
    torch.testing.assert_close(white[Gram].matrix_II, torch.eye(48))
    torch.testing.assert_close(white[ColumnNorm].rms_I, torch.ones(48))
    none = Statistics((), 48)
    torch.testing.assert_close(Wanda()(weight_OI, white), Magnitude()(weight_OI, none))
    torch.testing.assert_close(RIA()(weight_OI, white), RelativeImportance()(weight_OI, none))
    wide = Statistics.white((ColumnNorm,), 700)  # in several pieces
    torch.testing.assert_close(wide[ColumnNorm].rms_I, torch.ones(700))


def test_the_fewest_tokens_decide():
    tokens = prunus.prune(small("mixtral"), method="wanda", tokens_ST=IDS).report.experts[0].tokens
    few = min(tokens)
    for asked, alone in ((few, []), (few + 1, [i for i, n in enumerate(tokens) if n == few])):
        run = {"method": "wanda", "tokens_ST": IDS, "min_tokens": asked}
        assert prunus.prune(small("mixtral"), **run).report.experts[0].by_weights_alone == alone


@pytest.mark.parametrize(("needs", "enough"), [((ColumnNorm,), 128), ((Gram,), 2 * 64), ((), 0)])
def test_how_many_tokens_are_enough_unless_somebody_says(needs, enough):
    block = inspect(small("mixtral"), IDS)[0][0]
    layer = next(x for x in block.layers if x.role == "gate_up")

    def known(tokens):
        stats = {s: Statistics((*needs, TokenSample), x.shape[1]) for s, x in block.sites.items()}
        stats[layer.site].update(torch.ones(tokens, 64))
        return fed(block, stats, needs, None)[layer.site].known

    assert known(enough)
    if enough:
        assert not known(enough - 1)
        q = block.layers[0]  # not an expert: its few tokens are all there are
        stats = {s: Statistics((*needs, TokenSample), x.shape[1]) for s, x in block.sites.items()}
        assert fed(block, stats, needs, None)[q.site].known


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])  # one after the other, in turns
def test_dass_prunes_the_halves_of_an_expert_apart(family):
    model = small(family)
    _, last = routed_tokens(model, family)
    names = "model.layers.0.mlp.experts.gate_up_proj"
    before = [dense(model, names, expert) for expert in range(4)]
    report = prunus.prune(model, method="dass", tokens_ST=IDS, min_tokens=1).report
    turns = (slice(0, None, 2), slice(1, None, 2))
    halves = turns if family == "gpt_oss" else (slice(0, 96), slice(96, 192))
    for expert, weight_OI in enumerate(before):
        rms_O = last[expert].square().mean(0).sqrt()
        for half in halves:
            score_OI = weight_OI[half].double().abs() * rms_O[:, None].sqrt()
            kept_OI = dense(model, names, expert)[half] != 0
            assert kept_OI.sum(0).tolist() == [48] * 64
            lowest = score_OI.masked_fill(~kept_OI, torch.inf).amin(0)
            highest = score_OI.masked_fill(kept_OI, -torch.inf).amax(0)
            assert bool((lowest >= highest * (1 - 1e-5)).all())
    layer = next(x for x in report.layers if x.name == f"{names}.0")
    assert len(layer.notes["pruned_apart"]) == 2


class Routed(nn.Module):
    """A block in which even tokens go to one expert and odd ones to another, written somehow."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.qkv, self.o = nn.Linear(8, 24), nn.Linear(8, 8)
        shapes = {"gate": (6, 8), "up": (6, 8), "down": (8, 6)}
        for name, (rows, columns) in shapes.items():
            shape = (2, columns, rows) if form in ("right", "batched") else (2, rows, columns)
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def times(self, x, name, expert):
        weight = getattr(self, name)
        return {
            "linear": lambda: nn.functional.linear(x, weight[expert]),
            "tensor index": lambda: nn.functional.linear(x, weight[torch.tensor(expert)]),
            "turned": lambda: x @ weight[expert].T,
            "left": lambda: (weight[expert] @ x.mT).mT,
            "mm": lambda: torch.mm(x, weight.transpose(1, 2)[expert]),
            "unbound": lambda: nn.functional.linear(x, weight.unbind()[expert]),
            "right": lambda: x.matmul(weight[expert]),
            "einsum": lambda: torch.einsum("ti,oi->to", x, weight[expert]),
        }[self.form]()

    def forward(self, hidden_states):
        q, k, v = self.qkv(hidden_states).chunk(3, -1)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden_states + self.o(attended)
        flat = hidden.flatten(0, 1)
        if self.form == "batched":
            mine = torch.arange(len(flat)) % 2 == torch.arange(2)[:, None]
            x = flat * mine[..., None]
            act = nn.functional.silu(torch.bmm(x, self.gate)) * torch.bmm(x, self.up)
            return hidden + torch.bmm(act, self.down).sum(0).view_as(hidden)
        out = torch.zeros_like(flat)
        for expert in range(2):
            x = flat[expert::2]
            gate, up = (self.times(x, name, expert) for name in ("gate", "up"))
            out[expert::2] = self.times(nn.functional.silu(gate) * up, "down", expert)
        return hidden + out.view_as(hidden)


def probe(module, tokens=7):
    hidden = torch.randn(1, tokens, 8, generator=torch.Generator().manual_seed(0))
    block = probe_block(0, "b", module, find_linears("b", module), Call((), {}, None), hidden, None)
    return block, hidden


@pytest.mark.parametrize(
    "form", ["linear", "tensor index", "turned", "left", "mm", "unbound", "right", "batched"]
)
def test_however_an_expert_is_multiplied_it_is_seen(form):
    torch.manual_seed(0)
    module = Routed(form)
    block, hidden = probe(module)
    roles = {layer.name.removeprefix("b."): layer for layer in block.layers}
    for expert, tokens in ((0, 4), (1, 3)):
        gate, up = roles[f"gate.{expert}"], roles[f"up.{expert}"]
        down = roles[f"down.{expert}"]
        assert (gate.role, up.role, down.role) == ("gate", "up", "down")
        assert gate.site == gate.name
        assert up.site == (gate.name if form != "batched" else up.name)  # each picks its tokens
        assert gate.feeds == up.feeds == down.site == down.name
        assert (gate.shape, down.shape) == ((6, 8), (8, 6))
        seen = []
        hook = down.module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args))
        with torch.no_grad():
            expected = module(hidden)
            assert not seen
            with prunus.model.products.called(
                layer.module for layer in block.layers if layer.by_hand
            ):
                found = module(hidden)
        hook.remove()
        torch.testing.assert_close(found, expected)
        assert [x[0].shape for x in seen] == [(tokens, 6)]


def test_a_product_that_cannot_be_watched_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"outside of linear layers and experts: gate"):
        probe(Routed("einsum"))


def test_experts_that_the_probe_never_reached_are_refused():
    class Away(Routed):
        def forward(self, hidden_states):
            hidden = hidden_states + self.o(self.qkv(hidden_states)[..., :8])
            return hidden + self.times(hidden[0, :0], "gate", 0).sum()

    with pytest.raises(UnsupportedModelError, match="outside of linear layers and experts"):
        probe(Away("linear"))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])  # one by one on disk, and in 3-D
def test_streamed_killed_and_resumed_is_the_same(family, tmp_path):
    class Ends(Silent):
        def block(self, index, total, name, step):
            if (index, step) == (1, "prune"):
                raise KeyboardInterrupt

    source = saved(family, tmp_path / "dense")
    run = {"method": "mrp-sm", "tokens_ST": IDS, "min_tokens": 20, "pattern": "2:4"}
    whole = prunus.prune(source, output=tmp_path / "whole", **run)
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(source, output=tmp_path / "out", observer=Ends(), **run)
    again = prunus.prune(source, output=tmp_path / "out", resume=True, **run)
    first, second = (load_file(x / "model.safetensors") for x in (whole.output, again.output))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.report.experts == whole.report.experts
    assert len(again.report.experts) == 2
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(source, output=tmp_path / "third", observer=Ends(), **run)
    run["min_tokens"] = 21
    with pytest.raises(InputError, match="min_tokens was 20, now it is 21"):
        prunus.prune(source, output=tmp_path / "third", resume=True, **run)


def test_what_lies_on_disk_has_the_zeros_of_every_expert(tmp_path):
    source = saved("mixtral", tmp_path / "dense")
    out = tmp_path / "out"
    prunus.prune(source, method="wanda", tokens_ST=IDS, min_tokens=8, output=out)
    tensors = load_file(out / "model.safetensors")
    assert tensors.keys() == load_file(source / "model.safetensors").keys()
    for block in range(2):
        for expert in range(4):
            for part, side in (("w1", 64), ("w3", 64), ("w2", 96)):
                name = f"model.layers.{block}.block_sparse_moe.experts.{expert}.{part}.weight"
                assert (tensors[name] == 0).sum(1).tolist() == [side // 2] * len(tensors[name])
    assert prunus.verify(out, source=source).ok
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    tensors[name][tensors[name] == 0] = 0.5
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    found = prunus.verify(out, source=source)
    assert any("layers.1.mlp.experts.gate_up_proj.2 is not row: 96" in x for x in found.problems)


@pytest.mark.parametrize("family", SHOWN)
def test_a_folded_order_computes_the_same(family):
    dense_model, model = small(family), small(family)
    run = {"method": "wanda", "pattern": "2:4", "tokens_ST": IDS, "min_tokens": 8}
    report = prunus.prune(model, permutation="fold", **run).report
    plain = prunus.prune(dense_model, **run).report
    assert {x.notes["order"] for x in report.layers if x.expert is not None} == {"fold"}

    def error(report):
        found = [x.relative_output_error for x in report.layers if x.role == "down"]
        return sum(x for x in found if x is not None)

    assert error(report) < error(plain)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_block_runs_with_other_weights_for_its_experts(family):
    block, traced = (x[0] if isinstance(x, list) else x for x in inspect(small(family), IDS))
    call, hidden = traced.calls[0], traced.inputs[0]
    own = {layer.name: layer.weight_OI for layer in block.layers}
    with torch.no_grad():
        expected = call(block.module, hidden)
        torch.testing.assert_close(call(replaced(block, own), hidden), expected)
        changed = next(x for x in block.layers if x.expert == 2 and x.role == "down")
        found = call(replaced(block, {**own, changed.name: 2 * own[changed.name]}), hidden)
        changed.write(2 * own[changed.name])
        torch.testing.assert_close(found, call(block.module, hidden))
        assert not torch.allclose(found, expected)


@pytest.mark.parametrize(
    "run", [{"method": "besa"}, *({"method": "wanda", "allocation": x} for x in ("owl", "slope"))]
)
def test_shares_that_are_learned_or_found(run, tmp_path):
    source, out = saved("mixtral", tmp_path / "dense"), tmp_path / "out"
    report = prunus.prune(source, tokens_ST=IDS, min_tokens=20, output=out, **run).report
    weights = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    assert abs(report.sparsity - 0.5) < 64 / weights
    shares = {round(x.requested, 3) for x in report.layers if x.expert is not None}
    assert len(shares) > (2 if run["method"] == "besa" else 1)
    assert prunus.verify(out).ok


def test_gather_is_refused():
    run = {"method": "wanda", "pattern": "2:4", "tokens_ST": IDS}
    with pytest.raises(
        UnsupportedModelError, match=r"impossible for experts .*Use --permutation fold"
    ):
        prunus.prune(small("mixtral"), permutation="gather", **run)


def test_the_table_is_in_the_report_the_card_and_the_summary(tmp_path):
    source = saved("gpt_oss", tmp_path / "dense")
    out = tmp_path / "out"
    report = prunus.prune(source, method="wanda", tokens_ST=IDS, min_tokens=30, output=out).report
    assert sum(report.experts[0].tokens) == 2 * IDS.numel()
    written = json.loads((out / "pruning_report.json").read_text())
    assert written["experts"][0]["tokens"] == report.experts[0].tokens
    assert written["experts"][0]["name"] == "model.layers.0.mlp.experts"
    starved = [i for i, n in enumerate(report.experts[0].tokens) if n < 30]
    assert starved
    assert written["experts"][0]["by_weights_alone"] == starved
    assert report.summary()["experts"][1]["tokens"] == report.experts[1].tokens
    card = (out / "README.md").read_text()
    assert f"| model.layers.0.mlp.experts | 4 | {min(report.experts[0].tokens)} |" in card
    assert (
        "experts"
        not in prunus.prune(
            AutoModelForCausalLM.from_pretrained(MODELS / "llama"), method="magnitude"
        ).report.summary()
    )
