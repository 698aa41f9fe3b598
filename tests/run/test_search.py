"""Slope and evolve on tiny models: candidates, budgets, resumed runs."""

import pytest
import torch

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import CalibrationError, InputError
from prunus.maths.scores import Wanda
from prunus.recipe import Recipe
from prunus.report.report import read_report
from prunus.run.candidates import Candidates, dense_depths
from prunus.run.observer import Silent
from prunus.run.prepare import Request, prepare

FEW = {"samples": 8, "length": 32}
QUICK = {"allocation.halvings": 0}
SMALL = {"allocation.generations": 1, "allocation.offspring": 4}
INSIDE = {"allocation.split.halvings": 0, "allocation.inside.steps": 4}


def by_block(report):
    """Weights that each block is to lose, and those it has."""
    found = {}
    for layer in report.layers:
        size = layer.shape[0] * layer.shape[1]
        gone, all_ = found.get(layer.block, (0, 0))
        found[layer.block] = gone + round(layer.requested * size), all_ + size
    return found


def pruned(model=None, **fields):
    tiny, tokenizer = load_tiny("llama")
    return prunus.prune(model or tiny, tokenizer=tokenizer, **{**FEW, **fields}).report


def without_use(model, block):
    """Have what a block puts out add nothing to the stream."""
    layer = model.model.layers[block]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    return model


@pytest.fixture(scope="module")
def run():
    model, tokenizer = load_tiny("llama")
    recipe = Recipe.of(method="wanda", allocation="slope", sparsity=0.6, **FEW)
    return prepare(Request(model, recipe, False, tokenizer=tokenizer))[0]


def test_a_candidate_is_the_model_with_those_weights_removed(run):
    """Beside others that begin as it does, or are another sample's."""
    job, texts_ST = run.job, run.job.ids_ST[:3]
    depths = dense_depths(job, job.ids_ST, run.plan, Wanda(), run.pruner.pattern)
    candidates = Candidates(job, job.recorded(texts_ST), texts_ST, depths)
    plans = []
    for shares in ((0.4, 0.6, 0.8), (0.4, 0.6, 0.2), (0.8, 0.6, 0.4)):
        plans.append({x.name: shares[x.block] for block in run.planned for x in block.layers})
    found = {
        (number, sample): logits_TV
        for numbers, sample, logits_TV in candidates.logits(plans, [0, 2])
        for number in numbers
    }
    assert sorted(found) == [(n, sample) for n in range(3) for sample in (0, 2)]
    for number, plan in enumerate(plans):
        model = removed(plan, run)
        for sample in (0, 2):
            logits_TV = model(texts_ST[sample][None]).logits[0]
            assert torch.allclose(found[number, sample], logits_TV, atol=1e-4)
    dense_TV = next(candidates.logits([{}], [1]))[2]
    assert torch.allclose(dense_TV, load_tiny("llama")[0](texts_ST[1][None]).logits[0], atol=1e-4)


def removed(plan, run):
    """The model with Wanda's masks by statistics of the dense model, made one by one."""
    model = load_tiny("llama")[0].requires_grad_(False)
    inputs = {}
    for name in plan:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, x, out, name=name: inputs.update({name: x[0]}))
    model(run.job.ids_ST)
    for name, share in plan.items():
        weight_OI = model.get_submodule(name).weight
        score_OI = weight_OI.abs() * inputs[name].flatten(0, -2).square().mean(0).sqrt()
        gone_OI = score_OI.argsort(1).argsort(1) < int(share * weight_OI.shape[1] + 1e-9)
        weight_OI[gone_OI] = 0
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {"allocation": "evolve", "settings": {**SMALL, "allocation.per": "layer"}},
        {"allocation": "slope", "method": "mrp-sm", "settings": QUICK},
        {"allocation": "slope", "bits": 4, "group": 16, "quantize": "before", "settings": QUICK},
        {"allocation": "slope+besa", "settings": INSIDE},
    ],
    ids=lambda fields: "-".join(str(x) for x in fields.values())[:40],
)
def test_budgets_are_exact(fields):
    model = without_use(load_tiny("llama")[0], 2)
    report = pruned(model, **{"method": "wanda", "sparsity": 0.55, **fields})
    found = by_block(report)
    gone, weights = (sum(x) for x in zip(*found.values(), strict=True))
    assert gone == int(0.55 * weights)
    assert report.search["best"] < report.search["uniform"]
    assert report.search["tokens"] == 2 * 32
    shares = [gone / all_ for gone, all_ in found.values()]
    assert shares[2] > 0.7 > 0.56 > shares[0]  # the useless block pays


