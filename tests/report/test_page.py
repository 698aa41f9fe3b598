"""Pages: their numbers are those of the report, and nothing in them asks for anything."""

import json
import re
from itertools import pairwise

import pytest
import torch
from markupsafe import Markup
from safetensors.torch import save_file
from typer.testing import CliRunner

from helpers.pages import layer, loaded, report, table, tables, text_of, written
from prunus.base.errors import CheckpointError, InputError
from prunus.cli.main import app
from prunus.report.page import (
    Cell,
    Line,
    Number,
    Section,
    heat_map,
    line_chart,
    link,
    page,
    prose,
    write_page,
)
from prunus.report.page import table as make_table
from prunus.report.page.charts import ticks
from prunus.report.report import Coverage
from prunus.report.units import BlockChange, UnitsReport

Q, DOWN = "self_attn.q_proj", "mlp.down_proj"
ALONE = {"What was done", "Protocol", "Time and size", "How to load it", "What it does not do",
         "Recipe"}  # fmt: skip


def made(tmp_path, found, **options):
    folder = written(tmp_path / "pruned", found)
    return write_page(folder, tmp_path / "page.html", **options).read_text(encoding="utf-8")


def headings(html):
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_heat_maps_and_tables_have_the_numbers_of_their_layers(tmp_path):
    layers = [
        layer(
            0, Q, sparsity=0.25, relative_output_error=0.1, error_before_update=0.2, updated=True
        ),
        layer(0, DOWN, sparsity=0.75, shape=(8, 8), relative_output_error=0.3),
        layer(2, Q, sparsity=0.5, relative_output_error=0.2, error_before_update=0.4, updated=True),
    ]
    html = made(tmp_path, report(layers))
    assert table(html, "Per cent of zeros") == [
        ["block", "q_proj", "down_proj"],
        ["0", "25.0", "75.0"],
        ["2", "50.0", ""],
    ]
    assert table(html, "Relative error of the output") == [
        ["block", "q_proj", "down_proj"],
        ["0", "0.100", "0.300"],
        ["2", "0.200", ""],
    ]
    mixed = re.findall(r'--mix: ([\d.]+)%">(0\.\d+)', html)
    assert mixed == [("7.0", "0.100"), ("100.0", "0.300"), ("53.5", "0.200")]
    assert table(html, "Means by kind") == [
        ["kind", "before", "after", "less", "highest", "in block"],
        ["q_proj", "0.300", "0.150", "50.0%", "0.200", "2"],
        ["down_proj", "–", "0.300", "–", "0.300", "0"],
    ]
    assert table(html, "By kind of layer")[2][4] == "75.0%"
    assert set(headings(html)) == ALONE | {"Sparsity", "Error of each layer"}


def test_a_run_without_text_has_only_what_it_knows(tmp_path):
    html = made(tmp_path, report([layer(0, Q), layer(1, Q)], protocol=None))
    assert set(headings(html)) == ALONE | {"Sparsity"}
    assert "Every one of the 2 layers is 50.0% zeros." in html
    assert "none: the method looks at the weights alone" in html
    assert "Per cent of zeros" not in html


def test_the_numbers_at_the_top_and_the_protocol(tmp_path):
    layers = [layer(0, Q, relative_output_error=0.1), layer(1, Q, relative_output_error=0.3)]
    said = text_of(made(tmp_path, report(layers)))
    for part in (
        "of the weights in these layers are zero 50.0% asked for 50.0%",
        "of all parameters are in these layers 600 of 1,000 60.0%",
        "mean error of a layer's output of its size, on calibration text 0.200",
        "to prune without loading and saving 3 min 5 s",
        "Calibration text c4 (train)",
        "16 windows of 128 tokens, 2,048 in all",
        "9 of 40",
        "Seed 7",
        "abababab",
        "Number format float32",
    ):
        assert part.replace("\u202f", " ") in said.replace("\u202f", " ").replace("&#39;", "'"), (
            part
        )


