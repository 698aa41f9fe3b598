"""The page in Chromium: no request, nothing on the console, no sideways scrolling, two themes."""

import pytest

import prunus
from helpers.browser import look
from helpers.models import load_tiny
from helpers.random_models import IDS, MIXTURES, build
from prunus.report.page import Cell, Number, Section, code, facts, page, prose, table, write_page

FEW = {"samples": 4, "length": 32}


def runs():
    model, tokenizer = load_tiny("llama")
    learned = {"allocation": "besa", "settings": {"allocation.steps": 4}, "update": "least-squares"}
    yield prunus.prune(model, method="wanda", tokenizer=tokenizer, **learned, **FEW)
    model, tokenizer = load_tiny("llama")
    yield prunus.prune(model, method="goa", tokenizer=tokenizer, recovery="after", **FEW)
    model, tokenizer = load_tiny("llama")
    folded = {"pattern": "2:4", "permutation": "free"}
    yield prunus.prune(model, method="ria", tokenizer=tokenizer, **folded, **FEW)
    model = build("mixtral", MIXTURES["mixtral"])
    yield prunus.prune(model, method="wanda", tokens_ST=IDS)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of runs that have a section of their own."""
    folder = tmp_path_factory.mktemp("pages")
    found = []
    for name, result in zip(("besa", "goa", "orders", "experts"), runs(), strict=True):
        (folder / name).mkdir()
        (folder / name / "pruning_report.json").write_text(result.report.to_json())
        found.append(write_page(folder / name, folder / f"{name}.html"))
    return found


OWN = {"besa": "Learned shares", "goa": "Heads and neurons", "orders": "Order of channels",
       "experts": "Experts"}  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_load_nothing_and_fit(dark, pages, tmp_path):
    found, console = look(pages, tmp_path, dark=dark)
    assert console == []
    assert set(found) == {(name, width) for name in OWN for width in (360, 1280)}
    for (name, _), inside in found.items():
        assert inside["requests"] == []
        assert inside["overflow"] == 0
        assert inside["wide"] == []
        assert OWN[name] in inside["headings"]
        assert inside["themes"]["light"] != inside["themes"]["dark"]
        assert inside["colours"] == inside["themes"]["dark" if dark else "light"]
        paper, ink = (sum(map(float, x[4:-1].split(","))) for x in inside["colours"])
        assert (paper < ink) == dark


def test_a_page_that_asks_for_something_or_is_too_wide_is_found(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><img src="http://prunus.invalid/x.png"><p style="width: 900px">wide</p>'
        "<script>undefined.x</script>"
    )
    found, console = look([page], tmp_path)
    assert found["bad", 360]["requests"] == ["http://prunus.invalid/x.png"]
    assert found["bad", 360]["overflow"] > 500
    assert len(found["bad", 360]["wide"]) == 1
    assert found["bad", 1280]["overflow"] == 0
    assert any("TypeError" in line for line in console)


def test_long_words_and_wide_tables_hold_at_any_width(tmp_path):
    wide = table([f"a rather long heading {i}" for i in range(12)], [[Cell("1,234.5")] * 12])
    parts = [wide, code("y" * 400), prose("`" + "z" * 200 + "`"), facts([("a" * 90, "b" * 90)])]
    path = tmp_path / "x.html"
    html = page(
        "x" * 90, [Section("s", parts)], numbers=[Number("1" * 30, "c" * 90)], lead="l" * 90
    )
    path.write_text(html, encoding="utf-8")
    found, console = look([path], tmp_path, widths=(320, 360, 768))
    assert [inside["overflow"] for inside in found.values()] == [0, 0, 0]
    assert all(inside["wide"] == [] for inside in found.values())
    assert console == []
