"""Names of models in reports and cards: a hub id, or the name of a folder; never a local path."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from huggingface_hub import metadata_load, try_to_load_from_cache


def base_model(model: str) -> str | list[str] | None:
    """Return the hub id of the model that a report names; never a local path.

    For a local folder it is what the folder's own card says. A name that could also be a relative
    path must be in the cache.
    """
    if Path(model).is_absolute():
        return _said_by_card(Path(model) / "README.md")
    repo, _, commit = model.partition("@")
    if not _is_id(repo):
        return None
    cached = commit or isinstance(try_to_load_from_cache(repo, "config.json"), str)
    return repo if cached else None


def title(model: str) -> str:
    """Return a hub id without its commit, or the last part of a path."""
    return Path(model).name if Path(model).is_absolute() else model.partition("@")[0]


def _said_by_card(card: Path) -> str | list[str] | None:
    try:
        said = (metadata_load(card) or {}).get("base_model")
    except (OSError, ValueError, yaml.YAMLError):  # none, or one that nobody can read
        return None
    named = said if isinstance(said, list) else [said]
    if not named or not all(isinstance(x, str) and _is_id(x) for x in named):
        return None
    return [str(x) for x in named] if len(named) > 1 else str(named[0])


def _is_id(name: str) -> bool:
    """Whether the hub could have a model of that name: ``org/model``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None
