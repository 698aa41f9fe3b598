"""Smaller models on disk: they load again, verify, export, and can be pruned again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from helpers.structured_models import GQA, IDS, RUN, build, logits
from prunus.base.errors import CheckpointError, InputError
from prunus.cli.main import app
from prunus.judge.verify import verify
from prunus.methods.table import STRUCTURED
from prunus.report.report import read_report
from prunus.storage.widths import read_widths

FRESH = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.load(sys.argv[2])).logits, sys.argv[3])
assert "prunus" not in sys.modules
"""


def test_uniform_widths_load_in_plain_transformers_in_a_fresh_process(tmp_path):
    model, tokenizer = load_tiny("llama")
    result = prunus.prune(
        model, method="goa", output=tmp_path / "out", tokenizer=tokenizer, recovery="after", **RUN
    )
    assert result.verification.ok
    assert result.report.structured.stock
    assert not (tmp_path / "out" / "widths.json").exists()
    assert model.config.num_attention_heads == 2
    torch.save(IDS, tmp_path / "ids.pt")
    paths = [str(tmp_path / name) for name in ("out", "ids.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", FRESH, *paths], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))
    assert "AutoModelForCausalLM" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "family", ["mistral", "qwen2", "qwen3", "granite", "olmo", "starcoder2", "phi"]
)
def test_fewer_heads_fit_the_stock_config_also_where_it_had_no_head_dim(family, tmp_path):
    model = build(family, {**GQA, "pad_token_id": 0})
    dtype = model.config.dtype
    report = prunus.prune(model, method="l1", **RUN).report.structured
    assert report.stock
    assert report.loads_with == "AutoModelForCausalLM"
    assert model.config.dtype is dtype
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"method": "l1"}, "no config of its family says"),
        ({"method": "l1", "blocks": "1:3"}, "widths differ by block"),
    ],
)
def test_what_only_prunus_loads_says_why(fields, why):
    assert why in prunus.prune(build("gpt2"), **fields, **RUN).report.structured.loads_with


