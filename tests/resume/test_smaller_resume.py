"""Fewer heads and neurons in weights that stay on disk, and in runs that end too early."""

import json
import os

import pytest
import torch

import prunus
from helpers.models import MODELS, load_tiny
from helpers.pairs import each
from helpers.runs import FAST, Ends, end, same, tensors
from prunus.base.errors import CheckpointError, InputError
from prunus.base.team import ALONE
from prunus.maths.shares.units import Quota
from prunus.model.inspect import inspect
from prunus.run.observer import Silent
from prunus.run.units_loop import Seen, prune_units
from prunus.run.units_notes import noted, take_up
from prunus.run.walk import taken_up
from prunus.storage.journal import Journal, unfinished

LATE = {"heads.threshold": 0.6, "target": "heads"}


def widths(folder):
    path = folder / "widths.json"
    return json.loads(path.read_text()) if path.exists() else None


RUNS = [
    {"method": "goa", "recovery": "both"},
    {"method": "goa", "recovery": "after", "blocks": "1:3"},
    {"method": "goa", "settings": LATE, "sparsity": 0.5},
    {"method": "flap"},
    {"method": "wanda-sp", "allocation": "adaptive"},
    {"method": "llm-pruner"},
    {"method": "random"},
    {
        "method": "goa",
        "recovery": "both",
        "recovery_text": "builtin",
        "recovery_samples": 5,
        "settings": {"recovery_target": "stream", "recovery_behind": True},
        "blocks": "0:2",
    },
    {"method": "goa", "settings": {"query_heads": True}},
    {"method": "llm-pruner", "settings": {"heads.order": "mixed", "neurons.order": "second"}},
]


@pytest.mark.parametrize(("run", "model"), each(RUNS, ["llama", "gpt2"]))
def test_streamed_is_in_memory_bit_for_bit(model, run, tmp_path):
    run = {"sparsity": 0.4, **FAST, **run}
    streamed = prunus.prune(MODELS / model, output=tmp_path / "streamed", **run)
    held, tokenizer = load_tiny(model)
    result = prunus.prune(held, tokenizer=tokenizer, output=tmp_path / "held", **run)
    first, second = tensors(tmp_path / "streamed"), tensors(tmp_path / "held")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert widths(tmp_path / "streamed") == widths(tmp_path / "held")
    configs = [json.loads((tmp_path / x / "config.json").read_text()) for x in ("streamed", "held")]
    assert configs[0] == configs[1]
    assert streamed.report.structured == result.report.structured
    assert streamed.verification.ok
    ids = torch.arange(24)[None]
    with torch.no_grad():
        assert torch.equal(streamed.model(input_ids=ids).logits, held(input_ids=ids).logits)


def test_one_block_is_in_memory_while_it_becomes_smaller(tmp_path, monkeypatch):
    seen = []

    class Counts(Silent):
        def block(self, index, total, name, step):
            blocks = model[0].model.layers
            here = [i for i, b in enumerate(blocks) if not all(p.is_meta for p in b.parameters())]
            seen.append((index, here))

    model = []

    def spied(context, *args):
        model.append(context.model)
        return prune_units(context, *args)

    monkeypatch.setattr("prunus.run.units_run.prune_units", spied)
    run = {"method": "goa", "recovery": "after", **FAST}
    prunus.prune(MODELS / "llama", output=tmp_path / "out", observer=Counts(), **run)
    assert {index for index, _ in seen} == {0, 1, 2}
    assert all(here == [index] for index, here in seen)


@pytest.mark.parametrize(("run", "done"), each(RUNS, [1, 2]))
def test_every_kind_of_run_resumes(run, done, tmp_path):
    """Law 1. What the ended run had done is not done again."""
    run = {"sparsity": 0.4, **FAST, **run}
    prunus.prune(MODELS / "llama", output=tmp_path / "whole", **run)
    index = min(done + int(run.get("blocks", "0")[0]), 2)
    done = index - int(run.get("blocks", "0")[0])
    observer = end(tmp_path / "out", index, "prune", **run)
    assert observer.said[-1] == f"{done} of 3 blocks are done and kept; --resume goes on from there"
    watcher = Ends(-1, "")
    result = prunus.prune(
        MODELS / "llama", output=tmp_path / "out", resume=True, observer=watcher, **run
    )
    assert f"resuming after {done} block{'s' * (done != 1)}" in watcher.said
    assert {i for i, step in watcher.steps if step == "prune"} == set(range(index, 3))
    same(tmp_path / "whole", tmp_path / "out")
    assert widths(tmp_path / "whole") == widths(tmp_path / "out")
    assert result.verification.ok
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_what_the_diary_says_of_a_block_comes_back_to_the_last_digit(tmp_path):
    """A report rounds divergences to four digits; one in float32 would round elsewhere."""
    model, _ = load_tiny("llama")
    block, _ = inspect(model, torch.arange(24)[None])
    quota = Quota((), 0.4, {(0, "heads"): 1, (0, "neurons"): 7, (1, "heads"): 2})
    seen = Seen(numbers={0: {"self_attn.num_heads": 2}})
    seen.divergences[0] = torch.rand(4, 4, dtype=torch.float64)
    journal = Journal.open(tmp_path / "out", {"a": 1}, False, print)
    journal.write(block[0], [], {}, noted(block[0], seen, quota))
    journal.close()
    again = Journal.open(tmp_path / "out", {"a": 1}, True, print)
    found, counts = Seen(), Quota((), 0.4, {})
    reports, line = taken_up(block[0], again, ALONE)
    take_up(block[0], line, found, counts)
    assert reports == []
    assert taken_up(block[1], again, ALONE) is None
    again.close()
    assert torch.equal(found.divergences[0], seen.divergences[0])
    assert found.numbers == seen.numbers
    assert counts.counts == {(0, "heads"): 1, (0, "neurons"): 7}


def test_a_resumed_model_in_memory_can_be_trained_as_a_whole(tmp_path):
    """LLM-Pruner's is held; and its tokenizer is copied also where token ids are given."""
    run = {"method": "llm-pruner", "tokens_ST": torch.arange(96).reshape(2, 48)}
    end(tmp_path / "out", 2, "prune", **run)
    result = prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)
    assert result.held is not None
    assert all(p.requires_grad for p in result.model.parameters())
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_a_damaged_block_and_another_run_are_refused(tmp_path):
    run = {"method": "goa", **FAST}
    end(tmp_path / "out", 2, "prune", **run)
    with pytest.raises(InputError, match=r"its recipe recovery was None, now it is 'after'"):
        prunus.prune(
            MODELS / "llama", output=tmp_path / "out", resume=True, recovery="after", **run
        )
    shard = unfinished(tmp_path / "out") / "block-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"block-00001\.safetensors is damaged"):
        prunus.prune(MODELS / "llama", output=tmp_path / "out", resume=True, **run)


def test_a_threshold_below_all_heads_leaves_nothing_behind(tmp_path):
    settings = {"heads.threshold": 1e-6, "target": "heads"}
    with pytest.raises(InputError, match="nothing was removed"):
        prunus.prune(
            MODELS / "llama", method="goa", output=tmp_path / "out", settings=settings, **FAST
        )
    assert os.listdir(tmp_path) == []
