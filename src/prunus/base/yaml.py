"""YAML files that people write: mappings, in which 2:4 is a text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError


class Loader(yaml.SafeLoader):
    """YAML without its base-60 numbers, which make 124 of an unquoted 2:4."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if not tag.endswith((":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def read_mapping(path: str | Path, what: str, example: str) -> dict[str, Any]:
    """Return the mapping in a file.

    Args:
        path: of the file.
        what: it is, for the error: "recipe".
        example: a line that it may have.

    Raises:
        InputError: it cannot be read, or is no mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise InputError(f"The {what} {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"The {what} {path} is not YAML.") from None
    if not isinstance(content, dict):
        raise InputError(f"The {what} {path} must be a mapping of fields, such as {example}.")
    return {str(key): value for key, value in content.items()}