def test_names_from_outside_are_no_html_and_no_script(tmp_path):
    bad = "<script>alert(1)</script>"
    layers = [
        layer(0, f"{bad}_proj", sparsity=0.3, relative_output_error=0.2),
        layer(1, f"mlp.{bad}", pattern=bad, relative_output_error=0.1, notes={"order": bad}),
    ]
    hostile = report(
        layers,
        model=f"org/{bad}",
        method=bad,
        pruner=f"`{bad}`",
        paper=f'"{bad}',
        url="javascript:alert(1)",
        allocation=f"{bad}()",
        versions={bad: bad, "prunus": "1"},
        different={bad: [bad, 1]},
        coverage=Coverage(9, 1, 8, 8, 1, [bad]),
    )
    folder = written(tmp_path / "pruned", hostile, recipe=f"method: '{bad}'\nrefine: '{bad}'\n")
    config = {"architectures": [bad], "dtype": bad}
    (folder / "config.json").write_text(json.dumps(config))
    evaluation = {"perplexity": 9.0, "source": bad, "windows": 1, "length": 2, "reading": bad}
    (tmp_path / "a<b>.json").write_text(json.dumps(evaluation))
    out = tmp_path / "page.html"
    write_page(folder, out, evaluations=[tmp_path / "a<b>.json"])
    html = out.read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 10
    assert "<td>a<b>" not in html
    assert 'href="javascript' not in html
    assert loaded(html) == []


def test_the_policy_forbids_every_request_and_links_are_for_clicks(tmp_path):
    html = made(tmp_path, report([layer(0, Q, relative_output_error=0.1)]))
    assert "default-src 'none'" in html
    assert loaded(html) == []
    assert '<a href="https://arxiv.org/abs/2306.11695"' in html
    assert loaded('<img src="http://a/b.png">') == ["http://a/b.png"]
    assert loaded('<link href="https://a/b.css">') == ["https://a/b.css"]


def test_paths_of_the_machine_stay_there(tmp_path):
    found = report([layer(0, Q)], model="/home/alice/models/plum")
    recipe = "method: wanda\nmodel: /home/alice/models/plum\ncalibration: /home/alice/my.jsonl\n"
    folder = written(tmp_path / "pruned", found, recipe)
    html = write_page(folder, tmp_path / "x.html").read_text(encoding="utf-8")
    assert "alice" not in html
    assert "<h1>plum</h1>" in html
    assert "calibration: my.jsonl" in html


def test_learned_shares_have_curves_and_their_ends(tmp_path):
    curves = [
        {"blocks": [0], "steps": 40, "seconds": 2.0, "loss": [1.0, 0.8, 0.7]},
        {"blocks": [1], "steps": 40, "seconds": 3.0, "loss": [1.0, 0.9, 0.5]},
    ]
    html = made(tmp_path, report([layer(0, Q)], learning=curves, allocation="BESA(span=1)"))
    assert "It ended at 0.60 in the mean, and at 0.50 in block 1, the lowest." in text_of(html)
    assert 'd="M0 0L50 20L100 30"' in html  # steps 13.3, 26.7, 40 of a scale from 0 to 1
    assert "Learning the shares 5.0 s" in text_of(html)


def test_a_search_has_its_curve_beside_equal_shares(tmp_path):
    search = {"over": "slope", "steps": [-0.1, 0.0, 0.1], "loss": [2.0, 1.0, 0.5]}
    search |= {"uniform": 1.0, "best": 0.5, "tokens": 512, "seconds": 4.0}
    html = made(tmp_path, report([layer(0, Q)], search=search, allocation="Slope()"))
    assert "diverges from it by 0.5 nats a token; with equal shares it is 1." in text_of(html)
    assert "on 512 tokens of held-out" in text_of(html)
    assert 'd="M0 0L50 50L100 75"' in html
    assert "Search for shares 4.0 s" in text_of(html)


def test_experts_count_their_tokens(tmp_path):
    from prunus.report.experts import ExpertTokens

    block = ExpertTokens("model.layers.0.mlp.experts", [0, 30, 60, 70], [0])
    html = made(tmp_path, report([layer(0, Q)], experts=[block]))
    row = table(html, "Calibration tokens of the experts")[1]
    assert row[:6] == ["0", "4", "0", "45", "70", "1"]
    assert "3 of 4 experts (75.0%) saw enough" in html
    assert 'aria-label="0, 30, 60, 70"' in html


