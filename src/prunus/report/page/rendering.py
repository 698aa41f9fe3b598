"""HTML from templates: everything that comes from outside is escaped."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> Markup:
    """Fill a template of this folder; strings are escaped, ``Markup`` goes in as it is."""
    return Markup(_environment().get_template(template).render(**values))


def stylesheet() -> Markup:
    """Return the styles of every page."""
    return Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))


def inline(text: str) -> Markup:
    """Return a text in which `code` between backticks and **bold** words are shown as such."""
    if isinstance(text, Markup):
        return text
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe))


def breakable(name: str) -> Markup:
    """Return a name that may go on in the next line after every ``_`` and ``.``."""
    return Markup(re.sub(r"([_.])", r"\1<wbr>", str(escape(name))))


def prose(*paragraphs: str) -> Markup:
    """Return paragraphs; see ``inline`` for what their text may have."""
    return Markup("\n").join(Markup("<p>{}</p>").format(inline(x)) for x in paragraphs)


def bullets(*items: str) -> Markup:
    """Return a list of short paragraphs."""
    return render("bullets.html", items=items)


def code(text: str) -> Markup:
    """Return a block of code, which scrolls in a box of its own."""
    return render("code.html", text=text.rstrip("\n"))


def link(text: str, url: str) -> Markup:
    """Return a link to click if the address is one of the web, otherwise the text alone."""
    if not url.startswith(("https://", "http://")):
        return escape(text)
    return Markup('<a href="{}" rel="noreferrer">{}</a>').format(url, text)


def beside(*parts: Markup) -> Markup:
    """Set parts side by side where the page is wide enough, otherwise one below the other."""
    return render("beside.html", parts=[part for part in parts if part])


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = inline
    environment.filters["breakable"] = breakable
    return environment
