"""What is written loads in plain transformers; what cannot be read says why."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import prunus
from helpers.models import FAMILIES, MODELS, load_tiny
from prunus.base.atomic import new_folder
from prunus.base.errors import (
    CheckpointError,
    CheckpointWarning,
    InputError,
    NotVerifiedError,
    NumericalError,
    UnsupportedModelError,
)
from prunus.storage.checkpoint import find, load_model, load_tokenizer

FAST = {"samples": 4, "length": 64}
PLAIN = """
import json, sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
sums = {}
for path in Path(sys.argv[1]).iterdir():
    model = AutoModelForCausalLM.from_pretrained(path)
    ids = AutoTokenizer.from_pretrained(path)("The statement", return_tensors="pt").input_ids
    sums[path.name] = float(model(ids).logits.double().sum())
assert not any(name.split(".")[0] == "prunus" for name in sys.modules)
print(json.dumps(sums))
"""


@pytest.fixture
def source(tmp_path):
    """A copy of the tiny llama to damage."""
    return Path(shutil.copytree(MODELS / "llama", tmp_path / "source"))


def test_a_bare_from_pretrained_in_a_fresh_process_gives_the_same_logits(tmp_path):
    """Of every family, in one process."""
    expected = {}
    for family in FAMILIES:
        result = prunus.prune(MODELS / family, method="wanda", output=tmp_path / family, **FAST)
        ids = AutoTokenizer.from_pretrained(MODELS / family)("The statement", return_tensors="pt")
        with torch.no_grad():
            expected[family] = float(result.model(ids.input_ids).logits.double().sum())
    command = [sys.executable, "-I", "-c", PLAIN, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-5)


def test_everything_a_user_needs_lies_in_the_folder(tmp_path):
    output = tmp_path / "a" / "pruned"  # the parent does not exist yet
    result = prunus.prune(MODELS / "llama", method="ria", pattern="2:4", output=output, **FAST)
    names = {p.name for p in output.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "pruning_report.json",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o644 for p in output.iterdir())
    assert os.listdir(output.parent) == ["pruned"]  # no temporary name is left
    config = json.loads((output / "config.json").read_text())
    assert "quantization_config" not in config
    assert "sparsity_config" not in config
    report = json.loads((output / "pruning_report.json").read_text())
    assert report["protocol"]["sha256"] == result.report.protocol.sha256
    assert {"prunus", "torch", "transformers", "python"} == set(report["versions"])
    assert len(report["layers"]) == 21
    for layer in report["layers"]:
        assert layer["requested"] == layer["sparsity"] == 0.5
        assert layer["pattern"] == "2:4"
        assert 0 < layer["relative_output_error"] < 1
        assert layer["seconds"] > 0
    card = (output / "README.md").read_text()
    assert "method: ria" in card
    assert "| q_proj | 64 × 64 | 2:4 | 50.00% |" in card
    tensors = load_file(output / "model.safetensors")
    weight_OI = tensors["model.layers.0.mlp.up_proj.weight"]
    assert ((weight_OI.reshape(-1, 4) != 0).sum(1) == 2).all()


def test_the_recipe_beside_a_checkpoint_makes_it_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    prunus.prune(
        MODELS / "llama",
        method="ria",
        sparsity=0.6,
        settings={"score.power": 0.3},
        skip_blocks="0:1",
        output=first,
        **FAST,
    )
    prunus.prune(MODELS / "llama", first / "recipe.yaml", output=second)
    a, b = (load_file(p / "model.safetensors") for p in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (first / "recipe.yaml").read_text() == (second / "recipe.yaml").read_text()


def test_nothing_is_overwritten_and_nothing_is_left_behind(tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious").write_text("x")
    with pytest.raises(CheckpointError, match=r"exists\. Choose another --output"):
        prunus.prune(MODELS / "llama", method="wanda", output=output, **FAST)
    assert (output / "precious").read_text() == "x"

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunus.storage.journal.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        prunus.prune(MODELS / "llama", method="wanda", output=tmp_path / "new", **FAST)
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    model, tokenizer = load_tiny("llama")
    with pytest.raises(CheckpointError, match="No space left"):
        prunus.prune(model, method="wanda", output=tmp_path / "new", tokenizer=tokenizer, **FAST)
    assert os.listdir(tmp_path) == ["out"]


def test_an_interrupted_write_leaves_no_folder(tmp_path):
    def write():
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert os.listdir(tmp_path) == []


@pytest.mark.reload
def test_a_checkpoint_that_fails_its_verification_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.judge.reload.RELOAD", "raise SystemExit('cannot load')")
    with pytest.raises(prunus.PrunusError, match=r"did not pass the last check.*cannot load"):
        prunus.prune(MODELS / "llama", method="wanda", output=tmp_path / "out", **FAST)
    assert os.listdir(tmp_path) == [".out.unfinished"]  # the reload may have lacked memory
    monkeypatch.undo()
    prunus.prune(MODELS / "llama", method="wanda", output=tmp_path / "out", resume=True, **FAST)
    assert os.listdir(tmp_path) == ["out"]


def test_shards_and_their_index(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, held in ((1, names[:9]), (2, names[9:])):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n] for n in held}, source / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, file)
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    result = prunus.prune(source, method="wanda", output=tmp_path / "out", **FAST)
    assert result.verification.ok
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model-00002-of-00002\.safetensors"):
        load_model(source)
    index.write_text(json.dumps({"weight_map": {"x": "../../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="lies outside of the folder"):
        load_model(source)
    index.write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        load_model(source)


def test_damaged_and_incomplete_checkpoints(source):
    file = source / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"garbage" * 99, b""):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            load_model(source)
    file.write_bytes(whole)
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor \(model\.layers\.1\.mlp\.up_proj"):
        load_model(source)
    file.unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="prunus does not read pickle"):
        load_model(source)
    (source / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json and no \.gguf"):
        load_model(source)


def test_missing_tokenizer(source, tmp_path):
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer that can be loaded.*tokenizer\.json"):
        load_tokenizer(source)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        prunus.prune(source, method="wanda", output=tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


def test_nan_weights_and_no_blocks(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.self_attn.v_proj.weight"][1, 2] = float("inf")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"layers\.2\.self_attn\.v_proj\.weight holds NaN or"):
        prunus.prune(source, method="wanda", output=tmp_path / "out", **FAST)
    empty = LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=0, vocab_size=512))
    empty.save_pretrained(tmp_path / "none")
    with pytest.raises(UnsupportedModelError, match="has no blocks"):
        prunus.prune(tmp_path / "none", method="magnitude", calibration="none")


def test_where_a_checkpoint_can_be(tmp_path):
    assert find(MODELS / "llama").arguments == {"local_files_only": True}
    for name in ("./missing", "/no/such", "missing.gguf", "a/b/c"):
        with pytest.raises(CheckpointError, match="does not exist"):
            find(name)
    (tmp_path / "one.gguf").write_bytes(b"")
    assert find(tmp_path).gguf_file == find(tmp_path / "one.gguf").gguf_file == "one.gguf"
    (tmp_path / "two.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"several GGUF files \(one\.gguf, two\.gguf\)"):
        find(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file but not a GGUF"):
        find(tmp_path / "model.bin")


def test_in_memory_models_are_pruned_in_place_and_can_be_written(tiny_llama, tmp_path):
    model, tokenizer = tiny_llama
    output = tmp_path / "out"
    result = prunus.prune(model, method="wanda", tokenizer=tokenizer, output=output, **FAST)
    assert result.model is model
    again = prunus.load(output)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_an_output_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file/out", "dangling", "x" * 300):
        with pytest.raises(CheckpointError, match=r"cannot be written|exists"):
            prunus.prune("no/model", method="wanda", output=tmp_path / name)
    (tmp_path / ".file.unfinished").mkdir()  # killed after the last rename
    with pytest.raises(CheckpointError, match=r"exists\..* killed at its end; remove it too"):
        prunus.prune("no/model", method="wanda", output=tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load_model("x" * 5000)


def test_a_full_disk_inside_of_safetensors(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("prunus.storage.journal.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        prunus.prune(MODELS / "llama", method="magnitude", output=tmp_path / "new")
    assert os.listdir(tmp_path) == []


REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.reload
def test_remote_code_runs_only_when_asked(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "own.py").write_text(REMOTE)
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        prunus.prune(source, method="magnitude", output=tmp_path / "out")
    result = prunus.prune(
        source, method="wanda", output=tmp_path / "out", trust_remote_code=True, **FAST
    )
    assert result.verification.ok


def test_named_chat_templates_stay_readable(source, tmp_path):
    path = source / "tokenizer_config.json"
    templates = [{"name": n, "template": "{{ messages }}"} for n in ("default", "tool_use")]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": templates}))
    prunus.prune(source, method="magnitude", output=tmp_path / "out")
    folders = [p for p in (tmp_path / "out").rglob("*") if p.is_dir()]
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o755 for p in folders)


def test_a_recipe_of_given_tokens_says_that_it_cannot_be_run_again(tmp_path):
    ids_ST = torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    prunus.prune(MODELS / "llama", method="wanda", tokens_ST=ids_ST, output=tmp_path / "a")
    with pytest.raises(prunus.PrunusError, match="token ids given in Python"):
        prunus.prune(MODELS / "llama", tmp_path / "a" / "recipe.yaml", output=tmp_path / "b")


def test_a_tokenizer_of_another_model(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:100].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    for call in (
        lambda: prunus.prune(source, method="wanda", output=tmp_path / "out", **FAST),
        lambda: prunus.evaluate(source, length=64),
    ):
        with pytest.raises(prunus.PrunusError, match="outside of the model's 100 embeddings"):
            call()


def test_tensors_and_config_that_do_not_belong_together(source, tmp_path):
    """At once, and named: from memory, and block by block."""
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    said = r"(gate|up|down)_proj.weight is .*160.* in the files, and .*128.* in the model"
    with pytest.raises(CheckpointError, match=said):
        load_model(source)
    with pytest.raises(CheckpointError, match=said):
        prunus.prune(source, method="magnitude", output=tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_tensors_that_the_config_has_no_place_for_are_told(source):
    config = json.loads((source / "config.json").read_text())
    fewer = {**config, "num_hidden_layers": 2}
    fewer.pop("layer_types", None)
    (source / "config.json").write_text(json.dumps(fewer))
    with pytest.warns(CheckpointWarning, match=r"holds 9 tensors .* no place for \(model.layers.2"):
        load_model(source)


def test_what_cannot_pass_gets_no_name(source, tmp_path, monkeypatch):
    where = "prunus.judge.layers.check"
    monkeypatch.setattr(where, lambda *args: args[-1].problems.append("x"))
    with pytest.raises(NotVerifiedError, match="was not kept: x"):
        prunus.prune(source, method="magnitude", output=tmp_path / "out")
    assert [x.name for x in tmp_path.glob("*out*")] == [".out.unfinished"]


def test_a_report_names_the_model_from_anywhere(source, tmp_path, monkeypatch):
    monkeypatch.chdir(source.parent)
    report = prunus.prune(source.name, method="magnitude", output=tmp_path / "out").report
    assert report.model == str(source)
    assert "# source, pruned" in (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: prunus.prune(m.model, method="magnitude"), "has no language-model head"),
        (lambda m: prunus.prune(m, {"method": "ri"}), "or a YAML file of one; got dict"),
        (
            lambda m: prunus.prune(m, method="wanda", tokens_ST=torch.zeros(2, 600).long()),
            "samples of 600 tokens, but the model takes at most 512",
        ),
        (
            lambda m: prunus.prune(m, method="l2", recovery="after", calibration="none"),
            "without --recovery",
        ),
        (
            lambda m: prunus.prune(m, method="ri", update="least-squares", calibration="none"),
            "leave --update, --refine",
        ),
        (lambda m: prunus.evaluate(m, " "), "source is empty"),
    ],
)
def test_calls_that_cannot_be_meant(call, said):
    with pytest.raises(InputError, match=said):
        call(load_tiny("llama")[0])


def test_inference_mode_is_refused():
    model = load_tiny("llama")[0]
    with torch.inference_mode(), pytest.raises(InputError, match="Call prunus outside of it"):
        prunus.prune(model, method="magnitude")
