"""Two checkpoints side by side: what is the same is called the same, and each change is named."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError, UnsupportedModelError
from prunus.cli.main import app
from prunus.judge.changes import count
from prunus.judge.diff import diff
from prunus.judge.tensor_kinds import block_of, kinds_of
from prunus.maths.patterns import NM, Unstructured

WEIGHTS = "model.safetensors"
LLAMA = MODELS / "llama"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"
DOWN = UP.replace("up", "down")


def edited(folder, change=lambda tensors: None, source=LLAMA, **fields):
    """A copy of a folder with other tensors and other fields of config.json."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors = change(tensors) or tensors
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def other(tmp_path):
    def make(change=lambda tensors: None, name="other", **more):
        return edited(tmp_path / name, change, **more)

    return make


def layers(tensors):
    """The names of the matrices in blocks; of Conv1D they are stored as (inputs, outputs)."""
    inside = [n for n, t in tensors.items() if t.ndim == 2 and block_of(n) is not None]
    return {name: ".c_" in name for name in inside}


def two_of_four(tensors):
    """Zeros in the 2:4 of the smallest weights."""
    for name, transposed in layers(tensors).items():
        weight_OI = tensors[name].T if transposed else tensors[name]
        mask = NM(2, 4).mask(weight_OI.abs(), 0.5)
        tensors[name] = tensors[name] * (mask.T if transposed else mask)


def updated(tensors):
    """The same zeros, and new values for the weights that are kept."""
    two_of_four(tensors)
    draw = torch.Generator().manual_seed(0)
    for name in layers(tensors):
        tensors[name] *= 1 + 0.1 * torch.randn(tensors[name].shape, generator=draw)


def folded(tensors):
    """The residual stream and the neurons of each MLP in random orders; then 2:4."""
    draw = torch.Generator().manual_seed(0)
    residual = torch.randperm(64, generator=draw)
    inner = [torch.randperm(160, generator=draw) for _ in range(3)]
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor = tensor[residual]
        elif tensor.ndim == 2:
            tensor = tensor[:, residual]
        else:
            tensor = tensor[residual]
        if "mlp" in name:
            order = inner[block_of(name)]
            tensor = tensor[:, order] if "down" in name else tensor[order]
        tensors[name] = tensor
    two_of_four(tensors)


def smaller(tensors):
    """The MLP of block 1 without 30 of its neurons."""
    kept = torch.arange(160)[torch.arange(160) % 16 > 2]
    for part in ("gate", "up"):
        name = UP.replace("up", part)
        tensors[name] = tensors[name][kept]
    tensors[DOWN] = tensors[DOWN][:, kept]


MADE = {"2:4": two_of_four, "updated": updated, "fold": folded, "smaller": smaller}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    root = tmp_path_factory.mktemp("pruned")
    for name, change in MADE.items():
        edited(root / name, change)
    edited(root / "gpt2", two_of_four, MODELS / "gpt2")
    return root


def kinds(found):
    return {group.label: group for group in found.grouped()}


def run(*arguments):
    return CliRunner().invoke(app, ["diff", *map(str, arguments)])


# The same model in other files.


def test_a_checkpoint_is_the_same_as_itself(family):
    found = diff(MODELS / family, MODELS / family)
    assert found.same
    assert found.same_weights
    assert not any((found.fields, found.files, found.added, found.removed))


