"""Block reconstruction in real models: targets, reports, halves, norms, and runs that end early."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from helpers.random_models import FAMILIES, IDS, MIXTURES, STATE, build
from helpers.runs import Counts, same, tensors
from prunus.base.errors import CheckpointError, InputError, UnsupportedModelError
from prunus.base.team import ALONE
from prunus.cli.main import app
from prunus.judge.verify import verify
from prunus.maths.reconstruction import Reconstruction, _Course
from prunus.maths.stats import TokenSample
from prunus.model.inspect import inspect, start
from prunus.report.report import read_report
from prunus.run import reconstruct
from prunus.run.observer import Silent
from prunus.run.reconstruct import Reconstructor, parts
from prunus.run.unit import Unit
from prunus.storage.journal import unfinished

TOKENS = torch.randint(0, 500, (4, 32), generator=torch.Generator().manual_seed(3))


def pruned(model=None, **run):
    model = load_tiny("llama")[0] if model is None else model
    settings = {"reconstruct.steps": 6, **run.pop("settings", {})}
    own = {"method": "wanda", "reconstruct": "block", "tokens_ST": TOKENS, "settings": settings}
    return prunus.prune(model, **{**own, **run})


def outputs(model, block):
    """What goes into a block, and comes out behind its attention and behind all of it."""
    layer, seen = model.model.layers[block], {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(given=args[0]), with_kwargs=True
        ),
        layer.self_attn.register_forward_hook(lambda _, args, out: seen.update(attention=out[0])),
        layer.register_forward_hook(lambda _, args, out: seen.update(block=out)),
    ]
    with torch.no_grad():
        model(TOKENS)
    for handle in handles:
        handle.remove()
    whole = seen["block"] if torch.is_tensor(seen["block"]) else seen["block"][0]
    return seen["given"], seen["given"] + seen["attention"], whole


def ready(model, how, index=0, count=1):
    """A reconstructor at blocks of the dense model, with a plan of all their layers."""
    blocks, traced = inspect(model, TOKENS[:1])
    recording = start(model, blocks, traced, TOKENS)
    with torch.no_grad():
        for block in blocks[:index]:
            recording.advance(block.index, block.module, torch.device("cpu"))
    reference = recording.copy() if how.reference == "dense" else None
    where = (len(blocks), torch.device("cpu"), Silent())
    unit = blocks[index : index + count]
    plan = {layer.name: 0.5 for block in unit for layer in block.layers}
    return Reconstructor(how, recording, reference, *where), unit, plan


@pytest.mark.parametrize("count", [1, 2])
def test_the_gradient_of_real_blocks_is_that_of_finite_differences(count):
    model = load_tiny("gpt2")[0].double()  # whose norms compute in float64, unlike Llama's
    how = Reconstruction(reference="pruned", norms=True, blocks=count)
    learner, blocks, plan = ready(model, how, count=count)
    [part] = parts(blocks, plan, how)
    with torch.no_grad():
        learner.aim(blocks, plan, False)
    unit = Unit(blocks, learner.recording, learner._targets["block"], torch.device("cpu"))
    weights = {}
    for layer in part.layers:
        keep_OI = layer.weight_OI.abs() > layer.weight_OI.abs().median()
        weights[layer.name] = layer.weight_OI * keep_OI
    own = {n: x for b in blocks for n, x in b.module.named_parameters(prefix=b.name)}
    assert len(part.vectors) == count * (2 * 2 + 4)  # of two norms, and a bias of each layer
    weights |= {name: own[name].detach().clone() for name in part.vectors}
    course = _Course.of(learner.how, weights, unit, [0, 1], [2], ALONE)
    grads, _ = course.gradient(weights, 1.0, [0, 1])

    def loss(changed):
        total = 0.0
        with torch.no_grad():
            for i in (0, 1):
                aim = unit.target(i)
                error = (unit.forward(i, {**weights, **changed}) - aim).square().sum(-1)
                sizes = aim.square().sum(-1)
                total += float((error / sizes + error / sizes.mean()).sum())
        return total / 2

    for name, weight in weights.items():
        where = tuple(int(i) for i in torch.unravel_index(weight.abs().argmax(), weight.shape))
        moved = []
        for step in (1e-5, -1e-5):
            other = weight.clone()
            other[where] += step
            moved.append(loss({name: other}))
        expected = (moved[0] - moved[1]) / 2e-5
        assert float(grads[name][where]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_targets_are_what_the_dense_model_puts_out_behind_each_half():
    model = load_tiny("llama")[0]
    learner, [block], plan = ready(model, Reconstruction("half", "pruned"), 1)
    with torch.no_grad():
        learner.aim([block], plan, False)
        _, attention, whole = outputs(model, 1)
        stacked = {name: torch.cat(list(x)) for name, x in learner._targets.items()}
        torch.testing.assert_close(stacked["attention"], attention)
        torch.testing.assert_close(stacked["mlp"], whole)
        first, second = parts([block], plan, learner.how)
        assert {x.role for x in first.layers} == {"q", "k", "v", "o"}
        assert {x.role for x in second.layers} == {"gate", "up", "down"}
        for layer in block.layers:
            layer.write(layer.weight_OI * (layer.weight_OI.abs() > 0.02))
        where = (learner.recording, learner._targets["attention"], torch.device("cpu"))
        found = [Unit([block], *where, first.fixed).forward(i, {}) for i in range(4)]
        torch.testing.assert_close(torch.cat(found), outputs(model, 1)[1])


def test_the_reference_is_the_dense_stream_or_what_the_dense_block_makes_of_the_pruned_one():
    """Of the second block: the first one's error is in the one, and not in the other."""
    seen = {}

    def note(self, unit, plan, idle):
        aim(self, unit, plan, idle)
        targets = self._targets.get("block") or self.reference.hidden
        seen[self.how.reference, unit[-1].index] = torch.cat([x.clone() for x in targets])

    aim, dense = Reconstructor.aim, load_tiny("llama")[0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Reconstructor, "aim", note)
        models = {
            how: pruned(settings={"reconstruct.reference": how}).model
            for how in ("dense", "pruned")
        }
    expected = outputs(dense, 1)[2]
    torch.testing.assert_close(seen["dense", 1], expected)
    assert not torch.allclose(seen["pruned", 1], expected, atol=1e-2)
    half = models["pruned"]
    half.model.layers[1].load_state_dict(dense.model.layers[1].state_dict())
    torch.testing.assert_close(seen["pruned", 1], outputs(half, 1)[2])


