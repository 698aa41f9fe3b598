"""Least squares whose strength is chosen on text that was held out."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import prunus
from helpers.models import MODELS, load_tiny
from helpers.runs import FAST, end, tensors
from helpers.structured_models import FAMILIES, GQA, RUN, build
from prunus.base.errors import InputError, UnsupportedModelError
from prunus.maths.moments import Moments
from prunus.maths.updates.ridge import RIDGES, Regression, joined, solve, with_ones
from prunus.methods.table import STRUCTURED
from prunus.model.cost import OneToken
from prunus.model.inspect import inspect, start
from prunus.model.stream import check_adds
from prunus.model.units import find_modules
from prunus.run.observer import Silent
from prunus.run.units_gather import Context
from prunus.run.units_step import DenseStream, Step, Streams


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def regression(inputs_TA, targets_TO):
    x, y = inputs_TA.double(), targets_TO.double()
    return Regression(x.T @ x, y.T @ x, float(y.square().sum()))


def literal(old_OA, x, y, ridge):
    """argmin ‖XWᵀ − Y‖² + λ‖W − W_old‖², by an explicit least-squares problem."""
    strength = (ridge * x.double().square().sum(0).mean()).sqrt()
    tall = torch.cat([x.double(), strength * torch.eye(x.shape[1], dtype=torch.float64)])
    right = torch.cat([y.double(), strength * old_OA.double().T])
    return torch.linalg.lstsq(tall, right).solution.T


def test_the_best_ridge_on_held_out_text_is_taken(rng):
    x, held_x = torch.randn(30, 8, generator=rng), torch.randn(200, 8, generator=rng)
    true_OA = torch.randn(5, 8, generator=rng)
    y = x @ true_OA.T + 2 * torch.randn(30, 5, generator=rng)
    held_y = held_x @ true_OA.T
    old_OA = true_OA + 0.5 * torch.randn(5, 8, generator=rng)
    (solved,) = solve([old_OA], [regression(x, y)], [regression(held_x, held_y)])
    errors = {}
    for ridge in RIDGES:
        new_OA = literal(old_OA, x, y, ridge)
        gap = held_x.double() @ new_OA.T - held_y.double()
        errors[ridge] = float(gap.square().sum() / held_y.double().square().sum())
    best = min(errors, key=errors.get)
    assert solved.ridge == best
    assert solved.after == pytest.approx(errors[best], rel=1e-6)
    expected = literal(old_OA, x, y, best).float()
    torch.testing.assert_close(solved.weight_OA, expected, rtol=1e-4, atol=1e-5)


def test_old_weights_stay_where_recovery_does_not_help(rng):
    x, old_OA = torch.randn(30, 8, generator=rng), torch.randn(5, 8, generator=rng)
    wrong, right = regression(x, torch.randn(30, 5, generator=rng)), regression(x, x @ old_OA.T)
    (solved,) = solve([old_OA], [wrong], [right])
    assert solved.ridge is None
    assert torch.equal(solved.weight_OA, old_OA)
    assert solved.before == solved.after


def test_dead_inputs_and_no_inputs_at_all(rng):
    x, old_OA = torch.randn(30, 8, generator=rng), torch.randn(5, 8, generator=rng)
    x[:, 3] = 0
    target = regression(x, x @ torch.randn(5, 8, generator=rng).T)
    (solved,) = solve([old_OA], [target], [target])
    assert bool(solved.weight_OA.isfinite().all())
    torch.testing.assert_close(solved.weight_OA[:, 3], old_OA[:, 3])
    nothing = regression(torch.zeros(4, 8), torch.zeros(4, 5))
    (solved,) = solve([old_OA], [nothing], [nothing])
    assert torch.equal(solved.weight_OA, old_OA)


def test_a_column_of_ones_finds_the_bias(rng):
    x = torch.randn(400, 8, generator=rng) + 1
    weight_OI, bias_O = torch.randn(5, 8, generator=rng), torch.randn(5, generator=rng)
    y = x @ weight_OI.T + bias_O
    old_OA = joined(weight_OI, torch.zeros(5))
    part = regression(with_ones(x, True), y)
    (solved,) = solve([old_OA], [part], [part])
    torch.testing.assert_close(solved.weight_OA[:, -1], bias_O, rtol=1e-2, atol=1e-2)


def test_onto_itself_is_the_regression_on_its_own_outputs(rng):
    x, weight_OI = torch.randn(50, 6, generator=rng), torch.randn(4, 6, generator=rng)
    bias_O = torch.randn(4, generator=rng)
    moments = Moments(6, torch.device("cpu"))
    moments.update(x)
    columns = torch.tensor([0, 2, 5, 6])
    weight_OA = joined(weight_OI, bias_O)
    found = Regression.onto_itself(moments.sum_AA, weight_OA).only(columns)
    expected = regression(with_ones(x, True)[:, columns], x @ weight_OI.T + bias_O)
    torch.testing.assert_close(found.gram_AA, expected.gram_AA, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cross_OA, expected.cross_OA, rtol=1e-4, atol=1e-4)
    assert found.energy == pytest.approx(expected.energy, rel=1e-5)
    kept = weight_OA[:, columns]
    gap = with_ones(x, True)[:, columns] @ kept.T - (x @ weight_OI.T + bias_O)
    relative = float(gap.square().sum()) / expected.energy
    assert found.error(kept) == pytest.approx(relative, rel=1e-4)


@torch.no_grad()
def forward(block, call, hidden):
    return call(block.module, hidden)


@torch.no_grad()
def recover(context, block, module, recording, dense):
    return Step(context, block, module, Streams(recording, recording, dense)).recover()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_recovery_without_pruning_gives_the_dense_outputs_back(family):
    """A block whose weights were disturbed finds the dense ones' outputs again."""
    model, _ = load_tiny(family)
    generator = torch.Generator().manual_seed(0)
    ids_ST = torch.randint(0, 250, (24, 64), generator=generator)
    blocks, traced = inspect(model, ids_ST)
    recording = start(model, blocks, traced, ids_ST)
    block, call, hidden = blocks[0], traced.calls[0], traced.inputs[0]
    dense = DenseStream.beside(recording)
    dense.block = copy.deepcopy(block.module)
    expected = forward(block, call, hidden)
    context = Context(
        model,
        len(blocks),
        STRUCTURED["goa"].build(None),
        torch.device("cpu"),
        Silent(),
        0,
        OneToken(),
    )
    modules = find_modules(block, call, hidden)
    for module in modules:  # nothing was changed: nothing is
        facts = recover(context, block, module, recording, dense)
        assert all(fact["ridge"] is None for fact in facts.values())
        assert all(fact["held_out_after"] < 1e-7 for fact in facts.values())
    torch.testing.assert_close(forward(block, call, hidden), expected, rtol=1e-4, atol=1e-4)
    for module in modules:
        for layer in module.layers:
            noise_OI = torch.randn(layer.shape, generator=generator) * layer.weight_OI.std()
            layer.write(layer.weight_OI + 0.3 * noise_OI)
    disturbed = (forward(block, call, hidden) - expected).norm()
    for module in modules:
        recover(context, block, module, recording, dense)
    recovered = (forward(block, call, hidden) - expected).norm()
    assert recovered < 0.05 * disturbed


