"""A method from outside of the package: a Python object in place of a row's name."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from ..base.errors import InputError, PatternError
from ..maths.contracts import BlockPruner, LayerPruner, Pattern, Score
from ..maths.patterns import Unstructured, parse_pattern
from ..maths.pruners import Compose, EachLayer, InOrder, OnGrid
from ..maths.views import LayerView
from .table import METHODS, Method

TABLE = tuple(METHODS.values())  # before anything is registered
KINDS = (
    "A Score has needs and __call__(weight_OI, stats); a LayerPruner has needs, pattern and "
    "__call__(weight_OI, stats, sparsity); a BlockPruner has needs, ordering, pattern(layer), "
    "check(block, plan) and __call__(block, stats, plan)"
)


def own_method(given: object) -> tuple[str, Method]:
    """Return the name and the row of a Score, a LayerPruner or a BlockPruner.

    The name is the import path of its class: of the score, where that is what it consists of.

    Raises:
        InputError: it is none of these; says what is missing.
    """
    check_part(given)

    def build(pattern: Pattern | None) -> BlockPruner:
        return lifted(given, pattern)

    kind = type(_core(given))
    return f"{kind.__module__}.{kind.__qualname__}", Method("", "", build, "")


def own_pattern(given: object) -> str | None:
    """Return the object's own pattern as a recipe spells it; None if it has no such pattern."""
    pattern = getattr(given.pruner if isinstance(given, EachLayer) else given, "pattern", None)
    if not _is_pattern(pattern):
        return None
    try:
        return str(pattern) if parse_pattern(str(pattern)) == pattern else None
    except PatternError:
        return None


def lifted(given: Any, pattern: Pattern | None, instead: bool = False) -> BlockPruner:
    """Return the BlockPruner that the loop runs.

    Args:
        given: a Score, which is composed with ``pattern``, else with the pattern that it names
            itself, else with the whole layer; a LayerPruner, or a BlockPruner.
        pattern: asked for; None: its own.
        instead: a pattern of its own is a default, which ``pattern`` takes the place of.

    Raises:
        InputError: two patterns that disagree.
    """
    kind = _kind(given)
    if kind == "score":
        return EachLayer(Compose(given, pattern or natural(given)))
    lift = EachLayer(given) if kind == "layer" else cast(BlockPruner, given)
    own = lift.pruner.pattern if isinstance(lift, EachLayer) else None
    if pattern is None or pattern == own:
        return lift
    part = lift.pruner if isinstance(lift, EachLayer) else None
    if instead and is_dataclass(part) and "pattern" in {f.name for f in fields(part)}:
        changed = cast(LayerPruner, replace(cast(Any, part), pattern=pattern))
        return replace(cast(EachLayer, lift), pruner=changed)
    has = f"has the pattern {own}" if own is not None else "has patterns of its own"
    raise InputError(
        f"{type(_core(given)).__name__} {has}, but pattern={pattern} is requested. Leave one out."
    )


def natural(score: Score) -> Pattern:
    """Return the groups of a known score's paper; a score of your own may name a ``pattern``."""
    for row in TABLE:
        known = row.build(None)
        part = known.pruner if isinstance(known, EachLayer) else None
        if isinstance(part, Compose) and type(part.score) is type(score):
            return part.pattern
    own = getattr(score, "pattern", None)
    return cast(Pattern, own) if _is_pattern(own) else Unstructured("layer")


def check_part(given: object) -> None:
    """Raise InputError if it is neither a Score nor a LayerPruner nor a BlockPruner."""
    name = type(given).__name__
    if isinstance(given, type):
        raise InputError(
            f"method is the class {given.__name__}; give an object of it: {given.__name__}(…)."
        )
    if _kind(given) is None:
        raise InputError(
            f"method is a name, a Score, a LayerPruner or a BlockPruner; got {_article(given)}. "
            f"{KINDS}."
        )
    needs: Any = getattr(given, "needs", ())
    ok = isinstance(needs, tuple) and all(
        isinstance(kind, type) and callable(getattr(kind, "update", None)) for kind in needs
    )
    if not ok:
        raise InputError(
            f"{name}.needs is a tuple of statistics, classes with update(inputs_TI), such as "
            f"(ColumnNorm,); got {needs!r}."
        )


