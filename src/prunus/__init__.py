"""Prunus prunes pretrained language models without retraining.

import prunus
result = prunus.prune("path/to/model", method="ria", sparsity=0.5, output="pruned")
prunus.evaluate("pruned", "wiki.test.raw").perplexity
"""

from __future__ import annotations

from ._version import __version__
from .base.moved import HOMES, keep_names

TYPE_CHECKING = False  # as type checkers know it; typing itself would take half of the start
if TYPE_CHECKING:
    from typing import Any

    from .api import evaluate, evaluate_all, plan, prune, quantize
    from .base.errors import PrunusError
    from .judge.bench import bench
    from .judge.cycles import simulate
    from .judge.diff import diff
    from .judge.verify import verify
    from .methods.registry import register
    from .recipe import Recipe
    from .report.picture import plot
    from .run.finish import Result
    from .run.observer import Observer, Silent
    from .runtime.load import load
    from .storage.gguf import write_gguf
    from .storage.packed_export import write_packed_checkpoint

__all__ = [
    "Observer",
    "PrunusError",
    "Recipe",
    "Result",
    "Silent",
    "__version__",
    "bench",
    "diff",
    "evaluate",
    "evaluate_all",
    "load",
    "plan",
    "plot",
    "prune",
    "quantize",
    "register",
    "simulate",
    "verify",
    "write_gguf",
    "write_packed_checkpoint",
]

# Imported when first used: torch and transformers take seconds, `prunus --help` should not.
_HOME = {
    "Observer": "run.observer",
    "PrunusError": "base.errors",
    "Recipe": "recipe",
    "Result": "run.finish",
    "Silent": "run.observer",
    "bench": "judge.bench",
    "diff": "judge.diff",
    "evaluate": "api",
    "evaluate_all": "api",
    "load": "runtime.load",
    "plan": "api",
    "plot": "report.picture",
    "prune": "api",
    "quantize": "api",
    "register": "methods.registry",
    "simulate": "judge.cycles",
    "verify": "judge.verify",
    "write_gguf": "storage.gguf",
    "write_packed_checkpoint": "storage.packed_export",
}
_FOLDERS = (
    *("base", "judge", "maths", "methods", "model", "report", "run", "runtime", "storage", "text"),
)

keep_names()


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _FOLDERS or name in HOMES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the API: what users type, without what this file needs itself."""
    return sorted({*__all__, *HOMES, "__doc__", "__file__", "__name__", "__path__"})
