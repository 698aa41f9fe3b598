"""What a page of HTML holds: its tables, and what could make it ask for something."""

import re
from html.parser import HTMLParser

from prunus.report.layer import LayerReport
from prunus.report.report import Coverage, PruningReport
from prunus.text import Protocol


class Tables(HTMLParser):
    """Reads every table as rows of strings, under its caption."""

    def __init__(self):
        super().__init__()
        self.found, self.caption, self.text, self.rows = {}, "", None, None

    def handle_starttag(self, tag, attrs):
        if tag in ("figcaption", "td", "th"):
            self.text = ""
        elif tag == "table":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        elif tag == "h2":
            self.caption = ""

    def handle_endtag(self, tag):
        if tag == "figcaption":
            self.caption = self.text
        elif tag in ("td", "th"):
            self.rows[-1].append(self.text)
        elif tag == "table":
            self.found[self.caption] = self.rows
        if tag in ("figcaption", "td", "th"):
            self.text = None

    def handle_data(self, data):
        if self.text is not None:
            self.text += data.replace("\u00a0", " ")


def tables(html):
    """The tables of a page by caption."""
    reader = Tables()
    reader.feed(html)
    return reader.found


def table(html, caption):
    """The one table whose caption begins so."""
    found = [rows for name, rows in tables(html).items() if name.startswith(caption)]
    assert len(found) == 1, (caption, list(tables(html)))
    return found[0]


def text_of(html):
    """The words of a page in one line."""
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).split())


def loaded(html):
    """Every address that a browser would fetch: all but links to click and places on the page."""
    clicked = re.sub(r'<a href="https?://[^"]*"', "<a", html)
    found = re.findall(r"(?:src|href|srcset|action|data)\s*=\s*[\"']?([^\"'\s>]+)", clicked)
    found += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", clicked)
    return [x for x in found if not str(x).startswith("#") and x != "data:,"]


def layer(block, name, **fields):
    """A layer of a report."""
    given = {
        "name": f"model.layers.{block}.{name}",
        "role": name[-6:-5],
        "block": block,
        "shape": (4, 8),
        "transposed": False,
        "pattern": "row",
        "requested": 0.5,
        "sparsity": 0.5,
        "relative_output_error": None,
        "updated": False,
        "error_before_update": None,
        "seconds": 0.25,
    }
    return LayerReport(**{**given, **fields})


TEXT = Protocol("c4 (train)", 16, 128, 7, 40, 9, False, "ab" * 32, split="train")


def report(layers, **fields):
    """A report by hand."""
    given = {
        "model": "org/plum-7b",
        "method": "wanda",
        "pruner": "EachLayer(Compose(Wanda()))",
        "pattern": None,
        "requested": 0.5,
        "sparsity": 0.5,
        "coverage": Coverage(1000, 200, 700, 600),
        "protocol": TEXT,
        "seconds": 184.7,
        "layers": layers,
        "paper": "Sun et al. 2024",
        "url": "https://arxiv.org/abs/2306.11695",
    }
    return PruningReport(**{**given, **fields})


def written(folder, found, recipe="method: wanda\nsparsity: 0.5\ndtype: float32\n"):
    """A folder with a report and its recipe."""
    folder.mkdir()
    (folder / "pruning_report.json").write_text(found.to_json())
    (folder / "recipe.yaml").write_text(recipe)
    return folder