@pytest.mark.parametrize("permutation", ["none", "gather"])
def test_the_report_is_about_the_weights_that_were_written(permutation):
    """Errors by hand, on what the first block reads; the second and third read pruned blocks."""
    pattern = {"pattern": "2:4"} if permutation == "gather" else {}
    dense = load_tiny("llama")[0]
    result = pruned(permutation=permutation, **pattern)
    new = dict(result.model.named_modules())
    for layer in result.report.layers:
        if layer.block > 0 or (permutation == "gather" and layer.role not in ("q", "k")):
            continue
        module = dense.get_submodule(layer.name)
        seen = TokenSample(layer.shape[1], torch.device("cpu"))

        def note(module, args, seen=seen):
            seen.update(args[0].flatten(0, -2))

        handle = module.register_forward_pre_hook(note)
        with torch.no_grad():
            for row in TOKENS:
                dense(row[None])
        handle.remove()
        weight = new[layer.name].weight.detach()
        expected = seen.error(module.weight.detach(), weight)
        assert layer.relative_output_error == pytest.approx(expected, rel=1e-3)
        assert layer.updated
        assert layer.sparsity == float((weight == 0).float().mean())


def test_it_is_better_at_what_it_was_not_taught_and_zeros_stay():
    better = pruned()
    plain = prunus.prune(load_tiny("llama")[0], method="wanda", tokens_ST=TOKENS)
    for old, new in zip(plain.report.layers, better.report.layers, strict=True):
        assert new.sparsity == old.sparsity
        assert old.block > 0 or new.error_before_update == old.error_before_update
    first = plain.report.layers[0]
    zero = plain.model.get_parameter(first.parameter) == 0
    assert torch.equal(better.model.get_parameter(first.parameter) == 0, zero)
    dense = outputs(load_tiny("llama")[0], 2)[2]
    errors = [float((outputs(x.model, 2)[2] - dense)[[3]].square().sum()) for x in (plain, better)]
    assert errors[1] < 0.95 * errors[0]
    for part in better.report.reconstructed:
        assert min(part["held"]) <= part["held"][0] == 1
        assert len(part["held"]) == len(part["loss"]) + 1
    assert better.report.held_out_loss < 0.95


@pytest.mark.parametrize(
    ("family", "run"),
    [
        ("mixtral", {"reconstruct": "half", "pattern": "2:4"}),
        ("mamba", {}),
        ("falcon_h1", {"reconstruct": "half", "settings": {"reconstruct.norms": True}}),
    ],
)
def test_experts_and_state_space_models(family, run):
    settings = {**MIXTURES, **FAMILIES}[family]
    report = pruned(build(family, settings), tokens_ST=IDS[:, :24].repeat(4, 1), **run).report
    assert report.held_out_loss < 1
    assert all(layer.updated for layer in report.layers if layer.sparsity < 1)


def test_a_model_in_bfloat16():
    model = load_tiny("llama")[0].to(torch.bfloat16)
    result = pruned(model)
    assert result.report.held_out_loss < 1
    for layer in result.report.layers:
        weight = result.model.get_parameter(layer.parameter)
        assert weight.dtype == torch.bfloat16
        assert float((weight == 0).float().mean()) == layer.sparsity == 0.5


