"""Runs on one walk give the same bits as each of them alone."""

import json
import time

import pytest
import torch

import prunus
from helpers.models import MODELS
from helpers.runs import Ends, end, same
from prunus.base.errors import InputError
from prunus.recipe import Recipe
from prunus.run.observer import Silent
from prunus.run.together import grouped, prune_together, reads_alike
from prunus.storage.checkpoint import load_model
from prunus.storage.journal import LINES, unfinished

MODEL = MODELS / "llama"
FIELDS = {"samples": 4, "length": 32, "calibration": "builtin", "statistics": "dense"}
RECIPES = {
    "wanda": {"method": "wanda", "sparsity": 0.6},
    "2-4": {"method": "ria", "pattern": "2:4"},
    "sparsegpt": {"method": "sparsegpt"},
    "mrp": {"method": "mrp-sm", "pattern": "2:4"},
    "owl": {"method": "wanda", "allocation": "owl"},
    "free": {"method": "wanda", "pattern": "2:4", "permutation": "free"},
    "bits": {"method": "wanda", "bits": 4, "group": 16},
}


def recipe(**fields):
    return Recipe.of(**{**FIELDS, **fields})


def last_line(output):
    return (unfinished(output) / LINES).read_text().splitlines()[-1]


def finish(output, recipe):
    return prunus.prune(MODEL, recipe, output=output, resume=True, observer=Silent())


def test_each_run_is_the_run_alone(tmp_path):
    todo = {tmp_path / name: recipe(**fields) for name, fields in RECIPES.items()}
    begun = time.perf_counter()
    prune_together(MODEL, todo, trust_remote_code=False, observer=Silent())
    took = time.perf_counter() - begun
    spent = {output: json.loads(last_line(output))["spent"] for output in todo}
    assert sum(spent.values()) < took
    for output, own in todo.items():
        found = finish(output, own)
        assert 0 < spent[output] < found.report.seconds
        alone = prunus.prune(
            MODEL, own, output=tmp_path / f"{output.name}-alone", observer=Silent()
        )
        same(output, alone.output)
        assert found.orders.free.keys() == alone.orders.free.keys()


def test_dense_statistics_are_those_of_the_dense_model(tmp_path):
    """Wanda by hand: inputs of each layer in a plain forward of the dense model."""
    made = prunus.prune(MODEL, recipe(method="wanda"), observer=Silent())
    other = prunus.prune(MODEL, recipe(method="wanda", statistics="pruned"), observer=Silent())
    model = load_model(MODEL, dtype="auto")
    ids_ST = calibration(model)
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"):
        module, seen = model.get_submodule(name), []
        handle = module.register_forward_hook(
            lambda _, args, out, seen=seen: seen.append(args[0].detach())
        )
        for ids_T in ids_ST:
            model(ids_T[None])
        handle.remove()
        inputs_TI = torch.cat([x.flatten(0, -2) for x in seen]).double()
        score_OI = module.weight.double().abs() * inputs_TI.square().mean(0).sqrt()
        kept = score_OI.shape[1] // 2
        least_O1 = score_OI.sort(1, descending=True).values[:, kept - 1 : kept]
        mask_OI = score_OI >= least_O1
        assert torch.equal(made.model.get_submodule(name).weight != 0, mask_OI)
    weight_OI = other.model.get_submodule(name).weight
    assert not torch.equal(weight_OI != 0, mask_OI)  # behind pruned blocks it is another mask


def calibration(model):
    from prunus.storage.checkpoint import load_tokenizer
    from prunus.text.sources import read_documents
    from prunus.text.tokens import calibration_tokens

    tokenizer = load_tokenizer(MODEL)
    documents = read_documents("builtin", "calibration", None, field=None, tokenizer=tokenizer)
    ids_ST, _ = calibration_tokens(
        model, tokenizer, documents, samples=4, length=32, seed=0, bos="auto", say=print
    )
    return ids_ST


@pytest.mark.parametrize("skipped", [None, "0:1", "1:2"])
def test_a_run_alone_that_is_resumed_reads_the_same(tmp_path, skipped):
    own = recipe(method="sparsegpt", skip_blocks=skipped)
    whole = prunus.prune(MODEL, own, output=tmp_path / "whole", observer=Silent())
    if skipped != "1:2":
        end(tmp_path / "ended", 1, "record", recipe=own)
    finish(tmp_path / "ended", own)
    same(whole.output, tmp_path / "ended")
    if skipped is not None:
        todo = {tmp_path / "one": own, tmp_path / "two": own.replaced(method="wanda")}
        prune_together(MODEL, todo, trust_remote_code=False, observer=Silent())
        finish(tmp_path / "one", own)
        same(whole.output, tmp_path / "one")


def test_a_walk_that_was_ended_goes_on(tmp_path):
    todo = {tmp_path / name: recipe(**RECIPES[name]) for name in ("wanda", "sparsegpt")}
    with pytest.raises(KeyboardInterrupt):
        prune_together(MODEL, todo, trust_remote_code=False, observer=Ends(1, "prune"))
    prune_together(MODEL, todo, trust_remote_code=False, observer=Silent())
    for output, own in todo.items():
        finish(output, own)
        alone = prunus.prune(
            MODEL, own, output=tmp_path / f"{output.name}-alone", observer=Silent()
        )
        same(output, alone.output)


def test_which_runs_go_together():
    alike = [recipe(**RECIPES[name]) for name in ("wanda", "2-4", "sparsegpt", "mrp")]
    apart = [
        recipe(method="wanda", statistics="pruned"),
        recipe(method="wanda", pattern="2:4", permutation="fold"),
        recipe(method="magnitude"),
        recipe(method="goa", statistics=None),
        recipe(method="wanda", seed=1),
    ]
    assert [reads_alike(x) is None for x in apart] == [True, True, True, True, False]
    assert grouped([*alike, *apart], 8) == [[0, 1, 2, 3]]
    assert grouped([*alike, *apart], 3) == [[0, 1, 2]]
    assert grouped([apart[4], *alike[:2], alike[2].replaced(seed=1)], 8) == [[0, 3], [1, 2]]


def test_what_reads_pruned_blocks_has_no_dense_statistics():
    with pytest.raises(InputError, match=r"learns .*Give --statistics pruned"):
        recipe(method="besa").build()
    with pytest.raises(InputError, match=r"--true-sequential .*Give --statistics pruned"):
        recipe(method="wanda", true_sequential=True).build()
    with pytest.raises(InputError, match="--statistics does not apply"):
        recipe(method="goa").build()


def test_runs_that_read_different_text_cannot_go_together(tmp_path):
    todo = {tmp_path / str(seed): recipe(method="wanda", seed=seed) for seed in (0, 1)}
    with pytest.raises(InputError, match="read the same text"):
        prune_together(MODEL, todo, trust_remote_code=False, observer=Silent())