def test_other_shards_are_the_same_model(tmp_path, other):
    folder = other()
    tensors, where = load_file(folder / WEIGHTS), {}
    (folder / WEIGHTS).unlink()
    for number, name in enumerate(tensors):
        file = f"part-{number % 3}.safetensors"
        where[name] = file
    for file in set(where.values()):
        save_file({n: tensors[n] for n, f in where.items() if f == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert diff(LLAMA, folder).same


def test_a_copy_of_tied_embeddings_is_the_same_and_another_head_is_not(other):
    def tied(tensors):
        tensors[HEAD] = tensors[EMBED].clone()

    def untied(tensors):
        tensors[HEAD] = tensors[EMBED] * 2

    copied = other(tied, name="tied")
    for found in (diff(LLAMA, copied), diff(copied, LLAMA)):
        assert found.names.copies == {HEAD: EMBED}
        assert found.same
    own = other(untied, name="untied", tie_word_embeddings=False)
    found = diff(LLAMA, own)
    assert [x.name for x in found.added] == [HEAD]
    assert not found.same_weights
    found = diff(own, LLAMA)
    assert [x.name for x in found.removed] == [HEAD]
    broken = other(name="broken", tie_word_embeddings=False)  # says so, and has no head
    assert [x.name for x in diff(copied, broken).removed] == [HEAD]


@pytest.mark.parametrize(("family", "method"), [("llama", "2:4"), ("gpt2", "gpt2")])
def test_packed_is_the_same_model_as_with_zeros(family, method, pruned, tmp_path):
    prunus.write_packed_checkpoint(pruned / method, tmp_path / "packed")
    found = diff(pruned / method, tmp_path / "packed")
    assert found.new.form == "packed"
    assert found.same, found.to_dict()
    dense = diff(MODELS / family, tmp_path / "packed")
    as_zeros = diff(MODELS / family, pruned / method)
    assert [vars(x.counts) for x in dense.tensors] == [vars(x.counts) for x in as_zeros.tensors]
    prunus.write_packed_checkpoint(pruned / method, tmp_path / "int8", values="int8")
    rounded = diff(pruned / method, tmp_path / "int8")
    assert ("F32", "int8") in rounded.other_dtypes
    assert rounded.whole.counts.new_zeros + rounded.whole.counts.returned < 100
    assert 0 < rounded.whole.counts.relative < 0.02


def test_a_gguf_is_compared_by_its_values(other, tmp_path):
    prunus.write_gguf(LLAMA, tmp_path / "model.gguf")
    found = diff(LLAMA, tmp_path / "model.gguf")
    assert found.same_weights
    assert found.files is None
    narrow = other(lambda tensors: {n: t.bfloat16() for n, t in tensors.items()}, dtype="bfloat16")
    assert kinds(diff(tmp_path / "model.gguf", narrow))["q_proj"].notes
    changed = other(lambda tensors: {**tensors, UP: -tensors[UP]}, name="negative")
    assert [
        x.name for x in diff(tmp_path / "model.gguf", changed).tensors if not x.same_values
    ] == [UP]


def test_other_dtypes_of_the_same_values_are_the_same_weights(other):
    narrow = other(lambda ts: {n: t.bfloat16() for n, t in ts.items()}, name="narrow")
    wide = other(lambda ts: {n: t.bfloat16().float() for n, t in ts.items()}, name="wide")
    for found in (diff(narrow, wide), diff(wide, narrow)):
        assert found.same_weights
        assert not found.same
    assert diff(narrow, wide).other_dtypes == {("BF16", "F32"): 29}
    found = diff(LLAMA, narrow)
    assert not found.same_weights
    assert kinds(found)["q_proj"].notes == {"rounded, F32 → BF16": 3}
    assert 0 < found.whole.counts.relative < 2**-8


# What changed in values.


def literally(new, old):
    """The counts, place by place, in Python's own float64."""
    pairs = list(zip(new.double().flatten().tolist(), old.double().flatten().tolist(), strict=True))
    kept = [(b, a) for b, a in pairs if b != 0 and a != 0]
    other = [(b, a) for b, a in kept if b != a and not (math.isnan(a) and math.isnan(b))]
    finite = [(b, a) for b, a in kept if math.isfinite(a) and math.isfinite(b)]
    return {
        "new_zeros": sum(b == 0 and a != 0 for b, a in pairs),
        "returned": sum(b != 0 and a == 0 for b, a in pairs),
        "kept": len(kept),
        "changed": len(other),
        "change_squares": math.fsum((b - a) ** 2 for b, a in finite),
        "squares": math.fsum(a * a for _, a in finite),
        "largest": max((abs(b - a) for b, a in finite), default=0.0),
    }


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float32"),
                                    ("float16", "bfloat16"), ("float64", "float32")])  # fmt: skip
