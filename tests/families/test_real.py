"""SmolLM2-135M and real texts, end to end; skipped where they are not installed."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import prunus
from prunus.cli import demonstration
from prunus.cli.main import app
from prunus.maths.orders.orders import Orders
from prunus.model.channels import Channels
from prunus.model.inspect import inspect
from prunus.model.weights import InMemory
from prunus.report.report import read_report
from prunus.storage.checkpoint import load_model, load_tokenizer
from prunus.text import read_documents

pytestmark = pytest.mark.real
BLOCKS = 4


@pytest.fixture(scope="module")
def dense(smollm2):
    """All thirty blocks, which no test changes."""
    return load_model(smollm2)


@pytest.fixture(scope="module")
def cut(smollm2, dense, tmp_path_factory):
    """The first four of its thirty blocks: for what depends on its shapes and not on its depth."""
    folder = tmp_path_factory.mktemp("cut")
    layers, dense.model.layers = dense.model.layers, dense.model.layers[:BLOCKS]
    dense.config.num_hidden_layers = BLOCKS
    dense.save_pretrained(folder)
    dense.model.layers, dense.config.num_hidden_layers = layers, len(layers)
    load_tokenizer(smollm2).save_pretrained(folder)
    return folder


def test_a_gguf_becomes_a_pruned_checkpoint_that_plain_transformers_loads(smollm2, tmp_path):
    """Three of thirty blocks, as a user runs it; a folder with a GGUF is as good as the file."""
    output = tmp_path / "pruned"
    words = ["prune", str(smollm2.parent), "--method", "wanda", "--pattern", "2:4"]
    words += ["--samples", "1", "--length", "64", "--json", "--skip-blocks", "3:30"]
    done = CliRunner().invoke(app, [*words, "--output", str(output)])
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["layers"] == 3 * 7
    assert said["sparsity"] == pytest.approx(0.5, abs=0.001)
    assert said["coverage"] == pytest.approx(0.0789, abs=0.0001)
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    found = prunus.verify(output, source=smollm2, reload=False)
    assert found.problems == []
    assert found.pattern == "2:4"
    plain = AutoModelForCausalLM.from_pretrained(output)
    weight_OI = plain.model.layers[2].mlp.up_proj.weight
    assert 2 * (weight_OI == 0).sum() >= weight_OI.numel()
    text = "The capital of France is"
    ids = load_tokenizer(output)(text, return_tensors="pt").input_ids
    assert torch.equal(ids, load_tokenizer(smollm2)(text, return_tensors="pt").input_ids)


def test_channels_of_a_real_model_fold_and_its_file_is_two_four(cut, tmp_path):
    """Folding alone leaves the logits; pruned, plain transformers has the run's perplexity."""
    model, tokenizer = load_model(cut), load_tokenizer(cut)
    ids = torch.randint(0, 49000, (1, 64), generator=torch.Generator().manual_seed(0))
    blocks, traced = inspect(model, ids)
    channels = Channels.of(InMemory(model), blocks, traced, ids, fold_residual=True)
    generator = torch.Generator().manual_seed(1)
    channels.apply(
        Orders(
            torch.randperm(576, generator=generator),
            {site: interior.shuffled(generator) for site, interior in channels.interiors.items()},
        )
    )
    with torch.no_grad():
        found = model(input_ids=ids).logits
    assert len(channels.interiors) == 2 * BLOCKS
    assert float((found - traced.logits).abs().max()) <= 1e-4 * float(traced.logits.abs().max())

    out = tmp_path / "out"
    options = {"method": "ri", "pattern": "2:4", "permutation": "fold", "search": "heuristic"}
    result = prunus.prune(cut, output=out, **options)
    checked = prunus.verify(out, pattern="2:4", reload=False)
    assert checked.ok, checked.problems
    plain = AutoModelForCausalLM.from_pretrained(out).eval()
    scores = [
        prunus.evaluate(m, tokenizer=tokenizer, length=256, windows=1).perplexity
        for m in (plain, result.model)
    ]
    assert scores[0] == scores[1]


def test_a_packed_model_is_small_and_the_same(cut, tmp_path):
    """Integers of 4 bits, a scale for every 64: under 30 % of bfloat16, bit for bit the same."""
    pytest.importorskip("compressed_tensors")
    fields = {"method": "magnitude", "bits": 4, "group": 64, "dtype": "bfloat16"}
    sizes, states = [], []
    for pack in (True, False):
        folder = tmp_path / str(pack)
        report = prunus.prune(cut, output=folder, pack=pack, **fields).report
        sizes.append((folder / "model.safetensors").stat().st_size)
        states.append(AutoModelForCausalLM.from_pretrained(folder).state_dict())
    others = sizes[1] - 2 * report.coverage.pruned_weights
    assert sizes[0] - others < 0.3 * (sizes[1] - others)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (states[0]["model.layers.3.mlp.up_proj.weight"] == 0).float().mean() >= 0.5


def test_the_demo_runs_and_leaves_the_best_on_disk(smollm2, cut, tmp_path, monkeypatch):
    """Two of its six runs; the last step of a run is to verify what it has written."""
    assert (demonstration.METHODS, demonstration.PATTERNS) == (
        ("magnitude", "wanda", "ria"), (None, "2:4"),
    )  # fmt: skip
    assert demonstration.find_smollm2() == smollm2
    monkeypatch.setattr(demonstration, "find_smollm2", lambda install: cut)
    monkeypatch.setattr(demonstration, "METHODS", ("magnitude", "wanda"))
    monkeypatch.setattr(demonstration, "PATTERNS", (None,))
    output = tmp_path / "demo"
    small = ["--samples", "1", "--length", "64", "--windows", "2", "--json"]
    done = CliRunner().invoke(app, ["demo", "--output", str(output), *small])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    found = {row["method"]: row["perplexity"] for row in said["rows"]}
    assert list(found) == ["dense", "magnitude", "wanda"]
    assert len(set(found.values())) == 3
    best = min(("magnitude", "wanda"), key=lambda method: found[method])
    assert said["best"] == read_report(output).method == best
    assert len(read_report(output).layers) == 7 * BLOCKS


def test_dense_wikitext2_perplexity_is_the_known_one(smollm2, dense, data):
    """Of an independent loop over the same two windows: the mean of its losses is 3.284056."""
    text = str(data / "wikitext2" / "wiki.test.raw")
    tokenizer = load_tokenizer(smollm2)
    found = prunus.evaluate(dense, text, tokenizer=tokenizer, length=512, windows=2)
    assert found.perplexity == pytest.approx(26.6838, abs=0.005)


def test_the_texts_are_read_as_the_papers_read_them(data):
    wiki = read_documents("wikitext2", "evaluation", data)
    assert (len(wiki.texts), len(wiki.joined())) == (4358, 1_294_336)
    raw = read_documents("wikitext2-raw", "evaluation", data)
    lying = (data / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    assert raw.texts == [lying]
    assert len(lying) == 1_288_556
    assert "".join(row or " \n" for row in wiki.texts) == lying  # as the hub's rows are joined
    web = read_documents("c4", "calibration", data)
    assert len(web.texts) == 700
    assert web.texts[0].startswith("Beginners BBQ Class Taking Place in Missoula!")
    stories = read_documents("lambada", "evaluation", data)
    assert len(stories.texts) == 5153
