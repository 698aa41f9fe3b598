"""The site of docs/ builds without a warning, loads nothing from elsewhere, and is all HTML."""

import re
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LOADS = re.compile(r"<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=\"?([^\"\s>]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages by name. Strict: a link to nothing, or a page without a place, ends the build."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NO_MKDOCS_2_WARNING", "1")
        pytest.importorskip("material", reason="needs the extra docs")
        from mkdocs.commands.build import build
        from mkdocs.config import load_config

        folder = tmp_path_factory.mktemp("site")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


def pages(site: Path) -> dict[str, str]:
    return {
        path.relative_to(site).as_posix(): path.read_text(encoding="utf-8")
        for path in site.rglob("*.html")
    }


def test_every_document_is_a_page(site):
    documents = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    made = {path.with_suffix(".html").as_posix() for path in documents}
    assert pages(site).keys() == made | {"404.html"}


def test_a_page_loads_its_own_files_alone(site):
    for name, page in pages(site).items():
        loaded = LOADS.findall(page)
        assert len(loaded) > 3
        assert not [x for x in loaded if x.startswith(("http", "//"))], name
        assert 'class="mermaid"' not in page  # which the theme would fetch a library for
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", style.read_text("utf-8")), style


def test_links_to_the_sources_are_text_and_lead_nowhere(site):
    for name, page in pages(site).items():
        for target in re.findall(r"<a\b[^>]*?\bhref=\"?([^\"\s>]+)", page):
            target = unescape(target).partition("#")[0]
            if target and ":" not in target and name != "404.html":  # served from any folder
                assert (site / name).parent.joinpath(target).resolve().is_file(), (name, target)
    assert "<code>methods/table.py</code>" in pages(site)["methods.html"]


def test_no_markdown_is_left_as_it_was_typed(site):
    for name, page in pages(site).items():
        text = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
        text = unescape(re.sub(r"<[^>]+>", "", text))
        assert not re.search(r"\]\(|^\s*\|.*\|\s*$|^- |\*\*|```", text, re.MULTILINE), name


def test_the_page_of_a_paper_names_every_entry_of_reproduce_and_no_other():
    for page in (ROOT / "docs" / "papers").glob("*.md"):
        entries = ROOT / "src" / "prunus" / "reproduce" / "entries" / f"{page.stem}.yaml"
        known = re.findall(r"^- id: (\S+)", entries.read_text(encoding="utf-8"), re.MULTILINE)
        named = re.findall(rf"`({page.stem}/[^`]+)`", page.read_text(encoding="utf-8"))
        assert sorted(named) == sorted(known)
        assert len(known) > 7
