"""Every table and figure is there, builds, and has the numbers that it should."""

import json
from statistics import mean

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from prunus.base.errors import InputError, UnknownNameError
from prunus.cli.main import app
from prunus.reproduce.catalogue import find, papers
from prunus.reproduce.desk import Asked, scaled
from prunus.reproduce.entry import DENSE, Entry, Measured
from prunus.reproduce.run import KINDS, check_options, options_of
from prunus.reproduce.shown import agreement, options, sheets, to_dict
from prunus.text.known import HUB

ENTRIES = {entry.id: entry for paper in papers().values() for entry in paper.entries}
PLACES = {
    "ria": [
        *(f"table-{x}" for x in ("1", "2", "3", "4", "5", "6", "a1", "a2", "a3")),
        *("figure-2", "figure-4a", "figure-4b", "figure-5", "appendix-b"),
    ],
    "mrp": [f"table-{x}" for x in ("1", "2", "3", "a1", "a2", "a3")],
    "besa": [
        *(f"table-{x}" for x in range(1, 7)),
        *(f"figure-{x}" for x in ("1a", "1b", "3", "4", "5")),
    ],
    "dass": [f"table-{x}" for x in (1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14)],
    "goa": [
        *("table-1", "table-2", "table-3-gpt2", "table-3-llama", "table-4", "table-5"),
        *("figure-3", "figure-4a", "figure-4b", "figure-5"),
    ],
}
MEANS_OFF = {  # what the numbers in the paper give, and what it prints
    ("ria/table-5", "LLaMA2-70B", "Wanda", "4:8+CP"): (60.31, 60.51),
    ("goa/table-1", "LLaMA-7B", "Dense", "20 %"): (63.25, 63.5),
    ("goa/table-1", "LLaMA-7B", "LLM-Pruner Vec", "20 %"): (53.25, 53.52),
}


def test_every_table_and_figure_is_there():
    asked = {f"{paper}/{place}" for paper, places in PLACES.items() for place in places}
    assert asked <= set(ENTRIES)
    assert list(papers()) == sorted(PLACES)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_an_entry_says_what_it_is_and_names_texts_that_there_are(entry):
    assert entry.title
    assert entry.shows.endswith(".")
    assert set(entry.options) <= set(options_of(entry.kind))
    fields = [fields for _, _, fields in entry.cells()]
    texts = {entry.protocol.calibration, *entry.protocol.texts}
    texts |= {x.get(name) for x in fields for name in ("calibration", "recovery_text")}
    assert texts <= {*HUB, "self", None}
    assert entry.published or entry.missing, "neither numbers nor a word about them"
    for sentence in filter(None, [*entry.said, *entry.differs, *entry.cannot, entry.missing]):
        assert sentence.endswith("."), sentence
        assert not sentence[0].islower(), sentence


def test_every_kind_measures_something():
    assert {entry.kind for entry in ENTRIES.values()} == set(KINDS)


def averages():
    for entry in ENTRIES.values():
        tasks = [*entry.protocol.tasks]
        if "average" in entry.measures and set(tasks) < set(entry.measures):
            for model in entry.published:
                for row in entry.published[model]:
                    numbers = entry.numbers(model, row)
                    for column in entry.columns:
                        found = [numbers[entry.label(column, x)] for x in (*tasks, "average")]
                        if None not in found:
                            yield entry.id, model, row, column, found


def test_published_averages_are_those_of_their_tasks():
    """A number in the wrong place, or a digit that was misread, moves the mean."""
    off = {}
    for name, model, row, column, (*tasks, average) in averages():
        if abs(mean(tasks) - average) > 0.011:
            off[name, model, row, column] = (round(mean(tasks), 2), average)
    assert off == MEANS_OFF


