"""Each kind of entry on a tiny model, against plain loops or the library's own calls."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import InputError
from prunus.cli.main import app
from prunus.compare import Table
from prunus.compare.log import Run
from prunus.judge.cycles import simulate
from prunus.reproduce import Asked, find, measure, papers
from prunus.reproduce.activations import watched
from prunus.reproduce.depth import stream_errors
from prunus.reproduce.desk import Desk
from prunus.reproduce.made import connected
from prunus.reproduce.run import grid_of

LLAMA = str(MODELS / "llama")
SMALL = {"samples": 3, "length": 48, "windows": 2, "calibration": "builtin", "dtype": "float32"}


def asked(**others):
    return Asked(**{**SMALL, "texts": ("builtin",), **others})


def part(name, *rows, **changed):
    """An entry with some of its rows, their recipes changed, so that tests take no minutes."""
    entry = find(name)
    return entry.model_copy(update={"rows": {row: {**entry.rows[row], **changed} for row in rows}})


def ids_of(name="ria/figure-5", **others):
    wanted = asked(**others)
    return Desk(LLAMA, find(name), wanted).calibration()


def inputs_of(model, layer, ids_ST):
    """What goes into a layer, in float64, all tokens below each other."""
    found = []
    with layer.register_forward_pre_hook(lambda _, args: found.append(args[0].double())):
        for ids_T in ids_ST:
            with torch.no_grad():
                model(ids_T[None])
    return torch.cat([x.flatten(0, -2) for x in found])


def test_retained_degree_is_that_of_a_plain_loop(tmp_path):
    found = measure(find("ria/figure-5"), LLAMA, asked(output=tmp_path))
    model, _ = load_tiny("llama")
    layer = model.model.layers[1].mlp.down_proj
    inputs_TI = inputs_of(model, layer, ids_of())
    weight_OI = layer.weight.detach().double().abs()
    relative_OI = weight_OI / weight_OI.sum(0) + weight_OI / weight_OI.sum(1, keepdim=True)
    score_OI = relative_OI * inputs_TI.square().mean(0).sqrt() ** 0.5
    best = score_OI.flatten().sort(descending=True).values[: score_OI.numel() // 2].sum()
    groups = score_OI.view(len(score_OI), -1, 4).sort(-1, descending=True).values[..., :2].sum()
    rows = found.rows
    kept = [rows[f"mlp.down_proj, {x}"]["kept of the score"] for x in ("50 % of the layer", "2:4")]
    assert kept == pytest.approx([float(best / score_OI.sum()), float(groups / score_OI.sum())])
    assert kept[1] < rows["mlp.down_proj, 2:4, permuted"]["kept of the score"] < kept[0]
    assert len(rows) == 7 * 3
    assert found.files == [str(tmp_path / "retained_degree.png")]
    assert (tmp_path / "retained_degree.png").is_file()
    assert "samples: 3 (paper: 128)" in found.unlike


def test_errors_over_depth_are_those_of_the_hidden_states():
    dense, _ = load_tiny("llama")
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.model.layers[1].mlp.down_proj.weight.zero_()
    ids_NL = ids_of()
    found = stream_errors(dense, pruned, ids_NL)
    sums = torch.zeros(2, 3, dtype=torch.float64)
    for ids_L in ids_NL:
        with torch.no_grad():
            states = [m(ids_L[None], output_hidden_states=True) for m in (dense, pruned)]
        for block in (0, 1):  # behind the last, hidden states are normalised
            ours, theirs = (x.hidden_states[block + 1].double() for x in states)
            sums[0, block] += (ours - theirs).square().sum()
            sums[1, block] += ours.square().sum()
    assert found[0] == 0
    assert found[1] == pytest.approx(float(sums[0, 1] / sums[1, 1]))
    assert found[2] > 0


def test_block_errors_have_a_row_for_each_recipe():
    wanda, besa = part("besa/figure-5", "Layer (Wanda)"), {"allocation.steps": 3}
    entry = part("besa/figure-5", "Block (BESA)", settings=besa)
    entry = entry.model_copy(update={"rows": {**wanda.rows, **entry.rows}})
    found = measure(entry, LLAMA, asked(options={"windows": 2}))
    assert list(found.rows) == ["Layer (Wanda)", "Block (BESA)"]
    for row in found.rows.values():
        assert list(row) == ["block 0", "block 1", "block 2"]
        assert all(0 < error < 1 for error in row.values())
    alone = prunus.prune(
        LLAMA, method="wanda", sparsity=0.5, samples=3, length=48, calibration="builtin"
    )
    desk = Desk(LLAMA, find("besa/figure-5"), asked())
    expected = stream_errors(desk.dense, alone.model, desk.evaluation(2))
    assert list(found.rows["Layer (Wanda)"].values()) == pytest.approx(expected)


def test_one_kind_of_layer_is_pruned_and_put_back():
    found = measure(find("besa/figure-1b"), LLAMA, asked(options={"sparsities": [0.0, 0.5]}))
    model, tokenizer = load_tiny("llama")
    score = {"length": 48, "windows": 2, "tokenizer": tokenizer}
    dense = prunus.evaluate(model, "builtin", **score).perplexity
    assert len(found.rows) == 7
    assert all(row["0%"] == pytest.approx(dense) for row in found.rows.values())
    inputs = [inputs_of(model, b.mlp.up_proj, ids_of("besa/figure-1b")) for b in model.model.layers]
    for block, inputs_TI in zip(model.model.layers, inputs, strict=True):
        weight_OI = block.mlp.up_proj.weight.detach()
        score_OI = weight_OI.double().abs() * inputs_TI.square().sum(0).sqrt()
        for row, scores in zip(weight_OI, score_OI, strict=True):
            row[scores.argsort()[: len(row) // 2]] = 0
    expected = prunus.evaluate(model, "builtin", **score).perplexity
    assert found.rows["mlp.up_proj"]["50%"] == pytest.approx(expected, rel=1e-6)


def test_ranks_are_compared_between_texts(tmp_path):
    (tmp_path / "other.txt").write_text("1 + 1 = 2; 2 * 3 = 6. " * 200)
    texts = ["builtin", str(tmp_path / "other.txt")]
    found = measure(find("ria/figure-2"), LLAMA, asked(options={"texts": texts}))
    model, _ = load_tiny("llama")
    desk = Desk(LLAMA, find("ria/figure-2"), asked())
    coefficients = []
    for block in model.model.layers:
        ranks = []
        for text in texts:
            inputs_TI = inputs_of(model, block.mlp.down_proj, desk.calibration(text))
            ranks.append(inputs_TI.square().sum(0).argsort().argsort().double())
        coefficients.append(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
    row = found.rows["mlp.down_proj"]
    assert row[" and ".join(texts)] == pytest.approx(sum(coefficients) / 3)
    assert row["lowest, " + " and ".join(texts)] == pytest.approx(min(coefficients))
    with pytest.raises(InputError, match="two texts or more"):
        measure(find("ria/figure-2"), LLAMA, asked(options={"texts": ["builtin"]}))


def test_sizes_of_activations_are_those_of_the_hidden_states():
    found = measure(find("goa/figure-5"), LLAMA, asked())
    model, _ = load_tiny("llama")
    with torch.no_grad():
        states = [model(x[None], output_hidden_states=True).hidden_states for x in ids_of()]
    sizes = [float(torch.cat([x[block] for x in states]).abs().mean()) for block in range(3)]
    assert [row["mean |x|"] for row in found.rows.values()] == pytest.approx(
        [*sizes, sum(sizes) / 3]
    )


def test_heads_that_attend_alike(tmp_path):
    found = measure(find("goa/figure-3"), LLAMA, asked(output=tmp_path))
    desk = Desk(LLAMA, find("goa/figure-3"), asked())
    _, _, fields = next(desk.entry.cells())
    report = desk.prune(fields).report.structured
    for block in report.blocks:
        apart = [block.divergence[i][j] for i in range(4) for j in range(i + 1, 4)]
        row = found.rows[f"block {block.block}"]
        assert row["pairs below the threshold"] == sum(x < 0.2 for x in apart)
        assert row["closest pair"] == min(apart)
    assert (tmp_path / "heads.png").is_file()
    assert connected(5, [(0, 1), (2, 3), (1, 2)]) == [{4}, {0, 1, 2, 3}]


def test_cycles_are_those_of_the_checkpoint(tmp_path):
    found = measure(part("besa/table-4", "Wanda"), LLAMA, asked(output=tmp_path / "made"))
    (row,) = [x for x in simulate(tmp_path / "made" / "wanda") if x["layer"] == "down_proj"]
    assert found.rows["Wanda"]["down_proj"] == row["cycles"]
    assert found.rows["Wanda, sparsity %"]["down_proj"] == pytest.approx(50)
    assert found.rows["Dense"]["down_proj"] == row["dense"]
    assert found.rows["Wanda, speed-up"]["down_proj"] == row["speedup"]


def test_quantised_is_prune_then_quantize():
    found = measure(part("dass/table-8", "DaSS"), LLAMA, asked(options={"group": 32}))
    model, tokenizer = load_tiny("llama")
    fields = {"tokenizer": tokenizer, "samples": 3, "length": 48, "calibration": "builtin"}
    prunus.prune(model, method="dass", sparsity=0.5, mlp_only=True, **fields)
    score = {"length": 48, "windows": 2, "tokenizer": tokenizer}
    before = prunus.evaluate(model, "builtin", **score).perplexity
    prunus.quantize(model, bits=4, group=32, **fields)
    after = prunus.evaluate(model, "builtin", **score).perplexity
    assert list(found.rows["DaSS"].values()) == pytest.approx([before, after])
    assert found.rows["Dense"]["50 % sparsity"] < before


def test_searches_are_timed_without_a_model():
    entry, few = find("ria/table-a3"), {"name": "greedy", "escapes": 2}
    searches = {**entry.options["searches"], "Greedy + 100 escapes": few}
    found = measure(entry, "", Asked(options={"sizes": [8, 16], "searches": searches}))
    assert list(found.rows) == ["Greedy", "Greedy + 100 escapes", "Channel Permutation"]
    assert all(list(row) == ["8", "16"] for row in found.rows.values())
    assert all(seconds > 0 for row in found.rows.values() for seconds in row.values())


def test_a_layer_that_is_never_called_is_left_out():
    model, _ = load_tiny("llama")
    layers = {"used": model.model.layers[0].mlp.up_proj, "unused": torch.nn.Linear(4, 4)}
    assert list(watched(model, layers, ids_of(), ())) == ["used"]


def test_the_command_prints_published_beside_measured():
    words = ["reproduce", "ria/table-a3", "--set", "sizes=[8]"]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    assert "1563.6" in said.stdout
    assert "What differs" in said.stdout
    words += ["--set", "searches={Greedy: {name: heuristic}}", "--json"]
    found = json.loads(CliRunner().invoke(app, words).stdout)
    assert found["id"] == "ria/table-a3"
    assert list(found["measured"]["Greedy"]) == ["8"]
    assert found["published"]["the paper's machine"]["Greedy"][0] == 252.1


def test_a_table_of_runs_is_that_of_prune_and_evaluate(tmp_path):
    entry = part("dass/table-11", "α = 0.5")
    entry = entry.model_copy(update={"only": {"α = 0.5": ["2:4"]}})
    found = measure(entry, LLAMA, asked(seeds=2, output=tmp_path / "kept"))
    fields = {"samples": 3, "length": 48, "calibration": "builtin"}
    score = {"length": 48, "windows": 2}
    expected = []
    for seed in (0, 1):
        model, fields["tokenizer"] = load_tiny("llama")
        prunus.prune(model, method="dass", pattern="2:4", mlp_only=True, seed=seed, **fields)
        expected.append(prunus.evaluate(model, "builtin", tokenizer=fields["tokenizer"], **score))
    mean = sum(x.perplexity for x in expected) / 2
    assert found.rows["α = 0.5"] == {"50 %": None, "2:4": pytest.approx(mean)}
    assert found.rows["Dense"]["50 %"] == found.rows["Dense"]["2:4"] < mean
    assert found.failed == []
    again = measure(entry, LLAMA, asked(seeds=2, output=tmp_path / "kept"))
    assert again.rows == found.rows


def test_an_entry_becomes_a_grid_in_terms_of_the_model():
    wanted = asked(tasks=False, seeds=3, texts=("wikitext2",))
    grid = grid_of(Desk(LLAMA, find("goa/table-1"), wanted))
    assert grid.columns == {"20 %": {"sparsity": 0.25, "blocks": "0:3"}}
    assert grid.seeds == [0, 1, 2]
    assert (grid.judge.text, grid.judge.tasks, grid.judge.length) == (["wikitext2"], [], 48)
    assert grid.recipe["samples"] == 3
    wanted = asked(texts=(), limit=5)
    judge = grid_of(Desk(LLAMA, find("dass/table-9"), wanted)).judge
    assert (judge.text, judge.tasks, judge.shots, judge.limit) == ([], ["mmlu"], 5, 5)


def test_tasks_are_per_cent_by_the_papers_metric(monkeypatch):
    quality = {"acc piqa": 0.5, "acc boolq": 0.6, "acc_norm piqa": 0.9, "acc hellaswag": 0.1}
    wanted = asked(texts=())
    entry = part("besa/table-2", "Wanda")
    desk = Desk(LLAMA, entry, wanted)
    run = Run("k", "dense", "", None, {}, quality, 0.0, None, 7.0, 0.0, 0)
    found = Table(grid_of(desk), run, [replace(run, row="Wanda", column="50 %", seed=0)])
    monkeypatch.setattr("prunus.reproduce.run.compare", lambda *args, **others: found)
    rows = measure(entry, LLAMA, wanted).rows
    assert rows["Wanda"] == rows["Dense"]
    assert rows["Wanda"]["piqa"] == pytest.approx(50)
    assert rows["Wanda"]["boolq"] == pytest.approx(60)
    assert rows["Wanda"]["winogrande"] is None
    assert rows["Wanda"]["average"] is None  # not of fewer tasks than the paper's
    entry = part("dass/table-5", "Wanda")
    assert measure(entry, LLAMA, wanted).rows == {
        "Dense": {"seconds": None},
        "Wanda": {"seconds": 7},
    }


def test_labels_of_measured_numbers_are_those_of_the_published_ones():
    def labels(name, column, *texts, tasks=True):
        desk = Desk(LLAMA, find(name), asked(texts=texts, tasks=tasks))
        return [desk.label(column, measure) for measure in desk.entry.measures]

    assert labels("mrp/table-2", "70 %", "c4") == ["70 %, c4"]
    assert labels("ria/table-4", "2:4", "my.txt") == ["2:4"]
    assert labels("ria/table-4", "2:4", "wikitext2", "c4") == ["2:4", "2:4, c4"]
    assert labels("ria/table-2", "50 %", "my.txt") == ["wikitext2"]
    assert labels("besa/table-1", "50 %", "c4", "my.txt") == ["c4", "my.txt"]
    assert labels("dass/table-3", "40 %", "my.txt", tasks=False) == ["40 %, my.txt"]
    for entry in (x for paper in papers().values() for x in paper.entries if x.kind == "grid"):
        desk = Desk(LLAMA, entry, Asked())
        assert entry.labels() == [desk.label(c, m) for c in entry.columns for m in entry.measures]
