"""Every error that prunus raises on purpose.

    PrunusError
    ├── InputError (also a ValueError)    what came cannot be used; the message names the cure
    │   ├── UnknownNameError              a method, source or setting that no table holds
    │   ├── TakenNameError                a name to register that another method has
    │   ├── PatternError                  a sparsity pattern that a layer or a request cannot have
    │   ├── CalibrationError              no text, too little text, text that cannot be read
    │   ├── CheckpointError               a checkpoint that cannot be read or written
    │   │   └── NotVerifiedError          one that was written is not what it claims
    │   ├── RoomError                     more memory or disk than there is
    │   └── UnsupportedModelError         a model whose structure prunus cannot handle yet
    ├── NumericalError                    NaN or inf in weights, activations or scores
    ├── MissingStatisticError             a part read a statistic that its ``needs`` do not name
    └── TeamError                         another process of the run failed, or is gone

The command line prints the message of any of them as one line and exits with code 2. Beside them
there are two warnings, ``CheckpointWarning`` and ``PluginWarning``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches


class PrunusError(Exception):
    """The root: catch it to catch everything that prunus raises on purpose."""


class InputError(PrunusError, ValueError):
    """Input that cannot be used; the message says what was expected and what to change."""


class UnknownNameError(InputError):
    """A name that no table holds; the message suggests the nearest and lists all others."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(names)}.")


class TakenNameError(InputError):
    """A name for a new method that another method already has."""


class PatternError(InputError):
    """A sparsity pattern that this layer or this request cannot have."""


class CalibrationError(InputError):
    """Calibration or evaluation text that is missing, too short or unreadable."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, or a place where none can be written."""


class NotVerifiedError(CheckpointError):
    """A written checkpoint that failed its verification; the pruned blocks are kept."""


class RoomError(InputError):
    """A run that would need more memory or disk than there is."""


class UnsupportedModelError(InputError):
    """A model whose structure prunus cannot handle yet."""


class CheckpointWarning(UserWarning):
    """Something about a checkpoint that its owner should know."""


class PluginWarning(UserWarning):
    """A method of another package that cannot be used."""


class NumericalError(PrunusError):
    """NaN or inf where a finite number is needed."""


class MissingStatisticError(PrunusError):
    """A statistic was read that nobody asked to gather."""


class TeamError(PrunusError):
    """Another process of a run under ``torchrun`` failed or is gone.

    Attributes:
        said: whether that process says so itself.
    """

    def __init__(self, message: str, said: bool = False) -> None:
        super().__init__(message)
        self.said = said


def other_shape(name: str, found: Iterable[int], expected: Iterable[int]) -> str:
    """Return a sentence for a tensor whose shape differs from its model's."""
    shown = " × ".join(map(str, found)), " × ".join(map(str, expected))
    return (
        f"{name} is {shown[0]} in the files, and {shown[1]} in the model that config.json "
        "describes. Get files that belong together."
    )


def first_line(error: Exception) -> str:
    """Return the first line of another library's exception; its type if it says nothing."""
    lines = str(error).split("\n")
    first = next((line.strip() for line in lines if line.strip()), type(error).__name__)
    if first.endswith(":"):  # what it announces comes on the next lines
        first = " ".join(str(error).split()).split(". ")[0]
    return first.rstrip(".: ")


def one_of(part: object, **choices: Iterable[str]) -> None:
    """Raise InputError for a field of ``part`` whose value is none of its choices."""
    for name, known in choices.items():
        value = getattr(part, name)
        if value not in known:
            raise InputError(f"{name} is {' or '.join(known)}, not {value!r}.")


def at_least(least: float, **numbers: float) -> None:
    """Raise InputError, with the name, for a number below ``least``, one that is none, or inf."""
    for name, number in numbers.items():
        if not least <= number < math.inf:
            finite = ", and finite" if number == math.inf else ""
            raise InputError(f"{name} is {number:g}; it must be {least:g} or more{finite}.")
