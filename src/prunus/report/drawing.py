"""Text in pictures: any name of a model or folder, in the fonts that this machine has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..base.errors import CheckpointWarning

FONT = "DejaVu Sans"  # matplotlib's own


@contextmanager
def any_text(*texts: str) -> Iterator[None]:
    """Draw names in other scripts by the fonts that have them; say once what no font has."""
    from matplotlib import rc_context

    with (
        warnings.catch_warnings(record=True) as said,
        rc_context({"font.family": [FONT, *_fonts({ord(x) for text in texts for x in text})]}),
    ):
        warnings.simplefilter("always")
        yield
    missing = [x for x in said if str(x.message).startswith("Glyph ")]
    for other in said:
        if other not in missing:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    if missing:
        warnings.warn(
            "No font of this machine has all characters of the names in this picture; boxes stand "
            "for some. Install a font that has them (such as Noto Sans CJK), or give --title.",
            CheckpointWarning,
            stacklevel=4,
        )


def plain(name: str) -> str:
    """Escape a name so that matplotlib draws it as it is, neither as a formula nor not at all."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped  # "_" hides it from a legend


def _fonts(characters: set[int]) -> list[str]:
    """Return fonts that have the characters that matplotlib's own lacks, as few as possible."""
    from matplotlib.font_manager import findfont, fontManager, get_font

    found: list[str] = []
    lacking = {c for c in characters if c > 32} - get_font(findfont(FONT)).get_charmap().keys()
    for font in fontManager.ttflist:
        if not lacking:
            break
        if "LastResort" in font.fname:  # has every character, as a box
            continue
        has = lacking & get_font(font.fname).get_charmap().keys()
        if has:
            found.append(font.name)
            lacking -= has
    return found