def test_the_counts_are_those_of_a_loop_over_all_places(dtypes, monkeypatch):
    monkeypatch.setattr("prunus.judge.changes.CHUNK", 100)
    draw = torch.Generator().manual_seed(0)
    old = torch.randn(30, 40, generator=draw)
    new = old + 0.1 * torch.randn(30, 40, generator=draw) * (
        torch.rand(30, 40, generator=draw) < 0.3
    )
    for tensor in (old, new):
        tensor[torch.rand(30, 40, generator=draw) < 0.4] = 0
    old[0, 0] = new[0, 0] = math.nan
    old[0, 1], new[0, 1] = 1, math.nan
    old[0, 2] = new[0, 2] = math.inf
    old[0, 3], new[0, 3] = 1, -math.inf
    new[0, 4] = -0.0
    new, old = (x.to(getattr(torch, d)) for x, d in zip((new, old), dtypes, strict=True))
    found = count(new, old)
    for name, value in literally(new, old).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12), name


def test_a_pruned_model_shows_new_zeros_and_untouched_values(pruned):
    found = diff(LLAMA, pruned / "2:4")
    old, new = load_file(LLAMA / WEIGHTS), load_file(pruned / "2:4" / WEIGHTS)
    for group in found.grouped():
        own = [n for n in new if n.split(".")[-2] == group.label]
        zeros = sum(int((new[n] == 0).sum()) for n in own)
        assert group.tensors == len(own), group.label
        assert group.zeros[1] == zeros
        assert group.counts.new_zeros == sum(
            int(((new[n] == 0) & (old[n] != 0)).sum()) for n in own
        )
        assert group.counts.changed == group.counts.returned == 0
        matrix = group.label.endswith("_proj")
        assert group.patterns[1] == (
            {"2:4": 3} if matrix else {"dense": 1} if "embed" in group.label else {}
        )
    assert len(kinds(found)) == 11
    assert [g.label for g in found.grouped(blocks=True) if g.label.endswith("q_proj")] == [
        f"{block} q_proj" for block in range(3)
    ]
    back = diff(pruned / "2:4", LLAMA).whole.counts
    assert back.returned == found.whole.counts.new_zeros
    assert back.new_zeros == 0


def test_an_update_shows_how_far_kept_values_moved(pruned):
    found = kinds(diff(LLAMA, pruned / "updated"))["down_proj"]
    old, new = load_file(LLAMA / WEIGHTS), load_file(pruned / "updated" / WEIGHTS)
    names = [n for n in new if "down_proj" in n]
    kept = {n: new[n] != 0 for n in names}
    change = torch.cat([(new[n] - old[n])[kept[n]].double() for n in names])
    assert found.counts.relative == pytest.approx(
        float(change.norm() / torch.cat([old[n][kept[n]].double() for n in names]).norm()), rel=1e-6
    )
    assert found.counts.largest == pytest.approx(float(change.abs().max()), rel=1e-6)
    assert found.counts.changed == int((change != 0).sum())
    assert not any("order" in note for note in found.notes)


def test_patterns_may_differ_between_kinds_and_run_along_either_axis(other):
    wanted = {
        "q_proj": "2:4", "k_proj": "1:4:output", "v_proj": "5:8", "o_proj": "row",
        "gate_proj": "layer", "up_proj": "dense", "down_proj": "8:16:output",
    }  # fmt: skip

    def prune(tensors):
        for name, tensor in tensors.items():
            kind = name.split(".")[-2]
            if kind not in wanted or kind == "up_proj":
                continue
            text = wanted[kind]
            if text in ("row", "layer"):
                mask = Unstructured(text).mask(tensor.abs(), 0.6)
            else:
                n, m, *along = text.split(":")
                made = NM(int(n), int(m), along[0] if along else "input")
                mask = made.mask(tensor.abs(), made.sparsity)
            tensors[name] = tensor * mask

    found = kinds(diff(LLAMA, other(prune)))
    assert {kind: found[kind].patterns[1] for kind in wanted} == {
        kind: {pattern: 3} for kind, pattern in wanted.items()
    }


