"""Blocks that are reconstructed together: targets, streams, reports, runs that end early."""

import pytest
import torch

import prunus
from helpers.models import MODELS, load_tiny
from helpers.random_models import FAMILIES, IDS, MIXTURES, build
from helpers.runs import Counts, Ends, same
from prunus.judge.verify import verify
from prunus.report.plots import part_name
from prunus.run import reconstruct
from prunus.run.observer import Silent
from prunus.run.reconstruct import Reconstructor
from prunus.storage.journal import Journal, unfinished

LLAMA = MODELS / "llama"
TOKENS = torch.randint(0, 500, (4, 32), generator=torch.Generator().manual_seed(3))
TWO = {"reconstruct.blocks": 2, "reconstruct.steps": 6}
WITH_NORMS = {"settings": {**TWO, "reconstruct.norms": True}, "pattern": "2:4",
              "permutation": "gather"}  # fmt: skip
LEARNED = {"method": "besa", "refine": "swaps", "update": "least-squares",
           "settings": {**TWO, "reconstruct.blocks": 3, "allocation.granularity": "two-blocks",
                        "allocation.steps": 6}}  # fmt: skip


def pruned(model=LLAMA, **run):
    own = {"method": "wanda", "reconstruct": "block", "tokens_ST": TOKENS, "settings": TWO}
    return prunus.prune(model, **{**own, **run})


def behind(model, block, ids=TOKENS):
    """What comes out of a block."""
    seen = []
    layer = model.model.layers[block]
    handle = layer.register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        model(ids)
    handle.remove()
    return seen[0] if torch.is_tensor(seen[0]) else seen[0][0]


@pytest.mark.parametrize("reference", ["dense", "pruned"])
def test_targets_are_behind_the_last_block_and_the_stream_goes_on_from_new_weights(
    reference, monkeypatch
):
    seen, aim = {}, Reconstructor.aim

    def note(self, unit, plan, idle):
        aim(self, unit, plan, idle)
        targets = self._targets.get("block") or self.reference.hidden
        seen[unit[-1].index] = torch.cat([x.clone() for x in targets])
        seen["given", unit[-1].index] = torch.cat([x.clone() for x in self.recording.hidden])

    monkeypatch.setattr(Reconstructor, "aim", note)
    dense = load_tiny("llama")[0]
    new = pruned(load_tiny("llama")[0], settings={**TWO, "reconstruct.reference": reference}).model
    torch.testing.assert_close(seen[1], behind(dense, 1))
    torch.testing.assert_close(seen["given", 2], behind(new, 1))
    if reference == "dense":
        torch.testing.assert_close(seen[2], behind(dense, 2))
    else:
        new.model.layers[2].load_state_dict(dense.model.layers[2].state_dict())
        torch.testing.assert_close(seen[2], behind(new, 2))


def test_all_of_them_learn_and_zeros_stay(tmp_path):
    out = tmp_path / "out"
    result = pruned(output=out, settings={**TWO, "reconstruct.norms": True})
    plain = prunus.prune(load_tiny("llama")[0], method="wanda", tokens_ST=TOKENS)
    alone = pruned(load_tiny("llama")[0], settings={"reconstruct.steps": 6})
    assert [part["blocks"] for part in result.report.reconstructed] == [[0, 1], [2]]
    assert [part_name(part) for part in result.report.reconstructed] == ["blocks 0 to 1", "block 2"]
    assert all(min(part["held"]) < 1 for part in result.report.reconstructed)
    for old, layer in zip(plain.report.layers, result.report.layers, strict=True):
        weight = result.model.get_parameter(layer.parameter)
        before = plain.model.get_parameter(layer.parameter)
        assert layer.sparsity == old.sparsity == float((weight == 0).float().mean())
        assert layer.updated
        if layer.block < 2:  # its mask saw no new weight
            assert torch.equal(weight == 0, before == 0)
        assert not torch.equal(weight, alone.model.get_parameter(layer.parameter))
    for block in range(2):
        name = f"model.layers.{block}.input_layernorm.weight"
        assert not torch.equal(result.model.get_parameter(name), plain.model.get_parameter(name))
    assert verify(out, source=LLAMA).ok


def test_a_block_that_is_left_dense_stays_as_it_is():
    dense = load_tiny("llama")[0]
    result = pruned(
        load_tiny("llama")[0], skip_blocks="1:2", settings={**TWO, "reconstruct.norms": True}
    )
    assert [part["blocks"] for part in result.report.reconstructed] == [[0, 1], [2]]
    for name, weight in dense.model.layers[1].named_parameters():
        assert torch.equal(result.model.model.layers[1].get_parameter(name), weight)


@pytest.mark.parametrize("family", ["gemma4_text", "mixtral", "mamba"])
def test_families(family):
    model = build(family, {**MIXTURES, **FAMILIES}[family])
    report = pruned(model, tokens_ST=IDS[:, :24].repeat(4, 1)).report
    assert report.held_out_loss < 1
    assert all(layer.updated for layer in report.layers if layer.sparsity < 1)


def test_later_blocks_read_keys_and_values_of_the_new_weights(monkeypatch):
    """The last two of these four blocks have none of their own, and read those of the first two."""
    seen, aim = [], Reconstructor.aim

    def note(self, unit, plan, idle):
        aim(self, unit, plan, idle)
        seen.append(torch.cat([x.clone() for x in self._targets["block"]]))

    monkeypatch.setattr(Reconstructor, "aim", note)
    dense, ids = build("gemma4_text", FAMILIES["gemma4_text"]), IDS[:, :24].repeat(4, 1)
    new = build("gemma4_text", FAMILIES["gemma4_text"])
    pruned(new, tokens_ST=ids, settings={**TWO, "reconstruct.reference": "pruned"})
    for block in (2, 3):
        new.model.layers[block].load_state_dict(dense.model.layers[block].state_dict())
    torch.testing.assert_close(seen[0], behind(dense, 1, ids))
    torch.testing.assert_close(seen[1], behind(new, 3, ids))


class Writes(Silent):
    """Ends a run between the writing of a unit's blocks."""

    def __init__(self, monkeypatch, index):
        def write(journal, block, *rest):
            if block.index == index:
                raise KeyboardInterrupt
            before(journal, block, *rest)

        before = Journal.write
        monkeypatch.setattr(Journal, "write", write)


@pytest.mark.parametrize(("run", "last"), [(WITH_NORMS, 1), (LEARNED, 2)], ids=["norms", "besa"])
@pytest.mark.parametrize("end", ["second block", "step", "written", "behind"])
def test_a_run_that_ended_within_a_unit_goes_on_to_the_same_bytes(
    run, last, end, tmp_path, monkeypatch
):
    monkeypatch.setattr(reconstruct, "SAVE", 0.0)
    monkeypatch.setattr(reconstruct, "RARELY", 0)
    pruned(output=tmp_path / "whole", **run)
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        observer = {
            "second block": lambda: Ends(1, "prune"),
            "step": lambda: Counts(last, 4),
            "written": lambda: Writes(patched, 1),
            "behind": lambda: Ends(2, "prune"),
        }[end]()
        with pytest.raises(KeyboardInterrupt):
            pruned(output=out, observer=observer, **run)
    states = [x.name for x in unfinished(out).glob("descent-*")]
    assert bool(states) == (end == "step"), states
    pruned(output=out, resume=True, **run)
    same(tmp_path / "whole", out)