def test_recovery_needs_text_to_hold_out():
    model, _ = load_tiny("llama")
    with pytest.raises(InputError, match="at least two"):
        prunus.prune(
            model, method="goa", recovery="before", tokens_ST=torch.zeros(1, 8, dtype=torch.int64)
        )


def ridge_of(old_OA, x, y, facts):
    """The weights that a report's ridge gives, by a least-squares problem in float64."""
    return old_OA.double() if facts["ridge"] is None else literal(old_OA, x, y, facts["ridge"])


def watched(block, call, hidden, reader, module=None):
    """In one forward: what the reader reads and puts out, and what the block puts out."""
    seen = {}
    module = block.module if module is None else module
    owner = module.get_submodule(reader.name.removeprefix(f"{block.name}."))
    handle = owner.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    end = call(module, hidden)
    handle.remove()
    return (x.flatten(0, -2).double() for x in (seen["x"], seen["y"], end))


@torch.no_grad()
@pytest.mark.parametrize("recovery", ["before", "after"])
@pytest.mark.parametrize("unit", ["heads", "neurons"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_the_second_level_is_solved_for_the_dense_residual_stream(family, unit, recovery):
    """Against ``lstsq`` in float64 with the stream's gap written out, sample after sample."""
    model = build(family)
    ids_ST = torch.randint(0, 128, (24, 40), generator=torch.Generator().manual_seed(1))
    blocks, traced = inspect(model, ids_ST)
    recording = start(model, blocks, traced, ids_ST)
    dense = DenseStream.beside(recording)
    block, call = blocks[1], traced.calls[1]
    for each in (recording, dense.recording):
        each.advance(0, blocks[0].module, torch.device("cpu"))
    dense.block = copy.deepcopy(block.module)
    turn_dd = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)) / 8
    for i, hidden in enumerate(recording.hidden):  # what is pruned before has left its mark
        recording.hidden[i] = hidden + 0.2 * hidden @ turn_dd
    pruner = replace(STRUCTURED["goa"].build(None), recovery=recovery, recovery_target="stream")
    context = Context(
        model, len(blocks), pruner, torch.device("cpu"), Silent(), 0, OneToken()
    )  # fmt: skip
    (module,) = find_modules(block, traced.calls[1], traced.inputs[1], (unit,))
    reader, step = module.reader, Step(context, block, module, Streams(None, recording, dense))
    old_OA = joined(reader.weight_OI, reader.bias_O).clone()
    keep_U = torch.arange(module.units) % 2 == 0
    if recovery == "before":
        facts = step.recover()[reader.role]
        keep_U[:] = True
    else:
        assert step.halves() is None
        facts = step.repair(keep_U, None)
    columns = module.columns_UN[keep_U].flatten().sort().values
    inputs, targets, plain = [], [], []
    for hidden, beside in zip(recording.hidden, dense.recording.hidden, strict=True):
        x, put_out, end = watched(block, call, hidden, reader)
        _, dense_out, dense_end = watched(block, call, beside, reader, dense.block)
        if unit == "heads":
            gap = dense_out + beside.flatten(0, -2) - hidden.flatten(0, -2)
        else:
            gap = dense_end - (end - put_out)
        inputs.append(x[:, columns])
        targets.append(gap)
        plain.append(dense_out)
    x, y = torch.cat(inputs[:18]), torch.cat(targets[:18])  # a quarter is held out
    ones = reader.bias_O is not None
    rows = torch.cat([columns, torch.tensor([reader.shape[1]])]) if ones else columns
    expected_OA = ridge_of(old_OA[:, rows], with_ones(x, ones), y, facts)
    found_OA = joined(reader.weight_OI, reader.bias_O)[:, rows]
    assert facts["ridge"] is not None
    plain_OA = ridge_of(old_OA[:, rows], with_ones(x, ones), torch.cat(plain[:18]), facts)
    size = (expected_OA - plain_OA).norm()  # against the module's own dense outputs
    assert (found_OA - expected_OA).norm() < 0.02 * size
    held_x, held_y = torch.cat(inputs[18:]), torch.cat(targets[18:])
    error = (with_ones(held_x, ones) @ expected_OA.T - held_y).square().sum()
    assert facts["held_out_after"] == pytest.approx(float(error / held_y.square().sum()), rel=1e-3)
    assert facts["held_out_after"] < facts["held_out_before"]