def test_conv1d_has_its_pattern_along_the_axis_that_it_multiplies(pruned):
    found = kinds(diff(MODELS / "gpt2", pruned / "gpt2"))
    shown = {kind: group.patterns[1] for kind, group in found.items() if group.zeros[1]}
    matrices = ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
    assert shown == {kind: {"2:4": 3} for kind in matrices}


def test_nan_is_seen(other):
    def spoil(tensors):
        tensors[UP][0, :3] = torch.tensor([math.nan, math.inf, -math.inf])

    folder = other(spoil)
    assert diff(LLAMA, folder).whole.nonfinite == [0, 3]
    assert "B holds NaN or inf: 3 values" in run(LLAMA, folder).stdout
    assert diff(folder, folder).same


# What changed in names, shapes and orders.


def test_a_prefix_of_all_names_is_no_change(other):
    bare = other(
        lambda ts: {n.removeprefix("transformer."): t for n, t in ts.items()},
        source=MODELS / "gpt2",
    )
    for found in (diff(MODELS / "gpt2", bare), diff(bare, MODELS / "gpt2")):
        assert found.names.prefix == "transformer."
        assert found.same


def test_renamed_tensors_are_found_by_their_values(other, pruned):
    def rename(tensors):
        return {n.replace("self_attn", "attention"): t for n, t in tensors.items()}

    found = diff(LLAMA, other(rename, source=pruned / "2:4"))
    assert found.names.renamed == {
        f"model.layers.{i}.attention.{x}_proj.weight": f"model.layers.{i}.self_attn.{x}_proj.weight"
        for i in range(3)
        for x in "qkvo"
    }
    assert not any((found.added, found.removed))
    assert kinds(found)["q_proj"].patterns[1] == {"2:4": 3}
    other_values = other(
        lambda ts: {n.replace("q_proj", "query"): t + ("q_proj" in n) for n, t in ts.items()},
        name="unlike",
    )
    found = diff(LLAMA, other_values)
    assert not found.names.renamed
    assert [x.name.split(".")[-2] for x in found.added] == ["query"] * 3


def test_a_smaller_model_shows_what_went(pruned):
    expected = {UP: "rows", UP.replace("up", "gate"): "rows", DOWN: "columns"}
    found = diff(LLAMA, pruned / "smaller")
    shrunk = {x.name: x.shape_note for x in found.tensors if x.shape_note}
    assert shrunk == {n: f"without 30 {axis}, the rest as it was" for n, axis in expected.items()}
    assert {x.name for x in found.tensors if not x.same_values} == expected.keys()
    assert all(x.counts is None for x in found.tensors if x.shape_note)
    assert not found.same_weights


def test_other_shapes_of_the_same_values(other):
    def turn(tensors):
        tensors[UP] = tensors[UP].T
        name = UP.replace("up", "gate")
        tensors[name] = tensors[name].reshape(80, 128)
        name = DOWN
        tensors[name] = torch.randn(3, 4)

    notes = {x.name: x.shape_note for x in diff(LLAMA, other(turn)).tensors if x.shape_note}
    assert notes == {
        UP: "transposed",
        UP.replace("up", "gate"): "the same values in another shape",
        DOWN: "other values or sizes",
    }


def test_channels_in_another_order_are_shown_and_undone(pruned):
    found = diff(LLAMA, pruned / "fold")
    for group in found.grouped():
        assert group.differing == group.tensors, group.label
        assert group.counts.changed == 0, group.label
        assert sum(n for note, n in group.notes.items() if "order" in note) == group.tensors
    zeros = sum(int((t == 0).sum()) for t in load_file(pruned / "fold" / WEIGHTS).values())
    assert found.whole.counts.new_zeros == zeros


