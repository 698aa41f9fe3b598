"""Who watches a run: progress bars, logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..report.layer import LayerReport

LOOK = "look "  # how a step begins while the dense model is looked at


class Observer(Protocol):
    """Told what happens, for progress bars."""

    def say(self, message: str) -> None:
        """Take note of a sentence for the user."""
        ...

    def block(self, index: int, total: int, name: str, step: str) -> None:
        """Hear that a step of a block begins.

        "answer" (of a prompt), "order", "learn", "record", "prune", "reconstruct" or "advance";
        "search", where index and total count questions about candidates, and samples are blocks;
        where heads and neurons go, also "gradients" (of the whole model), "recover", "compare"
        (heads), and "look record" … while the dense model is looked at as a whole.
        """
        ...

    def sample(self, done: int, total: int) -> None:
        """Hear that a calibration sample went through the block, in the step that runs."""
        ...

    def layer(self, report: LayerReport) -> None:
        """Hear that a layer has been pruned and written."""
        ...

    def done(self) -> None:
        """Hear that the last block is done."""
        ...


class Looking:
    """Pass on what happens while the dense model is looked at as a whole, marked as that."""

    def __init__(self, observer: Observer) -> None:
        self._to = observer

    def say(self, message: str) -> None:
        """Pass it on."""
        self._to.say(message)

    def block(self, index: int, total: int, name: str, step: str) -> None:
        """Pass it on, marked."""
        self._to.block(index, total, name, f"{LOOK}{step}")

    def sample(self, done: int, total: int) -> None:
        """Pass it on."""
        self._to.sample(done, total)

    def layer(self, report: LayerReport) -> None:
        """Pass it on."""
        self._to.layer(report)

    def done(self) -> None:
        """Pass it on."""
        self._to.done()


class Silent:
    """Watches nothing; a base for observers that want to hear a part of it."""

    def say(self, message: str) -> None:
        """Ignore it."""

    def block(self, index: int, total: int, name: str, step: str) -> None:
        """Ignore it."""

    def sample(self, done: int, total: int) -> None:
        """Ignore it."""

    def layer(self, report: LayerReport) -> None:
        """Ignore it."""

    def done(self) -> None:
        """Ignore it."""