def test_norms_learn_too_and_the_checkpoint_verifies(tmp_path):
    out, source = tmp_path / "out", MODELS / "llama"
    pruned(source, output=out, pattern="2:4", settings={"reconstruct.norms": True})
    assert verify(out, source=source).ok
    name = "model.layers.1.input_layernorm.weight"
    assert not torch.equal(tensors(out)[name], tensors(source)[name])
    path = out / "pruning_report.json"
    report = json.loads(path.read_text())
    for part in report["reconstructed"]:
        part["vectors"] = []
    path.write_text(json.dumps(report))
    assert not verify(out, source=source).ok


def test_a_state_space_block_has_no_halves():
    with pytest.raises(UnsupportedModelError, match="no attention with an MLP behind it"):
        pruned(build("mamba", STATE), reconstruct="half", tokens_ST=IDS)


def test_a_run_that_ended_within_a_block_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    settings = {"reconstruct.norms": True, "reconstruct.reference": "dense"}
    run = {"settings": settings, "pattern": "2:4", "permutation": "gather"}
    monkeypatch.setattr(reconstruct, "SAVE", 0.0)
    monkeypatch.setattr(reconstruct, "RARELY", 0)
    source = MODELS / "llama"
    pruned(source, output=tmp_path / "whole", **run)
    with pytest.raises(KeyboardInterrupt):
        pruned(source, output=tmp_path / "out", observer=Counts(1, 4), **run)
    assert [x.name for x in unfinished(tmp_path / "out").glob("descent-*")] == [
        "descent-00001-block.safetensors"
    ]
    shutil.copytree(unfinished(tmp_path / "out"), unfinished(tmp_path / "damaged"))
    watch = Counts()
    pruned(source, output=tmp_path / "out", resume=True, observer=watch, **run)
    assert watch.begun == {1: 5, 2: 1}
    same(tmp_path / "whole", tmp_path / "out")
    state = unfinished(tmp_path / "damaged") / "descent-00001-block.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="Remove that file, and the block begins anew"):
        pruned(source, output=tmp_path / "damaged", resume=True, **run)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"bits": 4}, "off the grid of --bits"),
        ({"statistics": "dense"}, "--statistics dense does not apply"),
        (
            {"true_sequential": True, "permutation": "fold", "pattern": "2:4"},
            "with --true-sequential cannot have --permutation",
        ),
        ({"reconstruct": "blocks"}, "Did you mean 'block'"),
        (
            {"reconstruct": "half", "settings": {"reconstruct.blocks": 2}},
            "Give --reconstruct block",
        ),
        ({"settings": {"reconstruct.blocks": 0}}, "blocks is 0; it must be 1 or more"),
        ({"reconstruct": "none"}, "--set reconstruct.steps is for a run with --reconstruct"),
        ({"settings": {"reconstruct.stepz": 1}}, "no field 'stepz'"),
        ({"tokens_ST": TOKENS[:1]}, "needs at least 2; got 1"),
        ({"method": "goa", "settings": {}}, "--reconstruct does not apply"),
    ],
)
def test_what_does_not_go_together_is_rejected(run, said):
    with pytest.raises(InputError, match=said):
        pruned(**run)


def test_a_plan_counts_it(tmp_path):
    run = {"method": "wanda", "samples": 8, "length": 32}
    steps = {"reconstruct.steps": 60}
    plain = prunus.plan(MODELS / "llama", **run)
    plan = prunus.plan(MODELS / "llama", reconstruct="block", settings=steps, **run)
    assert "reconstruct" not in plain.rehearsed
    forwards = Reconstruction(steps=60).work_over(8) + 8
    assert plan.seconds >= 3 * forwards * plan.rehearsed["reconstruct"] > 0


def test_the_command_the_picture_and_the_page(tmp_path):
    out, calls = tmp_path / "out", CliRunner().invoke
    ask = ["prune", str(MODELS / "llama"), "--method", "wanda", "--reconstruct", "half"]
    few = ["--samples", "4", "--length", "32", "--set", "reconstruct.steps=3"]
    done = calls(app, [*ask, *few, "--output", str(out)])
    assert done.exit_code == 0, done.stderr
    assert "reconstruction: held-out error of what blocks put out" in done.stdout
    report = read_report(out)
    assert [part["part"] for part in report.reconstructed] == ["attention", "mlp"] * 3
    assert "Reconstruction(span='half'" in (out / "README.md").read_text()
    picture = calls(
        app, ["plot", str(out), "--show", "reconstruction", "--output", str(tmp_path / "x.png")]
    )
    assert picture.exit_code == 0, picture.stderr
    page = calls(app, ["report", str(out), "--output", str(tmp_path / "x.html")])
    assert page.exit_code == 0, page.stderr
    html = (tmp_path / "x.html").read_text()
    assert "<h2>Reconstruction</h2>" in html
    assert f"{report.held_out_loss:.2f} in the mean" in html