def check_written(pruner: BlockPruner, layers: Iterable[LayerView]) -> None:
    """Raise InputError if a checkpoint would claim a pattern that ``verify`` cannot check."""
    for layer in layers:
        pattern = pruner.pattern(layer)
        if type(pattern).__module__ != parse_pattern.__module__:
            raise InputError(
                f"{layer.name} would have the pattern {type(pattern).__name__}, which "
                "prunus.verify cannot check. Use one of prunus.maths.patterns, or prune a model in "
                "memory, without output=."
            )


def check_merges(pruner: BlockPruner) -> None:
    """Raise InputError if a statistic cannot be merged from several processes."""
    for kind in pruner.needs:
        if not hasattr(kind, "merge"):
            raise InputError(
                f"{kind.__name__} has no merge(team), which a run under torchrun needs. Add it, or "
                "run one process."
            )


def check_weighs(pruner: BlockPruner) -> None:
    """Raise InputError if a statistic cannot let some tokens count more than others."""
    for kind in pruner.needs:
        if len(inspect.signature(kind.update).parameters) < 3:  # self, inputs, weights
            raise InputError(
                f"{kind.__name__} has no update(inputs_TI, weights_T), which --set "
                "calibration.answers needs. Add it, or leave that setting out."
            )


def spelled(pruner: object) -> str:
    """Return the object's ``repr``, the same in every process, also for parts without one."""
    text = repr(pruner)
    for part in outside(pruner):
        if type(part).__repr__ is object.__repr__:
            inside = ", ".join(f"{key}={value!r}" for key, value in vars(part).items())
            text = text.replace(object.__repr__(part), f"{type(part).__qualname__}({inside})")
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def code_of(pruner: object) -> str | None:
    """Hash the source of its parts from outside of the package, where that can be read.

    None where all are the package's own, whose version says what they are.
    """
    kinds = dict.fromkeys(type(part) for part in outside(pruner))
    if not kinds:
        return None
    digest = hashlib.sha256()
    for kind in kinds:
        try:
            source = inspect.getsource(kind)
        except (OSError, TypeError):  # typed into an interpreter
            source = f"{kind.__module__}.{kind.__qualname__}"
        digest.update(source.encode())
    return digest.hexdigest()


def outside(part: object) -> Iterator[object]:
    """Collect the parts of a composition whose classes are defined outside of the package."""
    if type(part).__module__.split(".")[0] not in (__name__.split(".")[0], "builtins", "torch"):
        yield part
    if is_dataclass(part):
        for field in fields(part):
            value = getattr(part, field.name, None)
            for item in value.values() if isinstance(value, Mapping) else (value,):
                if hasattr(item, "__dict__") and not isinstance(item, type):
                    yield from outside(item)


def _core(given: Any) -> Any:
    """Return the part that a composition is named after."""
    while isinstance(given, EachLayer | InOrder | OnGrid | Compose):
        given = given.score if isinstance(given, Compose) else given.pruner
    return given


def _kind(given: Any) -> str | None:
    """Tell by attributes and signature: "score", "layer" or "block"; None if it is none of them."""
    if isinstance(given, type) or not callable(given) or not hasattr(given, "needs"):
        return None
    pattern = getattr(given, "pattern", None)
    if _takes(given, 3):
        if callable(pattern) and callable(getattr(given, "check", None)):
            return "block" if hasattr(given, "ordering") else None
        return "layer" if _is_pattern(pattern) else None
    return "score" if _takes(given, 2) else None


def _takes(given: Any, arguments: int) -> bool:
    try:
        inspect.signature(given).bind(*range(arguments))
    except (TypeError, ValueError):
        return False
    return True


def _is_pattern(pattern: object) -> bool:
    return all(callable(getattr(pattern, name, None)) for name in ("mask", "check", "at"))


def _article(given: object) -> str:
    name = type(given).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