def test_the_same_run_has_the_same_number_in_two_tables():
    def number(entry, model, row, label):
        return ENTRIES[entry].numbers(model, row)[label]

    assert number("ria/table-a1", "LLaMA2-13B", "RIA", "on c4, wikitext2") == 5.83
    assert number("ria/table-4", "LLaMA2-13B", "RIA", "Unstructured 50 %") == 5.83
    assert number("ria/table-5", "LLaMA2-70B", "RIA", "2:4+CP, mnli") == 49.08
    assert number("mrp/table-a1", "OPT-2.7B", "MS", "2:4, ptb") == 26.63
    assert number("besa/table-1", "LLaMA2-7B", "BESA", "ptb") == 44.09
    assert number("dass/table-2", "LLaMA2-70B", "DaSS", "2:4, average") == 68.66
    assert number("goa/table-3-gpt2", "GPT-2", "L1 norm", "50 %, wikitext2") == 1226.13
    assert number("goa/table-3-gpt2", "GPT-2", DENSE, "50 %, ptb") == 40.12


BROKEN = {
    "a recipe": ({"rows": {"RIA": {"method": "rya"}}}, "Unknown method 'rya'"),
    "a setting": (
        {"rows": {"RIA": {"method": "ria", "settings": {"score.pow": 1}}}},
        "no field 'pow'",
    ),
    "a number": ({"published": {"M": {"RIA": [1.0, 2.0]}}}, "M, RIA has 2 numbers instead of 1"),
    "a row": ({"published": {"M": {"DaSS": [1.0]}}}, "no 'DaSS' in Dense, RIA"),
    "a measure": ({"measures": ["ptb"]}, "no 'ptb' in wikitext2"),
    "a field": ({"note": "x"}, "Extra inputs are not permitted"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_entry_is_rejected(case):
    whole = {
        "id": "ria/table-9", "title": "T", "shows": "S.", "kind": "grid",
        "protocol": {
            "models": ["M"], "calibration": "c4", "samples": 8, "length": 64,
            "texts": ["wikitext2"],
        },
        "columns": {"50 %": {"sparsity": 0.5}}, "rows": {"RIA": {"method": "ria"}},
        "measures": ["wikitext2"], "published": {"M": {"Dense": [5.0], "RIA": [6.0]}},
    }  # fmt: skip
    Entry.model_validate(whole)
    change, said = BROKEN[case]
    with pytest.raises(ValidationError, match=said):
        Entry.model_validate({**whole, **change})


def test_a_name_that_is_none_gets_the_nearest():
    with pytest.raises(InputError, match=r"Did you mean ria/table-2"):
        find("ria/tabel-2")
    with pytest.raises(InputError, match=r"Did you mean goa/table-3-gpt2 or goa/table-3-llama"):
        find("goa/table-3")
    with pytest.raises(UnknownNameError, match=r"paper 'wanda'. Available: besa, dass, goa"):
        find("wanda/table-1")


def test_ranges_of_blocks_follow_the_depth():
    assert scaled("4:30", 32, 32) == "4:30"
    assert scaled("10:30", 80, 40) == "5:15"
    assert scaled("0:20", 80, 3) == "0:1"
    assert scaled("60:80", 80, 2) == "1:2"


def test_what_is_asked_for_takes_the_place_of_the_protocol():
    asked = Asked("my.jsonl", ("a.txt",), tasks=False, samples=4).of(find("goa/table-1"))
    assert asked.measures == ["a.txt"]
    assert asked.protocol.tasks == {}
    assert (asked.protocol.calibration, asked.protocol.samples) == ("my.jsonl", 4)
    assert Asked().of(find("goa/table-1")) == find("goa/table-1")
    with pytest.raises(InputError, match="ria/table-3 measures tasks alone"):
        Asked(tasks=False).of(find("ria/table-3"))
    with pytest.raises(InputError, match="no option 'size'; an entry of its kind has sizes, sea"):
        check_options(find("ria/table-a3"), {"size": [4]})
    with pytest.raises(InputError, match=r"sizes is a list, such as \[512, 1024\]; got 4"):
        check_options(find("ria/table-a3"), {"sizes": 4})


def test_recipes_are_shown_as_options():
    fields = {"method": "dass", "mlp_only": True, "settings": {"gate_up.score.power": 0.5}}
    assert options(fields) == "--method dass --mlp-only --set gate_up.score.power=0.5"


def test_published_and_measured_stand_below_each_other():
    entry = find("ria/table-2")
    rows = {"RI": {"wikitext2": 30.0}, "|W|": {"wikitext2": 29.0}, "|W| in": {"wikitext2": 31.0}}
    measured = Measured("m", rows)
    (sheet,) = sheets(entry, measured)
    assert sheet.header == ["", "", "wikitext2"]
    at = [row[0] for row in sheet.rows].index("RI")
    assert sheet.rows[at : at + 3] == [
        ["RI", "LLaMA-13B", "6.57"], ["", "LLaMA-30B", "5.27"], ["", "measured", "30"],
    ]  # fmt: skip
    assert agreement(entry, measured) == [  # RI < |W| in holds; |W| is the best here alone
        "LLaMA-13B: 1 of 3 pairs of rows in the same order",
        "LLaMA-30B: 1 of 3 pairs of rows in the same order",
    ]
    cycles = find("besa/table-4")
    told = {name: {"q_proj": value} for name, value in (("Wanda", 3), ("BESA", 2), ("Dense", 1))}
    told["BESA, speed-up"] = {"q_proj": 0}
    assert agreement(cycles, Measured("m", told)) == [
        "LLaMA-7B: 1 of 1 pairs of rows in the same order"
    ]
    other = Measured("m", {"block 0": {"error": float("inf")}})
    assert [sheet.header[2:] for sheet in sheets(entry, other)] == [["wikitext2"], ["error"]]
    assert to_dict(entry, other)["measured"] == {"block 0": {"error": None}}


def test_the_command_lists_all():
    said = CliRunner().invoke(app, ["reproduce", "--list"])
    assert said.exit_code == 0, said.output
    assert all(name in said.stdout for name in ENTRIES)
    said = CliRunner().invoke(app, ["reproduce", "--list", "--paper", "goa", "--json"])
    found = json.loads(said.stdout)["entries"]
    assert [entry["id"] for entry in found] == [name for name in ENTRIES if name[:4] == "goa/"]


@pytest.mark.parametrize("name", ["ria/table-4", "mrp/table-a2", "goa/figure-3"])
def test_the_command_shows_an_entry(name):
    said = CliRunner().invoke(app, ["reproduce", name, "--show"])
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith(f"{name}: {ENTRIES[name].title[:20]}")
    assert ENTRIES[name].differs[0][:30] in said.stdout
    said = CliRunner().invoke(app, ["reproduce", name, "--show", "--json"])
    assert Entry.model_validate(json.loads(said.stdout)) == ENTRIES[name]


def test_every_published_number_is_shown():
    for entry in ENTRIES.values():
        cells = [cell for sheet in sheets(entry) for row in sheet.rows for cell in row[2:] if cell]
        rows = [(model, row) for model in entry.published for row in entry.published[model]]
        found = [x for one in rows for x in entry.numbers(*one).values() if x is not None]
        assert sorted(map(float, cells)) == sorted(found), entry.id


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ria/table-9"], "There is no entry 'ria/table-9'"),
        (["ria/table-2"], "ria/table-2 is measured on a model: prunus reproduce ria/table-2 MODEL"),
        (["--list", "--paper", "rio"], "Unknown paper 'rio'. Did you mean 'ria'?"),
        (["ria/table-a3", "--set", "sizes"], "expected NAME=VALUE"),
        (["ria/table-a3", "--set", "sizes=[5]"], "Sizes are multiples of 4"),
    ],
)
def test_bad_input_gets_one_sentence(words, said):
    found = CliRunner().invoke(app, ["reproduce", *words])
    assert found.exit_code == 2
    assert said in " ".join(found.stderr.split())
