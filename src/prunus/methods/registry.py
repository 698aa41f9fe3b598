"""Names for methods from outside of the package: ``prunus.register``, and plug-ins.

Another package names the modules that register its methods in its ``pyproject.toml``::

    [project.entry-points."prunus.methods"]
    peak = "its_package.peak"

They are imported when a name is asked for that the table does not have, and for ``prunus methods``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import entry_points
from typing import TypeVar

from ..base.errors import InputError, PluginWarning, TakenNameError, UnknownNameError, first_line
from .own import check_part, lifted
from .table import ALLOCATIONS, METHODS, QUANTIZE, STRUCTURED, Method

GROUP = "prunus.methods"
T = TypeVar("T")
_origins: dict[str, str] = {}  # where each registered name comes from


def register(
    name: str, *, paper: str = "", url: str = "", differs: str = "", allocation: str = "uniform"
) -> Callable[[T], T]:
    """Give a method of your own a name, for Python and for the command line.

    >>> @prunus.register("peak", paper="Author et al. 2027, Peaks", url="https://arxiv.org/abs/…")
    ... @dataclass(frozen=True)
    ... class Peak: ...

    It stands in the table as the package's own do: ``--pattern``, ``--set``, ``--allocation`` and
    ``prunus methods`` know it. For the command line see ``prunus.methods`` entry points above.

    Args:
        name: letters, digits, ``-`` and ``_``.
        paper: authors, year, title.
        url: where to read it.
        differs: what differs from the authors' code.
        allocation: how much of each layer is removed, unless another is requested.

    Returns:
        A decorator for a class of scores, layer pruners or block pruners that can be made without
        arguments; or for an object. It returns what it is given.

    Raises:
        TakenNameError: another method has that name.
        InputError: it is none of these.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise InputError(
            f"A method's name may only contain letters, digits, - and _; got {name!r}."
        )
    if allocation not in ALLOCATIONS:
        raise UnknownNameError("allocation", allocation, ALLOCATIONS)

    def put(made: T) -> T:
        part = _made(made) if isinstance(made, type) else made
        check_part(part)
        kind = type(part)
        origin = f"{kind.__module__}.{kind.__qualname__}"
        if name in {*METHODS, *STRUCTURED, QUANTIZE} and _origins.get(name) != origin:
            raise TakenNameError(
                f"A method {name} already exists; register {kind.__qualname__} of "
                f"{kind.__module__} under another name."
            )
        _origins[name] = origin  # a cell of a notebook that is run again registers it anew
        build = partial(lifted, part, instead=True)
        METHODS[name] = Method(paper, url, build, differs, allocation)
        return made

    return put


def _made(kind: type) -> object:
    try:
        return kind()
    except TypeError as error:
        raise InputError(
            f"{kind.__name__} cannot be made without arguments ({first_line(error)}). Give its "
            "fields defaults, or register an object."
        ) from None


@cache
def load_plugins() -> None:
    """Import what other packages name in the group, once. A broken module causes a warning.

    Raises:
        TakenNameError: two methods have one name.
    """
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else "an unnamed package"
        try:
            point.load()
        except TakenNameError as error:
            said = f"{error} (It is the plug-in {point.name} of the package {package}.)"
            raise TakenNameError(said) from None
        except Exception as error:
            said = f"{type(error).__name__}: {first_line(error)}"
            _warn(f"The plug-in {point.name} of the package {package} does not load ({said}).")
            continue
        if point.name not in METHODS:
            _warn(f"The plug-in {point.name} of the package {package} registers no such method.")


def _warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=4)