def test_a_block_that_does_not_add_its_output_as_it_is_says_so():
    """Gemma 2 has a norm behind each half."""
    model = build("gemma2", {**GQA, "head_dim": 16, "pad_token_id": 0})
    before = copy.deepcopy(model.state_dict())
    fields = {"method": "wanda-sp", "recovery": "after", **RUN}
    with pytest.raises(UnsupportedModelError, match="does not add its output"):
        prunus.prune(model, settings={"recovery_target": "stream"}, **fields)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("largest", [0, 2000])
@pytest.mark.parametrize(
    ("family", "adds"),
    [("llama", True), ("gptj", True), ("gemma", True), ("gemma2", False), ("granite", False)],
)
def test_whether_outputs_are_added_as_they_are_is_seen_in_bfloat16_too(family, adds, largest):
    """A norm hardly changes an output of the stream's size, 1; an entry of 2000 rounds by 4."""
    settings = {**GQA, "head_dim": 16, "pad_token_id": 0, "hidden_size": 512}
    more = {"residual_multiplier": 0.9} if family == "granite" else {}
    model = build(
        family, {"gptj": {**FAMILIES["gptj"], "n_embd": 512}}.get(family, {**settings, **more})
    )
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding.div_(embedding.std() * (512**0.5 if family.startswith("gemma") else 1))
    seen = []

    def further(block, traced):
        call, hidden = traced.calls[block.index], traced.inputs[block.index]
        if largest:  # dwarfs all others, as entries of the first token do
            hidden[..., 0, 0] = largest
        for module in find_modules(block, call, hidden):
            try:
                check_adds(block, module, call, hidden)
                seen.append(True)
            except UnsupportedModelError:
                seen.append(False)

    inspect(model.bfloat16(), RUN["tokens_ST"][:1], further=further)
    assert seen == [adds] * 6


TEXT = {"sparsity": 0.4, "samples": 6, "length": 64, "calibration": "builtin"}


@pytest.mark.parametrize("recovery", ["before", "after", "both"])
@pytest.mark.parametrize("method", ["goa", "flap"])
def test_recovery_on_the_same_windows_is_recovery_on_the_calibration_text(method, recovery):
    """Two streams of equal samples compute what one computes, bit for bit."""
    settings = {"compensation": False} if method == "flap" else {}
    run = {"method": method, "recovery": recovery, "settings": settings, **TEXT}
    found = []
    for own in ({}, {"recovery_text": "builtin"}, {"recovery_samples": 12}):
        model, tokenizer = load_tiny("llama")
        report = prunus.prune(model, tokenizer=tokenizer, **run, **own).report
        found.append((report, model.state_dict()))
    (plain, one), (apart, same), (more, other) = found
    assert plain.recovery_protocol is None
    assert apart.recovery_protocol == plain.protocol == apart.protocol
    assert (more.protocol, more.recovery_protocol.samples) == (plain.protocol, 12)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_recovery_text_alone_is_enough_where_scores_read_none():
    model, tokenizer = load_tiny("llama")
    run = {"method": "l2", "recovery": "after", "recovery_text": "builtin", "length": 64}
    report = prunus.prune(model, tokenizer=tokenizer, recovery_samples=6, **run).report
    assert report.protocol is None
    assert report.recovery_protocol.samples == 6
    assert all("repair" in layer.notes for layer in report.layers if layer.role == "down")