def smaller():
    far = [[0, 0.1, 0.5, 0.5], [0.1, 0, 0.6, 0.5], [0.5, 0.6, 0, 0.3], [0.5, 0.5, 0.3, 0]]
    gone = BlockChange(1, (4, 2), (2, 1), (96, 48), (1000, 500), [1], far)
    dense = BlockChange(0, None, None, None, (1000, 1000))
    return UnitsReport((3000, 2500), 1000, 500, (900, 600), False, [dense, gone])


def test_heads_and_neurons_that_went(tmp_path):
    solved = {"recovery": {"o": {"ridge": 1.0, "held_out_before": 0.4, "held_out_after": 0.1}}}
    layers = [layer(1, "self_attn.o_proj", pattern="heads", notes=solved)]
    html = made(tmp_path, report(layers, structured=smaller()))
    rows = table(html, "Widths of each block")
    assert rows[1][:6] == ["0", "as before", "as before", "as before", "1,000", "0.0%"]
    assert rows[2][:6] == ["1", "4 → 2", "2 → 1", "96 → 48", "1,000 → 500", "50.0%"]
    assert table(html, "Recovery")[1] == ["attention", "0.400", "0.100", "75.0%"]
    assert 'aria-label="removed: 0"' in html
    assert 'aria-label="block 1: 1 pair of heads alike; removed: 0, 1"' in html
    assert html.count('class="gone"') == html.count('class="kept"') == 2
    said = text_of(html)
    assert "of all parameters were removed 3,000 became 2,500 16.7%" in said
    assert "prunus.load(&#34;pruned&#34;)" in html
    assert "Sparsity" not in headings(html)


def test_orders_say_what_they_keep_and_channels_how_much(tmp_path):
    notes = {"order": "free", "score_gap_closed": 0.8}
    layers = [
        layer(0, Q, pattern="2:4", notes=notes, shape=(4, 8)),
        layer(0, DOWN, pattern="2:4", notes={**notes, "score_gap_closed": 0.6}, shape=(9, 9)),
    ]
    folder = written(tmp_path / "pruned", report(layers))
    weight = torch.ones(4, 8)
    weight[:, 0] = 0
    weight[:3, 1] = 0
    save_file({f"model.layers.0.{Q}.weight": weight}, folder / "model.safetensors")
    html = write_page(folder, tmp_path / "x.html").read_text(encoding="utf-8")
    assert table(html, "Per cent of that way")[1] == ["0", "80", "60"]
    assert "70.0% in the mean" in html
    outline = re.search(r'<path class="line" style="stroke: var\(--plum\)" d="(.*?)"', html)[1]
    heights = re.findall(r"[ML]([\d.]+) ([\d.]+)", outline)
    # of 8 channels one keeps nothing, one a quarter, six all; the axis ends at 6
    tops = {(float(x), round(6 * (1 - float(y) / 100), 2)) for x, y in heights if float(y) < 100}
    assert {n for _, n in tops} == {1, 6}
    assert {x for x, n in tops if n == 6} == {96, 100}
    assert "no hardware for N:M" in html


def test_evaluations_become_a_table_and_numbers_at_the_top(tmp_path):
    dense = {"perplexity": 19.234, "source": "wikitext2", "windows": 40, "length": 2048}
    words = {**dense, "source": "lambada", "accuracy": 0.25, "windows": 100}
    (tmp_path / "dense.json").write_text(json.dumps(dense))
    (tmp_path / "pruned.json").write_text(
        json.dumps({"texts": [{**dense, "perplexity": 43.28}, words]})
    )
    given = [tmp_path / "dense.json", tmp_path / "pruned.json"]
    html = made(tmp_path, report([layer(0, Q)]), evaluations=given)
    assert tables(html)[""] == [
        ["model", "text", "perplexity", "accuracy", "how it was measured"],
        ["dense", "wikitext2", "19.23", "–", "40 windows of 2,048 tokens"],
        ["pruned", "wikitext2", "43.28", "–", "40 windows of 2,048 tokens"],
        ["pruned", "lambada", "19.23", "25.0%", "100 passages of up to 2,048 tokens"],
    ]
    assert "Nobody has put its quality" not in html


