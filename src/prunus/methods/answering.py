"""How the model answers prompts for its calibration text: ``--answers`` and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..base.errors import InputError
from .settings import set_fields

LENGTH = 256  # tokens of an answer at most
PARTS = ("answers.", "calibration.")  # how its settings begin


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen, token by token.

    Attributes:
        temperature: divides the logits; 0: the likeliest token each time (greedy).
        top_p: sample from the likeliest tokens with this probability in all; 1: from all.
    """

    temperature: float = 0.7
    top_p: float = 1.0


@dataclass(frozen=True)
class Shares:
    """What counts how much in the statistics.

    Attributes:
        answers: share of the statistics' weight that the tokens of answers have; 0: every token
            counts alike.
    """

    answers: float = 0.0


@dataclass(frozen=True)
class Answering:
    """How the model answers.

    Attributes:
        length: tokens of an answer at most.
        answers: how they are chosen.
        calibration: what counts how much.
    """

    length: int = LENGTH
    answers: Sampling = field(default_factory=Sampling)
    calibration: Shares = field(default_factory=Shares)

    @classmethod
    def of(cls, length: int | None, settings: Mapping[str, Any]) -> Answering:
        """Check and combine what a recipe says.

        Raises:
            InputError: a value out of its range, or of the wrong kind.
        """
        found: Answering = set_fields(cls(LENGTH if length is None else length), settings)
        heat, top_p = found.answers.temperature, found.answers.top_p
        if not 0 <= heat <= 10:
            raise InputError(
                f"--set answers.temperature={heat:g}: expected 0 (the likeliest token) to 10."
            )
        if not 0 < top_p <= 1:
            raise InputError(f"--set answers.top_p={top_p:g}: expected above 0, at most 1.")
        if not 0 <= found.calibration.answers <= 1:
            raise InputError(
                f"--set calibration.answers={found.calibration.answers:g}: expected a share of the "
                "statistics' weight, 0 to 1, such as 0.5; 0 lets every token count alike."
            )
        return found


def of_text(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a recipe's settings that are about answers, not about the method."""
    return {path: value for path, value in settings.items() if path.startswith(PARTS)}
