"""Process that holds a model and times what it is told: ``python -m prunus.judge.timed``.

It reads one JSON object a line from stdin and answers each with one. The first says which model to
load; every other is ``{"ids": [[…]], "new": N}``, answered by the seconds of one prefill and of
N − 1 decoding steps. The process ends with its stdin.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def main() -> None:
    """Serve until stdin ends; an error becomes the last answer."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    try:
        asked = json.loads(sys.stdin.readline())
        if asked["threads"] is not None:
            torch.set_num_threads(asked["threads"])
        model = _load(asked)
        answers.write(json.dumps(_facts(model)) + "\n")
        for line in sys.stdin:
            answers.write(json.dumps(_run(model, **json.loads(line))) + "\n")
    except Exception as error:  # for the parent to tell
        answers.write(json.dumps({"error": str(error) or type(error).__name__}) + "\n")
        sys.exit(1)


def _load(asked: dict[str, Any]) -> Any:
    from transformers import logging

    from ..runtime.load import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    trust = asked["trust"]
    return load(
        asked["model"], dtype=asked["dtype"], device=asked["device"], trust_remote_code=trust
    )


def _facts(model: Any) -> dict[str, Any]:
    """Return what the parent must know of a model: its size, and the inputs that it takes."""
    from ..model.blocks import context_length

    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()] if t.numel()}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": sum(t.numel() * t.itemsize for t in tensors.values()),
        "vocabulary": model.get_input_embeddings().num_embeddings,
        "context": context_length(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }


@torch.inference_mode()
def _run(model: Any, ids: list[list[int]], new: int) -> dict[str, float]:
    """Time the prompt's forward, and ``new − 1`` greedy steps with the cache, in seconds."""
    ids_BT = torch.tensor(ids, device=model.device)
    _reset_peak(model)
    takes = inspect.signature(model.forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}  # as generate() does
    begun = _now(model)
    out = model(input_ids=ids_BT, use_cache=True, **last)
    next_B1 = _next(out.logits)
    prefilled = _now(model)
    for _ in range(new - 1):
        out = model(input_ids=next_B1, use_cache=True, **_cache(out))
        next_B1 = _next(out.logits)
    done = _now(model)
    return {"prefill": prefilled - begun, "decode": done - prefilled, "peak": _peak_bytes(model)}


def _cache(out: Any) -> dict[str, Any]:
    """Return the cache that a step hands to the next one, under the name that its family uses."""
    for name in ("past_key_values", "cache_params", "state"):
        if getattr(out, name, None) is not None:
            return {name: out[name]}
    raise TypeError(f"{type(out).__name__} has no cache that decoding could go on from.")


def _next(logits_BTV: Tensor) -> Tensor:
    return logits_BTV[:, -1:].argmax(-1)


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _reset_peak(model: Any) -> None:
    """Forget what loading took, where the system can."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that of the whole life


def _peak_bytes(model: Any) -> int:
    """Return the peak of CUDA memory, or of the resident set: VmHWM, which exec starts afresh."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