def test_evolve_finds_a_useless_block_between_others():
    settings = {"generations": 4, "offspring": 8, "step": 0.1, "start": "uniform"}
    settings = {f"allocation.{name}": value for name, value in settings.items()}
    model = without_use(load_tiny("llama")[0], 1)
    report = pruned(model, method="wanda", allocation="evolve", settings=settings)
    shares = [gone / all_ for gone, all_ in by_block(report).values()]
    assert shares[1] > 0.65 > 0.5 > shares[0]
    assert report.search["best"] < 0.8 * report.search["uniform"]


def test_patterns_from_a_list_meet_an_average():
    report = pruned(method="wanda", allocation="slope", pattern="1:4,2:4,3:4", sparsity=0.55,
                    settings=QUICK)  # fmt: skip
    assert 0.53 < report.sparsity <= 0.55
    assert {layer.pattern for layer in report.layers} <= {"1:4", "2:4", "3:4"}


class Ends(Silent):
    """Interrupts at a question, or at a step of a block; notes all of them."""

    def __init__(self, step, index):
        self.at, self.steps = (step, index), []

    def block(self, index, total, name, step):
        self.steps.append((step, index))
        if self.steps[-1] == self.at:
            raise KeyboardInterrupt


def test_an_interrupted_search_goes_on(tmp_path):
    """Interrupted within the search, and again when the first block is done."""
    inside = {"split.start": "uniform", "split.generations": 1, "split.offspring": 4}
    settings = {f"allocation.{k}": x for k, x in {**inside, "inside.steps": 4}.items()}
    run = {"method": "wanda", "allocation": "evolve+besa", "settings": settings, **FEW}
    whole, output = tmp_path / "whole", tmp_path / "out"
    prunus.prune(MODELS / "llama", output=whole, **run)
    for at, resume in ((("search", 2), False), (("record", 1), True)):
        watched = Ends(*at)
        with pytest.raises(KeyboardInterrupt):
            prunus.prune(MODELS / "llama", output=output, resume=resume, observer=watched, **run)
    # the dense model, and what was left to ask
    assert [index for step, index in watched.steps if step == "search"] == [0, 2, 3]
    last = Ends(None, None)
    prunus.prune(MODELS / "llama", output=output, resume=True, observer=last, **run)
    assert not {"search", "order"} & {step for step, _ in last.steps}
    for path in sorted(whole.glob("*.safetensors")):
        assert path.read_bytes() == (output / path.name).read_bytes()
    first, second = (read_report(x).search for x in (whole, output))
    assert first is not None
    assert [first[k] for k in ("loss", "best")] == [second[k] for k in ("loss", "best")]


def test_a_streamed_and_spilled_run_finds_the_same(tmp_path):
    run = {"method": "wanda", "allocation": "slope", "settings": QUICK, **FEW}
    held = pruned(**run)
    spilled = prunus.prune(
        MODELS / "llama", output=tmp_path / "out", spill=tmp_path / "spill", **run
    ).report
    assert spilled.search["loss"] == pytest.approx(held.search["loss"], rel=1e-5)
    assert [x.sparsity for x in spilled.layers] == [x.sparsity for x in held.layers]


def test_what_cannot_be():
    with pytest.raises(InputError, match=r"with 2:4 every layer has the same sparsity"):
        pruned(method="wanda", pattern="2:4", allocation="evolve")
    with pytest.raises(CalibrationError, match="--allocation slope"):
        pruned(method="magnitude", allocation="slope", calibration="none")
    with pytest.raises(InputError, match=r"Across has no field 'steps'; it has split, inside"):
        pruned(method="wanda", allocation="slope+besa", settings={"allocation.steps": 4})
    assert pruned(method="wanda", allocation="slope", sparsity=0.0).search is None


def test_a_plan_counts_the_search():
    model, tokenizer = load_tiny("llama")
    run = {"method": "wanda", "tokenizer": tokenizer, **FEW}
    plain = prunus.plan(model, **run)
    few, many = (
        prunus.plan(model, allocation="evolve", settings={"allocation.generations": n}, **run)
        for n in (10, 1000)
    )
    assert many.rehearsed["search"] > 0
    assert many.seconds > few.seconds > plain.seconds
    rounds = 1000 * (16 + 4 + 2)  # trials times pieces, of 2
    assert many.seconds > rounds * many.rehearsed["search"]
