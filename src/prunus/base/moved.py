"""Keep the names under which parts were imported before they moved.

``from prunus.scores import Wanda`` gives the very objects of ``prunus.maths.scores``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # as type checkers know it; these imports would double the start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

PACKAGE = __name__.partition(".")[0]
HOMES = {
    "allocation": "maths.shares",
    "calibration": "text",
    "errors": "base.errors",
    "evaluation": "judge.perplexity",
    "export": "storage.gguf",
    "parallel": "base.team",
    "patterns": "maths.patterns",
    "permutation": "maths.orders",
    "pruners": "maths.pruners",
    "quantization": "maths.grids",
    "refinements": "maths.refinements",
    "scores": "maths.scores",
    "simulator": "judge.vitcod",
    "stats": "maths.stats",
    "updates": "maths.updates",
}
"""Where each part lives now, by the name that it had in the package."""


class _Moved:
    """A finder that imports a module from its home under its earlier name too."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a part that moved; None for everything else."""
        package, _, rest = name.partition(".")
        part, _, inside = rest.partition(".")
        if package != PACKAGE or part not in HOMES:
            return None
        home = ".".join(filter(None, (PACKAGE, HOMES[part], inside)))
        return ModuleSpec(name, self, origin=home)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module itself."""
        module = import_module(str(spec.origin))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back: the import system has put the new one there."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def keep_names() -> None:
    """Let the import system find parts under their earlier names."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())
