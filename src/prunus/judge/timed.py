"""Process that holds a model and times what it is told: ``python -m prunus.judge.timed``.

It reads one JSON object a line from stdin and answers each with one. The first says which model to
load and how to run it; every other is ``{"ids": [[…]], "new": N}``, answered by the seconds of one
prefill and of N − 1 decoding steps. The process ends with its stdin.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from typing import Any, Protocol

import torch
from torch import Tensor

from .greedy import cache_of
from .resident import forget_peak, peak_bytes, rest_bytes


class Timed(Protocol):
    """A model that runs in a way of its own."""

    def facts(self) -> dict[str, Any]:
        """Return what the parent must know of it: its size, and the inputs that it takes."""

    def run(self, ids: list[list[int]], new: int) -> dict[str, float]:
        """Time the prompts' forward, and ``new − 1`` greedy steps with the cache, in seconds."""


def main() -> None:
    """Serve until stdin ends; an error becomes the last answer."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    try:
        model = _made(json.loads(sys.stdin.readline()))
        answers.write(json.dumps(model.facts()) + "\n")
        for line in sys.stdin:
            answers.write(json.dumps(model.run(**json.loads(line))) + "\n")
    except Exception as error:  # for the parent to tell
        answers.write(json.dumps({"error": str(error) or type(error).__name__}) + "\n")
        sys.exit(1)


def _made(asked: dict[str, Any]) -> Timed:
    if asked["kind"] == "llama.cpp":
        from .llama_cpp import LlamaCpp

        return LlamaCpp(asked["model"], asked["threads"])
    return InTorch(asked)


class InTorch:
    """A transformers model, as it is or with layers of another kind."""

    def __init__(self, asked: dict[str, Any]) -> None:
        from . import comparators, traffic

        if asked["threads"] is not None:
            torch.set_num_threads(asked["threads"])
        self._model = _load(asked)
        self._counted = traffic.parameters(self._model)  # int8 would store a tied head twice
        if asked["kind"] == "csr":
            comparators.to_csr(self._model, _pruned(asked["model"]))
        if asked["kind"] == "int8":
            comparators.to_int8(self._model)

    def facts(self) -> dict[str, Any]:
        """Return its size, what a token reads, and the inputs that it takes."""
        from ..model.blocks import context_length
        from . import traffic

        model = self._model
        self.run([[0]], 2)  # so that weights which are mapped are there
        return {
            "parameters": self._counted,
            "weight_bytes": traffic.held_bytes(model),
            "read": traffic.read_bytes(model),
            "rest": rest_bytes(model.device),
            "vocabulary": model.get_input_embeddings().num_embeddings,
            "context": context_length(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "threads": torch.get_num_threads(),
            "kernels": _kernels(model),
        }

    @torch.inference_mode()
    def run(self, ids: list[list[int]], new: int) -> dict[str, float]:
        """Time one prefill and ``new − 1`` steps, all rows together."""
        model = self._model
        ids_BT = torch.tensor(ids, device=model.device)
        forget_peak(model.device)
        takes = inspect.signature(model.forward).parameters
        last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}  # as generate() does
        begun = _now(model)
        out = model(input_ids=ids_BT, use_cache=True, **last)
        next_B1 = _next(out.logits)
        prefilled = _now(model)
        for _ in range(new - 1):
            out = model(input_ids=next_B1, use_cache=True, **cache_of(out))
            next_B1 = _next(out.logits)
        done = _now(model)
        peak = peak_bytes(model.device)
        return {"prefill": prefilled - begun, "decode": done - prefilled, "peak": peak}


def _load(asked: dict[str, Any]) -> Any:
    from transformers import logging

    from ..runtime.load import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    more: dict[str, Any] = {}
    if asked["kind"].startswith("packed-"):
        more = {"packed": asked["kind"].removeprefix("packed-")}
    elif asked["kind"] == "2:4":
        more = {"sparse": "2:4"}
    return load(
        asked["model"],
        dtype=asked["dtype"],
        device=asked["device"],
        trust_remote_code=asked["trust"],
        **more,
    )


def _kernels(model: Any) -> str | None:
    """Return the instruction set that multiplies packed layers; None: there are none."""
    from ..runtime.kernels.library import library
    from ..runtime.packed_linear import PackedLinear

    if not any(isinstance(module, PackedLinear) for module in model.modules()):
        return None
    found = library() if model.device.type == "cpu" else None
    return "none" if found is None else found.name


def _pruned(folder: str) -> list[str]:
    """Name the layers that the report of a checkpoint calls pruned; none without a report."""
    from pathlib import Path

    from ..report.report import FILE, read_report

    if not (Path(folder) / FILE).exists():
        return []
    return [layer.name for layer in read_report(Path(folder)).layers]


def _next(logits_BTV: Tensor) -> Tensor:
    return logits_BTV[:, -1:].argmax(-1)


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
