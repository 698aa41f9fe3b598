"""Models that read images: the language model is pruned, all else is kept to the byte."""

import copy
import json
import shutil

import pytest
import torch

import prunus
from helpers.models import MODELS
from helpers.multimodal_models import FAMILIES, IMAGE, TEXT_IDS, build, sample
from prunus.base.errors import CalibrationError, InputError, UnsupportedModelError
from prunus.judge.verify import verify
from prunus.model.blocks import find_beside, find_blocks
from prunus.model.replay import hidden_of, record, trace
from prunus.storage.checkpoint import read_tensors
from prunus.storage.kinds import class_at
from prunus.storage.shards import check_shards


def samples(family):
    return [sample(family, 0), sample(family, 1, before=7, after=12)]


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def in_files(folder):
    return dict(read_tensors(check_shards(folder)))


def saved(family, folder, dtype=torch.float32):
    model = build(family, dtype)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "llama" / file, folder)
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_language_model_is_pruned_and_the_towers_are_kept_to_the_byte(family, tmp_path):
    model, inputs = saved(family, tmp_path / "dense"), samples(family)
    run = {"method": "wanda", "inputs": inputs, "min_tokens": 8}
    report = prunus.prune(tmp_path / "dense", output=tmp_path / "out", **run).report
    prunus.prune(held := copy.deepcopy(model), **run)
    loaded = class_at(tmp_path / "out").from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is type(model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert torch.allclose(logits(loaded, inputs[0]), logits(held, inputs[0]), atol=1e-6)
    assert 0.49 < report.sparsity <= 0.5
    assert all(
        layer.name.startswith(list(find_blocks(model))[layer.block]) for layer in report.layers
    )
    # By the images, not by the text around them alone:
    other = {**inputs[0], "pixel_values": -3 * inputs[0]["pixel_values"]}
    assert not torch.equal(logits(loaded, other), logits(loaded, inputs[0]))
    # All that is no layer of a block:
    dense, state = model.state_dict(), loaded.state_dict()
    pruned = {layer.parameter for layer in report.layers}
    assert dense.keys() == state.keys()
    assert pruned <= state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, dense[name]) == (name not in pruned), name
    before, after = in_files(tmp_path / "dense"), in_files(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[x].dtype == after[x].dtype for x in before)
    kept = [p for name in find_beside(model) for p in model.get_submodule(name).parameters()]
    assert report.coverage.kept == sum(p.numel() for p in kept) > 0
    assert f"kept as they are: {find_beside(model)[0]}" in str(report.coverage)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_nothing_pruned_is_nothing_changed(family, tmp_path):
    model = saved(family, tmp_path / "dense")
    run = {"method": "magnitude", "sparsity": 0.0}
    prunus.prune(tmp_path / "dense", output=tmp_path / "out", **run)
    loaded = class_at(tmp_path / "out").from_pretrained(tmp_path / "out").eval()
    for inputs in ({"input_ids": TEXT_IDS}, *samples(family)):
        assert torch.allclose(logits(loaded, inputs), logits(model, inputs), atol=1e-6)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl", "qwen3_vl"])
@torch.no_grad()
def test_samples_go_through_the_blocks_as_in_the_models_own_forward(family):
    """Positions of images, attention between their tokens, and what is added between blocks."""
    model, inputs = build(family), samples(family)
    blocks = find_blocks(model)
    recording = record(model, blocks, inputs, trace(model, blocks, inputs[0]))
    for index, block in enumerate(blocks.values()):
        recording.advance(index, block, torch.device("cpu"))
    for found, given in zip(recording.hidden, inputs, strict=True):
        torch.testing.assert_close(found, hidden_of(trace(model, blocks, given).outputs[-1]))


def test_what_is_added_between_blocks_is_of_the_sample_and_only_of_images():
    model, inputs = build("qwen3_vl"), samples("qwen3_vl")
    blocks = find_blocks(model)
    calls = record(model, blocks, [*inputs, TEXT_IDS[:1]], trace(model, blocks, inputs[0])).calls
    for call, given in zip(calls[0], inputs, strict=False):
        rows_T = call.added[0].any(-1)
        assert torch.equal(rows_T, given["input_ids"][0] == IMAGE)
    assert calls[0][2].added is None
    assert all(call.added is None for call in calls[1])


def test_statistics_are_those_of_texts_and_images():
    """Wanda's score of one layer, by a literal loop over all positions of both samples."""
    model, inputs, seen = build("qwen2_vl"), samples("qwen2_vl"), []
    layer = model.model.language_model.layers[0].self_attn.q_proj
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for given in inputs:
        logits(model, given)
    hook.remove()
    rows_TI = torch.cat(seen).tolist()
    assert len(rows_TI) == sum(given["input_ids"].shape[1] for given in inputs)
    square_I = [sum(row[i] ** 2 for row in rows_TI) for i in range(len(rows_TI[0]))]
    dense_OI = layer.weight.detach().tolist()
    prunus.prune(model, method="wanda", inputs=inputs)
    for dense_I, kept_I in zip(dense_OI, (layer.weight != 0).tolist(), strict=True):
        scores = [abs(w) * s**0.5 for w, s in zip(dense_I, square_I, strict=True)]
        order = sorted(range(len(scores)), key=scores.__getitem__)
        assert [kept_I[i] for i in order] == [False] * 32 + [True] * 32


