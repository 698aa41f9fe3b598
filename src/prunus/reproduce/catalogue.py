"""All entries, read from ``entries/*.yaml``, and the one that a name means."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from ..base.errors import InputError, UnknownNameError
from ..base.yaml import Loader
from .entry import Entry


class Paper(BaseModel):
    """A paper and its entries.

    Attributes:
        paper: the first half of its entries' ids.
        name: authors, year, title.
        url: where to read it.
        entries: its tables and figures, in the paper's order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    paper: str
    name: str
    url: str
    entries: list[Entry]

    @model_validator(mode="after")
    def _of_this_paper(self) -> Paper:
        names = [entry.id for entry in self.entries]
        for name in names:
            if not name.startswith(f"{self.paper}/") or names.count(name) > 1:
                raise ValueError(f"{name} is twice in {self.paper}, or of another paper")
        return self


@cache
def papers() -> dict[str, Paper]:
    """Return every paper by its name; all recipes are built while they are read."""
    found: list[Paper] = []
    for file in sorted(files(__package__).joinpath("entries").iterdir(), key=lambda x: x.name):
        if file.name.endswith(".yaml"):
            content: Any = yaml.load(file.read_text(encoding="utf-8"), Loader)
            found.append(Paper.model_validate(content))
    return {paper.paper: paper for paper in found}


def paper(name: str) -> Paper:
    """Return one paper.

    Raises:
        UnknownNameError: no such paper.
    """
    if name not in papers():
        raise UnknownNameError("paper", name, papers())
    return papers()[name]


def find(name: str) -> Entry:
    """Return the entry of an id.

    Raises:
        UnknownNameError: no such paper.
        InputError: the paper has no such entry; the message names the nearest.
    """
    entries = {entry.id: entry for entry in paper(name.partition("/")[0]).entries}
    if name in entries:
        return entries[name]
    near = [x for x in entries if x.startswith(name)] if "/" in name else []
    near = near or get_close_matches(name, entries, n=3)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    key = name.partition("/")[0]
    raise InputError(
        f"There is no entry {name!r}.{meant} `prunus reproduce --list --paper {key}` lists those "
        "of this paper."
    )
