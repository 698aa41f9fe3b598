"""Prunus prunes pretrained language models without retraining.

import prunus
result = prunus.prune("path/to/model", method="ria", sparsity=0.5, output="pruned")
prunus.evaluate("pruned", "wiki.test.raw").perplexity
"""

from __future__ import annotations

from ._version import __version__

TYPE_CHECKING = False  # as type checkers know it; typing itself would take half of the start
if TYPE_CHECKING:
    from typing import Any

    from .api import evaluate, load, plan, prune, quantize
    from .errors import PrunusError
    from .export import write_gguf
    from .observer import Observer, Silent
    from .recipe import Recipe
    from .registry import register
    from .report.picture import plot
    from .result import Result
    from .runtime.bench import bench
    from .simulator.table import simulate
    from .verification import verify

__all__ = [
    "Observer",
    "PrunusError",
    "Recipe",
    "Result",
    "Silent",
    "__version__",
    "bench",
    "evaluate",
    "load",
    "plan",
    "plot",
    "prune",
    "quantize",
    "register",
    "simulate",
    "verify",
    "write_gguf",
]

# Imported when first used: torch and transformers take seconds, `prunus --help` should not.
_HOME = {
    "Observer": "observer",
    "PrunusError": "errors",
    "Recipe": "recipe",
    "Result": "result",
    "Silent": "observer",
    "bench": "runtime.bench",
    "evaluate": "api",
    "load": "api",
    "plan": "api",
    "plot": "report.picture",
    "prune": "api",
    "quantize": "api",
    "register": "registry",
    "simulate": "simulator.table",
    "verify": "verification",
    "write_gguf": "export",
}
_PARTS = (
    *("allocation", "errors", "evaluation", "export", "patterns", "permutation", "pruners"),
    *("quantization", "refinements", "runtime", "scores", "simulator", "stats", "updates"),
)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _PARTS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The API: what users type, without what this file needs itself."""
    return sorted({*__all__, *_PARTS, "__doc__", "__file__", "__name__", "__path__"})