@pytest.mark.parametrize("family", ["qwen3_5", "llava"])
@pytest.mark.reload
def test_every_command_takes_such_a_folder(family, tmp_path, monkeypatch):
    """Qwen 3.5's model type is that of a text-only class too, which would drop the tower."""
    dense, out, inputs = tmp_path / "dense", tmp_path / "out", samples(family)
    model = saved(family, dense, torch.bfloat16)
    run = {"method": "wanda", "pattern": "2:4", "calibration": "builtin", "samples": 2}
    plan = prunus.plan(dense, length=32, **run)
    assert "others outside of blocks" in [kind.kind for kind in plan.kinds]
    result = prunus.prune(dense, output=out, length=32, **run)
    assert result.verification.ok
    assert "fresh process" in result.verification.checks[-1]
    monkeypatch.undo()  # no fresh process for the integers
    assert verify(out, source=dense, reload=False).ok
    loaded = prunus.load(out)
    assert type(loaded) is type(model)
    assert loaded.dtype == torch.bfloat16
    assert bool(logits(loaded, inputs[0]).isfinite().all())
    assert prunus.evaluate(out, length=32, windows=2).perplexity > 1
    small = prunus.quantize(out, group=32, output=tmp_path / "small", calibration="none",
                            scales=False, clip=False)  # fmt: skip
    assert small.verification.ok
    card = (out / "README.md").read_text()
    assert "import AutoModelForImageTextToText" in card
    assert "kept as they are" in card
    assert "pipeline_tag: image-text-to-text" in card


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_heads_and_neurons_go_from_the_language_model_alone(family, tmp_path):
    """Gemma 3's config can say the new widths; that of Qwen 2.5 has no width of a head."""
    model = saved(family, tmp_path / "dense")
    run = {"method": "wanda-sp", "sparsity": 0.5, "tokens_ST": TEXT_IDS}
    result = prunus.prune(tmp_path / "dense", output=tmp_path / "out", **run)
    assert result.verification.ok
    loads = result.report.structured.loads_with
    if family == "gemma3":
        assert loads == "AutoModelForCausalLM"
        text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
        assert (text["num_key_value_heads"], text["intermediate_size"]) == (1, 48)
        loaded = class_at(tmp_path / "out").from_pretrained(tmp_path / "out").eval()
    else:
        assert loads.startswith("prunus.load")
        loaded = prunus.load(tmp_path / "out")
    assert type(loaded) is type(model)
    assert loaded.model.language_model.layers[1].mlp.down_proj.weight.shape == (64, 48)
    for given in samples(family):
        assert bool(logits(loaded, given).isfinite().all())
    state, blocks = loaded.state_dict(), tuple(find_blocks(model))
    for name, tensor in model.state_dict().items():
        assert name.startswith(blocks) or torch.equal(state[name], tensor)


def test_inputs_that_cannot_be_used_say_so():
    model, good = build("qwen2_vl"), sample("qwen2_vl")
    pad = {**good, "attention_mask": torch.zeros_like(good["input_ids"])}
    many = {**good, "input_ids": torch.ones(2, 8, dtype=torch.int64)}
    for inputs, said in (
        (good, "a list of what the processor returns"),
        ([], "at least one sample"),
        ([good, "text"], r"inputs\[1\] needs input_ids .*no mapping but str"),
        ([{"pixel_values": torch.ones(1)}], r"got NoneType. Process"),
        ([many], r"got \(2, 8\)"),
        ([pad], r"inputs\[0\] is padded"),
        ([{"input_ids": torch.tensor([[1, 999]])}], "Token id 999 is outside"),
    ):
        with pytest.raises(CalibrationError, match=said):
            prunus.prune(model, method="wanda", inputs=inputs)
    with pytest.raises(InputError, match="not both"):
        prunus.prune(model, method="wanda", inputs=[good], tokens_ST=TEXT_IDS)
    with pytest.raises(InputError, match="in windows of one length"):
        prunus.prune(model, method="llm-pruner", inputs=[good])


def test_a_fold_of_a_stream_that_a_projector_writes_to_is_refused():
    run = {"method": "wanda", "pattern": "2:4", "tokens_ST": TEXT_IDS}
    with pytest.raises(UnsupportedModelError, match=r"model\.multi_modal_projector also writes"):
        prunus.prune(build("llava"), permutation="fold", **run)
    assert prunus.prune(build("llava"), permutation="gather", **run).report.sparsity == 0.5


def test_the_samples_are_recorded_by_what_they_hold(tmp_path):
    model, inputs = build("llava"), samples("llava")
    first = prunus.prune(copy.deepcopy(model), method="wanda", inputs=inputs).report.protocol
    again = prunus.prune(copy.deepcopy(model), method="wanda", inputs=inputs).report.protocol
    assert first == again
    assert first.samples == 2
    assert first.source == "inputs given (attention_mask, input_ids, pixel_values)"
    inputs[1]["pixel_values"][0, 0, 0, 0] += 1
    other = prunus.prune(model, method="wanda", inputs=inputs).report.protocol
    assert other.sha256 != first.sha256