def test_blocks_behind_are_recovered_and_keep_their_widths(tmp_path):
    run = {"method": "goa", "blocks": "0:2", **TEXT, "samples": 24}
    alone, behind = tmp_path / "alone", tmp_path / "behind"
    prunus.prune(MODELS / "llama", recovery="both", output=alone, **run)
    settings = {"recovery_behind": True}
    found = prunus.prune(MODELS / "llama", recovery="both", settings=settings, output=behind, **run)
    last = [layer for layer in found.report.layers if layer.block == 2]
    assert {layer.role for layer in last} == {"q", "k", "v", "o", "gate", "up", "down"}
    for layer in last:
        facts = layer.notes["recovery"][layer.role]
        assert facts["held_out_after"] <= facts["held_out_before"]
        assert (layer.sparsity, tuple(layer.notes["shape"])) == (0, layer.shape)
    assert any(layer.notes["recovery"][layer.role]["ridge"] for layer in last)
    assert found.report.structured.blocks[2].kept_heads is None
    first, second = tensors(alone), tensors(behind)
    changed = {name.split(".")[2] for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"2"}
    verified = prunus.verify(behind, source=MODELS / "llama")
    assert verified.ok
    smaller = sum(tuple(x.notes["shape"]) != x.shape for x in found.report.layers)
    assert verified.patterns == {"heads and neurons removed": smaller, "none removed": 21 - smaller}
    assert smaller <= 14
    scores = [
        prunus.evaluate(folder, length=128, windows=20).perplexity for folder in (alone, behind)
    ]
    assert scores[1] < scores[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recovery_text": "builtin"}, "--recovery-text is for a run with --recovery"),
        ({"recovery_samples": 4}, "--recovery-samples is for a run with --recovery"),
        ({"settings": {"recovery_target": "stream"}}, "recovery_target is for a run with"),
        ({"settings": {"recovery_behind": True}}, "recovery_behind is for a run with"),
        ({"recovery": "after", "recovery_samples": 1}, "greater than or equal to 2"),
        ({"recovery": "after", "recovery_samples": 4}, "Give --recovery-text SOURCE"),
        ({"recovery": "after", "recovery_text": "none"}, "got none"),
        ({"recovery": "after", "settings": {"recovery_behind": True}}, "there are none"),
        ({"recovery": "after", "settings": {"recovery_target": "dense"}}, "recovery_target"),
        ({"method": "wanda", "recovery_text": "c4"}, "--recovery-text does not apply"),
    ],
)
def test_bad_requests_of_recovery_say_what_to_change(fields, message):
    model = build("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message):
        prunus.prune(model, **{"method": "l1", **RUN, **fields})
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_another_text_of_recovery_is_another_run(tmp_path):
    texts = [tmp_path / "one.txt", tmp_path / "other.txt"]
    for text, word in zip(texts, ("plum", "sloe"), strict=True):
        text.write_text(f"{word} tree " * 400)
    run = {"method": "goa", "recovery": "after", **FAST}
    end(tmp_path / "out", 2, "prune", recovery_text=str(texts[0]), **run)
    with pytest.raises(InputError, match="its recovery sha256 was"):
        prunus.prune(
            MODELS / "llama", output=tmp_path / "out", resume=True, recovery_text=str(texts[1]),
            **run,
        )  # fmt: skip
    report = prunus.prune(
        MODELS / "llama", output=tmp_path / "out", resume=True, recovery_text=str(texts[0]), **run
    ).report
    assert report.recovery_protocol.source == str(texts[0])
    assert str(texts[0]) in (tmp_path / "out" / "README.md").read_text()


def test_a_plan_counts_the_text_of_recovery():
    run = {"method": "goa", "recovery": "after", "sparsity": 0.4, **FAST}
    model, tokenizer = load_tiny("llama")
    plain = prunus.plan(model, tokenizer=tokenizer, **run)
    large = prunus.plan(model, tokenizer=tokenizer, recovery_samples=4096, **run)
    one = 48 * model.config.hidden_size * 4
    assert large.peak_bytes > plain.peak_bytes + 3000 * one
    assert large.seconds > 20 * plain.seconds