def test_an_order_is_said_only_of_values_that_are_the_same(other):
    draw = torch.Generator().manual_seed(0)

    def shuffle(tensors):
        flat = tensors[UP].reshape(-1)
        tensors[UP] = flat[torch.randperm(len(flat), generator=draw)].reshape(tensors[UP].shape)
        tensors[DOWN] = tensors[DOWN][:, torch.randperm(160, generator=draw)]
        tensors[DOWN][tensors[DOWN][:, 0].abs().argmin(), 0] *= 1.5  # not by what it is looked for

    found = {x.name: x for x in diff(LLAMA, other(shuffle)).tensors if not x.same_values}
    assert found.keys() == {UP, DOWN}
    assert not any(x.order for x in found.values())


# Config, files, messages.


def test_fields_and_files_that_differ_are_named(other):
    folder = other(rope_parameters={"rope_theta": 5.0, "rope_type": "default"}, extra=1)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "README.md").write_text("new")
    (folder / "modeling_own.py").write_text("print()")
    (folder / "generation_config.json").unlink()
    found = diff(LLAMA, folder)
    assert {(x.name, x.old, x.new) for x in found.fields} == {
        ("rope_parameters.rope_theta", 10000.0, 5.0), ("extra", None, 1)
    }  # fmt: skip
    assert {(x.name, x.change, x.kind, x.counts) for x in found.files} == {
        ("README.md", "added", "note", False),
        ("generation_config.json", "removed", "other", True),
        ("modeling_own.py", "added", "other", True),
        ("tokenizer.json", "rewritten", "tokenizer", False),
        ("tokenizer_config.json", "changed", "tokenizer", True),
    }
    assert found.same_weights
    assert not found.same


def test_the_command_says_it_in_a_table_or_as_json(pruned):
    same = run(LLAMA, LLAMA)
    assert same.exit_code == 0
    assert "The same model." in same.stdout
    result = run(LLAMA, pruned / "2:4")
    assert result.exit_code == 1
    assert "21 of 29 tensors differ." in result.stdout
    assert "bit-identical" in result.stdout
    said = json.loads(run(LLAMA, pruned / "2:4", "--json", "--blocks", "--tensors").stdout)
    assert said["same"] is said["same_weights"] is False
    assert len(said["tensors"]) == 29
    assert {x["label"] for x in said["kinds"]} >= {"q_proj", "embed_tokens"}
    assert sum(x["counts"]["new_zeros"] for x in said["blocks"]) == sum(
        x["counts"]["new_zeros"] for x in said["tensors"]
    )


def test_bad_input_gets_one_sentence_and_exit_code_2(other, tmp_path):
    cut = other(name="cut")
    whole = (cut / WEIGHTS).read_bytes()
    (cut / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    bare = other(name="bare")
    (bare / WEIGHTS).unlink()
    for folder, error, message in [
        (cut, CheckpointError, "model.safetensors is damaged"),
        (adapter, UnsupportedModelError, r"holds an adapter \(LORA of org/base\). Merge it"),
        (bare, CheckpointError, "has no model.safetensors"),
        (tmp_path / "none", CheckpointError, "does not exist"),
        (tmp_path, CheckpointError, "holds no checkpoint"),
    ]:
        for pair in ((LLAMA, folder), (folder, LLAMA)):
            with pytest.raises(error, match=message):
                diff(*pair)
    result = run(LLAMA, adapter)
    assert result.exit_code == 2
    assert "Merge it into org/base" in result.stderr


def test_kinds_are_as_short_as_they_are_clear():
    names = [
        "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.mlp.experts.7.down_proj.weight", "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.experts.gate_up_proj", "model.norm.weight", "lm_head.weight",
    ]  # fmt: skip
    assert list(kinds_of(names).values()) == [
        "q_proj", "q_proj.bias", "experts.down_proj", "mlp.down_proj", "gate_up_proj", "norm",
        "lm_head",
    ]  # fmt: skip
