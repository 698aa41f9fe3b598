"""Hub ids: all that works for a folder works for them, and all that is written names the commit."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants, metadata_load
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM

import prunus
import prunus.storage.hub
from helpers.models import MODELS
from prunus.base.errors import CheckpointError, CheckpointWarning
from prunus.report.naming import base_model
from prunus.storage.checkpoint import find
from prunus.storage.hub import commit_of, snapshot

FAST = {"samples": 2, "length": 32}
A, B = "a" * 40, "b" * 40


@pytest.fixture
def tiny(hub):
    """``org/tiny`` in the cache."""
    return hub("org/tiny", MODELS / "llama")


def test_a_run_by_id_is_the_run_by_folder_and_names_the_commit(tiny, tmp_path):
    by_id = prunus.prune("org/tiny", method="wanda", output=tmp_path / "id", **FAST)
    prunus.prune(MODELS / "llama", method="wanda", output=tmp_path / "folder", **FAST)
    weights = [(tmp_path / x / "model.safetensors").read_bytes() for x in ("id", "folder")]
    assert weights[0] == weights[1]
    assert by_id.report.model == f"org/tiny@{A}"
    recipe = yaml.safe_load((tmp_path / "id" / "recipe.yaml").read_text())
    assert recipe["model"] == f"org/tiny@{A}"
    card = tmp_path / "id" / "README.md"
    assert metadata_load(card)["base_model"] == "org/tiny"
    assert "\n# org/tiny, pruned\n" in card.read_text()
    assert prunus.verify(tmp_path / "id", source="org/tiny").ok


def test_an_interrupted_run_goes_on_with_its_commit_and_with_no_other(hub, tiny, tmp_path):
    class Stop(prunus.run.observer.Silent):
        def block(self, index, total, name, step):
            if index == 1:
                raise KeyboardInterrupt

    asked = {"method": "wanda", "output": tmp_path / "out", **FAST}
    with pytest.raises(KeyboardInterrupt):
        prunus.prune("org/tiny", observer=Stop(), **asked)
    line = (tmp_path / ".out.unfinished" / "journal.jsonl").read_text().split("\n")[0]
    noted = json.loads(line)["fingerprint"]
    assert (noted["model"], noted["commit"]) == ("org/tiny", A)
    hub("org/tiny", MODELS / "llama", B)
    prunus.storage.hub.downloaded.cache_clear()  # as in a new process: main is B by now
    with pytest.raises(prunus.PrunusError, match=f"its commit was '{A}', now it is '{B}'"):
        prunus.prune("org/tiny", resume=True, **asked)
    assert prunus.prune(f"org/tiny@{A}", resume=True, **asked).verification.ok


def test_one_process_has_one_commit_and_a_revision_is_asked_for_by_name(hub, tiny):
    other = hub("org/tiny", MODELS / "llama", B, ref="v2")
    hub_main = tiny.parents[1] / "refs" / "main"
    assert snapshot("org/tiny") == tiny
    hub_main.write_text(B)  # the branch moves while a run is going on
    assert snapshot("org/tiny") == tiny
    assert snapshot("org/tiny@v2") == other
    assert find("org/tiny@v2").hub == f"org/tiny@{B}"
    with pytest.raises(CheckpointError, match="not in the hub's cache at v3"):
        snapshot("org/tiny@v3")


def test_what_a_pruned_folder_says_is_read_on_the_hub_too(hub, tmp_path):
    asked = {"pattern": "2:4", "permutation": "gather", "calibration": "builtin"}
    prunus.prune(MODELS / "llama", method="ria", output=tmp_path / "gathered", **asked, **FAST)
    prunus.prune(MODELS / "llama", method="magnitude", pattern="2:4", output=tmp_path / "plain")
    hub("org/gathered", tmp_path / "gathered")
    hub("org/plain", tmp_path / "plain")
    indexed = [x for x in prunus.load("org/gathered").modules() if hasattr(x, "input_order")]
    assert indexed
    report = prunus.quantize("org/plain", group=16, output=tmp_path / "small", **FAST).report
    assert report.pattern == "2:4"
    assert prunus.write_gguf("org/plain", tmp_path / "m.gguf").blocks == 3


def test_bench_finds_the_dense_model_again(tiny, forked, tmp_path):
    prunus.prune("org/tiny", method="magnitude", output=tmp_path / "out")
    found = prunus.bench(tmp_path / "out", prompt=8, new=2, repeats=1)
    assert found.dense_model == f"org/tiny@{A}"
    assert found.model("pruned").parameters == found.model("dense").parameters


def test_a_model_in_memory_has_the_name_that_it_came_by(tiny, tmp_path, monkeypatch):
    assert prunus.prune(prunus.load("org/tiny"), method="magnitude").report.model == (
        f"org/tiny@{A}"
    )
    by_id = AutoModelForCausalLM.from_pretrained("org/tiny", cache_dir=constants.HF_HUB_CACHE)
    assert prunus.prune(by_id, method="magnitude").report.model == "org/tiny"
    assert base_model("org/tiny") == "org/tiny"
    shutil.copytree(MODELS / "llama", tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    local = AutoModelForCausalLM.from_pretrained("models/tiny")
    monkeypatch.chdir(MODELS)  # "models/tiny" is no path any more, and looks like a hub id
    prunus.prune(local, method="magnitude", output=tmp_path / "out")
    assert "base_model" not in metadata_load(tmp_path / "out" / "README.md")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("base_model: org/big", "org/big"),
        ("base_model:\n- org/one\n- org/two", ["org/one", "org/two"]),
        ("base_model: ./models/big", None),
        ("base_model: /data/models/big", None),
        ("base_model: out/checkpoint/5", None),
        ("base_model: 5", None),
        ("license: mit", None),
        ("base_model: [", None),
    ],
)
def test_a_local_folder_is_based_on_what_its_card_says(said, expected, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{said}\n---\n\n# Text\n")
    assert base_model(str(tmp_path)) == expected


def test_the_base_model_is_handed_down(tiny, tmp_path):
    prunus.prune("org/tiny", method="magnitude", output=tmp_path / "pruned")
    prunus.quantize(tmp_path / "pruned", group=16, output=tmp_path / "small", **FAST)
    assert metadata_load(tmp_path / "small" / "README.md")["base_model"] == "org/tiny"
    assert base_model(str(MODELS / "llama")) is None
    assert base_model("in memory") is None
    assert commit_of(tiny) == f"org/tiny@{A}"
    assert commit_of(tmp_path) is None


def test_what_is_not_in_the_cache_is_named(hub, monkeypatch):
    with pytest.raises(CheckpointError, match=r"org/none .* HF_HUB_OFFLINE forbids to download"):
        prunus.prune("org/none", method="magnitude")
    with pytest.raises(CheckpointError, match=r"^a b is neither a local folder nor a hub id"):
        find("a b")
    (MODELS / "llama").stat()
    pickled = hub("org/pickled", MODELS / "llama")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"org/pickled has no safetensors .* a{40}"):
        find("org/pickled")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _refuses(monkeypatch, LocalEntryNotFoundError("no route to host"))
    with pytest.raises(CheckpointError, match=r"cannot be reached \(no route to host\)"):
        find("org/none")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GatedRepoError, "org/x is gated: accept its terms at https://.*/org/x, and log in"),
        (RepositoryNotFoundError, "the hub has no such model that you may read"),
        (RevisionNotFoundError, "org/x has no revision v1 on the hub"),
        (OSError, "org/x cannot be downloaded from the hub: No space left"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(kind, said, monkeypatch, hub):
    error = kind.__new__(kind)  # those of the hub want a response
    Exception.__init__(error, "No space left")
    _refuses(monkeypatch, error)
    with pytest.raises(CheckpointError, match=said):
        find("org/x@v1")


def _refuses(monkeypatch, error):
    def refuse(**asked):
        raise error

    monkeypatch.setattr(prunus.storage.hub, "snapshot_download", refuse)


def test_a_cache_that_other_software_filled_is_enough_and_a_word_is_said(hub, tiny, monkeypatch):
    whole = prunus.storage.hub.snapshot_download

    def incomplete(**asked):  # as huggingface_hub says where README.md was never fetched
        if "ignore_patterns" in asked:
            raise LocalEntryNotFoundError("missing: README.md")
        return whole(**asked)

    monkeypatch.setattr(prunus.storage.hub, "snapshot_download", incomplete)
    with pytest.warns(CheckpointWarning, match="org/tiny is in the cache only in part"):
        assert find("org/tiny").location == str(tiny)


def test_no_pickle_is_downloaded(monkeypatch, tiny):
    seen = {}

    def fetch(**asked):
        seen.update(asked)
        return str(tiny)

    monkeypatch.setattr(prunus.storage.hub, "snapshot_download", fetch)
    find("org/tiny")
    ignored = [name for name in ("pytorch_model.bin", "model.onnx", "q4.gguf", "x.pth", "x.pkl")]
    kept = ["model-00001-of-00002.safetensors", "tokenizer.model", "modeling_x.py", "LICENSE"]
    assert [x for x in ignored + kept if not _matches(x, seen["ignore_patterns"])] == kept


def _matches(name, patterns):
    return any(Path(name).match(pattern) for pattern in patterns)
