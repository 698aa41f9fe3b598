"""The site has pages and no sources: a link that leaves docs/ becomes its text.

tests/laws/test_readme.py checks that such links lead to files; mkdocs checks all others.
"""

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page without its links to files outside of docs/."""
    folder = posixpath.dirname(page.file.src_uri)

    def shown(link: re.Match[str]) -> str:
        text, target = link.groups()
        outside = posixpath.normpath(posixpath.join(folder, target)).startswith("..")
        return text if outside else link.group()

    return LINK.sub(shown, markdown)