def test_agreement_with_the_dense_model_and_tasks_have_tables_of_their_own(tmp_path):
    near = {"perplexity": 19.234, "kl": 0.5, "top_token": 0.75, "best_five": 0.6,
            "prefix_mean": 7.25, "prefix_most": 64}  # fmt: skip
    text = {"perplexity": 43.28, "source": "c4", "windows": 1, "length": 32, "against": near}
    values = {"acc,none": 0.5, "acc_stderr,none": 0.0224, "acc_norm,none": 0.25, "f1,none": None}
    task = {"task": "arc_easy", "values": values, "samples": 500, "shots": 0}
    (tmp_path / "x.json").write_text(json.dumps({"texts": [text], "tasks": [task]}))
    html = made(tmp_path, report([layer(0, Q)]), evaluations=[tmp_path / "x.json"])
    assert table(html, "How near")[1] == [
        "x",
        "c4",
        "19.23",
        "0.5000",
        "75.0%",
        "60.0%",
        "7.2 of 64",
    ]
    assert table(html, "Tasks of lm-eval")[1:] == [
        ["x", "arc_easy", "acc", "0.500 ± 0.022", "500 questions, 0 shots"],
        ["x", "arc_easy", "acc_norm", "0.250", "500 questions, 0 shots"],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "holds no perplexity and no task"),
        ('{"perplexity": "high"}', "holds no perplexity"),
        ('{"error": {"type": "CheckpointError"}}', "holds no perplexity and no task"),
    ],
)
def test_what_is_no_evaluation_is_named(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=message):
        made(tmp_path, report([layer(0, Q)]), evaluations=[tmp_path / "x.json"])
    assert not (tmp_path / "page.html").exists()


def test_the_command_writes_a_page_and_overwrites_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "pruned", report([layer(0, Q)]))
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    done = CliRunner().invoke(app, ["report", "pruned", "--open"])
    assert (done.exit_code, done.stdout.strip()) == (0, "pruned.html")
    assert opened == [(tmp_path / "pruned.html").as_uri()]
    again = CliRunner().invoke(app, ["report", "pruned", "--json"])
    assert again.exit_code == 2
    assert "nothing is overwritten" in json.loads(again.stdout)["error"]["message"]
    with pytest.raises(InputError, match="HTML"):
        write_page("pruned", "page.pdf")
    with pytest.raises(CheckpointError, match="has no pruning_report"):
        write_page(tmp_path, "page.html")


def test_a_column_with_an_empty_cell_is_still_one_of_numbers():
    shown = make_table(["method", "2:4", "pattern"], [["a", "12.0", "2:4"], ["b", "—", "—"]])
    assert shown.count('class="number"') == 3
    assert '<td class="number">—</td>' in shown


def test_any_page_is_made_of_the_same_parts():
    parts = [
        prose("a `b` < c"),
        make_table(
            ["method", "perplexity"], [["x", Cell("1.5", "best")], ["y", Cell("2", bar=0.5)]]
        ),
        heat_map(["r"], ["c", "d"], [[1.0, None]], caption="h", said=str),
        line_chart([Line([(0, 1), (4, 2)], "l")], caption="c", x="x", y="y"),
    ]
    html = page("T<", [Section("One & two", parts), Section("Empty", [Markup()])],
                numbers=[Number("5", "five")], made_by="prunus compare")  # fmt: skip
    assert "<h1>T&lt;</h1>" in html
    assert headings(html) == ["One &amp; two"]
    assert "<p>a <code>b</code> &lt; c</p>" in html
    assert tables(html)["h"] == [["", "c", "d"], ["r", "1.0", ""]]
    assert 'class="number best"' in html
    assert 'd="M0 50L100 0"' in html
    assert "prunus compare" in html
    assert loaded(html) == []
    assert str(link("x", "file:///etc/passwd")) == "x"
    assert line_chart([], caption="c", x="x", y="y") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 0.31), (0, 29), (1, 1), (0.95, 1.2), (0, 12345)])
def test_ticks_are_round_and_cover_the_highest(low, high):
    found = ticks(low, high, 5)
    assert found[0] >= low
    assert found[-1] >= high
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(steps) <= 1
    assert len(found) <= 8