@pytest.mark.parametrize(
    ("family", "method", "blocks"),
    [
        ("llama", "flap", None),
        ("llama", "goa", "1:3"),
        ("gpt2", "flap", None),
        ("opt", "goa", None),
    ],
)
def test_widths_that_no_config_says_are_rebuilt(family, method, blocks, tmp_path):
    model, tokenizer = load_tiny(family)
    result = prunus.prune(
        model, method=method, blocks=blocks, output=tmp_path / "out", tokenizer=tokenizer, **RUN
    )
    assert not result.report.structured.stock
    widths = read_widths(tmp_path / "out")
    assert len(widths) == len(result.report.structured.blocks)
    assert widths[-1].bias_down == (method == "flap" or family != "llama")
    loaded = prunus.load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model))
    ids = loaded.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert ids.shape == (1, 36)
    half = prunus.load(tmp_path / "out", dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with pytest.raises(RuntimeError, match="mismatch"):  # loud, not wrong
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert "prunus.load" in (tmp_path / "out" / "README.md").read_text()


def test_every_width_and_bias_reaches_llama_cpps_format(tmp_path):
    gguf = pytest.importorskip("gguf")
    from prunus.storage.gguf import write_gguf

    model, tokenizer = load_tiny("llama")
    out = tmp_path / "out"
    prunus.prune(model, method="flap", output=out, tokenizer=tokenizer, **RUN)
    write_gguf(out, tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    widths = read_widths(out)
    neurons = reader.fields["deci.feed_forward_length"].contents()
    assert neurons == [width.intermediate for width in widths]
    assert len(set(neurons)) > 1
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    down = model.model.layers[0].mlp.down_proj
    assert torch.equal(torch.tensor(found["blk.0.ffn_down.weight"]), down.weight)
    assert torch.equal(torch.tensor(found["blk.0.ffn_down.bias"]), down.bias)


def test_half_precision_is_kept(tmp_path):
    fields = {"method": "flap", "dtype": "bfloat16", "output": tmp_path / "out", **RUN}
    model = prunus.prune(MODELS / "llama", **fields).model
    loaded = prunus.load(tmp_path / "out")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(("family", "name"), [("gpt2", "n_inner"), ("opt", "ffn_dim")])
def test_neurons_alone_fit_the_stock_config_of_gpt2_and_opt(family, name, tmp_path):
    model, tokenizer = load_tiny(family)
    fields = {"method": "l2", "mlp_only": True, "output": tmp_path / "out", **RUN}
    assert prunus.prune(model, tokenizer=tokenizer, **fields).report.structured.stock
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(loaded), logits(model))
    assert getattr(model.config, name) == 96


def test_verification_sees_what_is_wrong(tmp_path):
    model, tokenizer = load_tiny("llama")
    out = tmp_path / "out"
    prunus.prune(model, method="flap", output=out, tokenizer=tokenizer, **RUN)
    assert read_report(out).structured is not None
    text = (out / "widths.json").read_text()
    (out / "widths.json").rename(out / "gone.json")
    problems = verify(out, reload=False).problems
    assert any("widths.json is missing" in problem for problem in problems)
    (out / "widths.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="format 2"):
        verify(out, reload=False)
    (out / "widths.json").write_text(text)
    report = json.loads((out / "pruning_report.json").read_text())
    report["layers"][0]["notes"]["shape"][0] += 1
    (out / "pruning_report.json").write_text(json.dumps(report))
    assert any("not (" in problem for problem in verify(out, reload=False).problems)
    with pytest.raises(InputError, match="Leave --pattern out"):
        verify(out, pattern="2:4", reload=False)


@pytest.mark.parametrize("method", ["goa", "flap"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_verification_compares_with_the_source(name, method, tmp_path):
    model, tokenizer = load_tiny(name)
    fields = {"allocation": "adaptive", "blocks": "1:2"}
    prunus.prune(
        model, method=method, output=tmp_path / "out", tokenizer=tokenizer, **fields, **RUN
    )
    found = verify(tmp_path / "out", source=MODELS / name, reload=False)
    assert found.problems == []
    assert "bit for bit" in found.checks[-1]
    other = tmp_path / "other"
    dense = load_tiny(name)[0]
    with torch.no_grad():
        for key, parameter in dense.named_parameters():
            if "layers.1." in key or ".h.1." in key or "norm" in key or "ln_f" in key:
                parameter.add_(1)
    dense.save_pretrained(other)
    said = " ".join(verify(tmp_path / "out", source=other, reload=False).problems)
    assert "Not to be pruned, but not as in" in said
    assert "without some rows or columns" in said


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])  # whose files name its head anew
def test_what_has_widths_can_be_pruned_and_quantised_again(name, tmp_path):
    one, two, three, four = (tmp_path / str(i) for i in range(1, 5))
    run = {"tokens_ST": IDS}
    prunus.prune(MODELS / name, method="flap", sparsity=0.45, output=one, **run)
    prunus.prune(one, method="flap", sparsity=0.3, blocks="0:1", output=two, **run)
    before, after = read_widths(one), read_widths(two)
    assert after[1:] == before[1:]
    assert after[0].intermediate < before[0].intermediate
    pruned = prunus.prune(two, method="wanda", output=three, **run)
    assert read_widths(three) == after
    assert "prunus.load" in (three / "README.md").read_text()
    quantised = prunus.quantize(three, bits=4, group=0, output=four, **run)
    assert quantised.report.sparsity >= pruned.report.sparsity
    assert torch.isfinite(logits(prunus.load(four))).all()
    with pytest.raises(InputError, match="Leave --pack out"):
        prunus.quantize(three, bits=4, group=0, pack=True, output=tmp_path / "no", **run)
    model = prunus.load(three)  # and from memory
    tokenizer = load_tiny(name)[1]
    prunus.prune(model, method="magnitude", output=tmp_path / "5", tokenizer=tokenizer)
    assert read_widths(tmp_path / "5") == after


@pytest.mark.reload
def test_command_line(tmp_path, monkeypatch):
    model, tokenizer = load_tiny("llama")
    model.save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    out = tmp_path / "out"
    arguments = ["--method", "flap", "--blocks", "1:3", "--parameters", "20000"]
    arguments += ["--samples", "8", "--length", "64", "--output", str(out), "--json"]
    run = CliRunner().invoke(app, ["prune", str(tmp_path / "dense"), *arguments])
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    assert said["loads_in_transformers"] is False
    assert 0 <= 20000 - said["parameters_before"] + said["parameters"] + 2 * 64 * 4 < 1000
    run = CliRunner().invoke(app, ["verify", str(out), "--json"])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["eval", str(out), "--windows", "2", "--length", "64", "--json"])
    assert json.loads(run.stdout)["perplexity"] > 1
    again = ["--recipe", str(out / "recipe.yaml"), "--output", str(tmp_path / "again"), "--json"]
    run = CliRunner().invoke(app, ["prune", str(tmp_path / "dense"), *again])
    assert json.loads(run.stdout)["parameters"] == said["parameters"]
    run = CliRunner().invoke(app, ["methods", "--json"])
    assert set(STRUCTURED) < set(json.loads(run.stdout))
