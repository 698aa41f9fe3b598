"""Measure prefill, decoding and memory of a checkpoint against its dense model, in pairs of runs.

Each model lives in a process of its own, so that its memory is its own. Both stay loaded and take
turns, one running while the other waits: what else the machine does then hits both alike. Who goes
first alternates. A speed is tokens per second, median over the runs; a ratio the median of the
ratios of the pairs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..base.arguments import typed
from ..base.device import Dtype, pick_device
from ..base.errors import CheckpointError, InputError
from ..report.report import FILE as REPORT
from ..report.report import read_report
from ..storage.checkpoint import folder_of

PROMPT, NEW = 512, 64


@dataclass(frozen=True)
class Against:
    """One quantity of the checkpoint and of the dense model.

    Attributes:
        pruned: median over the runs.
        dense: the same of the dense model.
        ratio: pruned over dense, the median of the pairs' ratios.
        runs: the pairs (pruned, dense), in their order.
    """

    pruned: float
    dense: float
    ratio: float
    runs: list[tuple[float, float]]

    @classmethod
    def of(cls, pairs: list[tuple[float, float]]) -> Against:
        """Summarise pairs of runs."""
        pruned, dense = zip(*pairs, strict=True)
        return cls(median(pruned), median(dense), median(p / d for p, d in pairs), pairs)


@dataclass(frozen=True)
class Bench:
    """Results of ``bench``.

    Attributes:
        prefill: tokens of the prompt per second, batch 1.
        decode: new tokens per second, greedy with the cache, batch 1.
        memory_bytes: highest resident memory of a run, loading aside: interpreter, libraries,
            weights, cache and activations; on CUDA what torch allocates there.
        weight_bytes: of parameters and buffers, tied ones once.
        parameters: of the model, tied ones once.
        prompt: tokens.
        new: tokens.
        dtype: of the weights.
        device: where they ran.
        threads: of torch.
        dense_model: what it was compared with.
    """

    prefill: Against
    decode: Against
    memory_bytes: Against
    weight_bytes: Against
    parameters: Against
    prompt: int
    new: int
    dtype: str
    device: str
    threads: int
    dense_model: str

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for ``--json``."""
        return asdict(self)


@typed
def bench(
    folder: str | Path,
    dense: str | Path | None = None,
    *,
    prompt: int | None = None,
    new: int = NEW,
    repeats: int = 5,
    threads: int | None = None,
    dtype: Dtype = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Bench:
    """Measure a checkpoint against the dense model that it was made from.

    >>> bench("pruned", "path/to/model", threads=2).decode.ratio

    Args:
        folder: the checkpoint, loaded as ``prunus.load`` does.
        dense: a folder, hub id or GGUF; None: what ``pruning_report.json`` names.
        prompt: tokens of the prompt, drawn at random; None: up to 512.
        new: tokens to write, of which the first belongs to prefill.
        repeats: pairs of runs, after one that is thrown away.
        threads: of torch in each process; None: torch's own choice.
        dtype: of the weights of both.
        device: where both run.
        trust_remote_code: run code that a checkpoint brings.
        say: told of every pair.

    Raises:
        InputError: a model that cannot be loaded, two that do not compare, lengths that do not
            fit.
    """
    if new < 2 or repeats < 1 or (prompt is not None and prompt < 1):
        raise InputError(
            "A run has a prompt of at least 1 token and writes at least 2, at least once; got "
            f"prompt {prompt}, new {new}, repeats {repeats}."
        )
    if threads is not None and threads < 1:
        raise InputError(f"threads is at least 1; got {threads}.")
    where = str(pick_device(device))
    models = (folder, _dense(Path(folder).expanduser()) if dense is None else dense)
    asked = {"dtype": dtype, "device": where, "threads": threads, "trust": trust_remote_code}
    with ExitStack() as stack:
        children = []
        for model in models:
            say(f"loading {model}")
            children.append(stack.enter_context(closing(_Child(model, asked))))
        facts = [child.facts for child in children]
        length = _check(facts, prompt, new)
        order = {"ids": [_drawn(length, min(f["vocabulary"] for f in facts))], "new": new}
        runs = []
        for turn in range(repeats + 1):  # the first pair warms caches up
            sides = (0, 1) if turn % 2 else (1, 0)
            found = {side: children[side].ask(order) for side in sides}
            if turn:
                runs.append((found[0], found[1]))
                say(f"pair {turn} of {repeats}: {_shown(found[0])} against {_shown(found[1])}")
    return _reckon(runs, facts, length, new, str(models[1]))


def _dense(folder: Path) -> str:
    """Return the dense model that the report of a pruned checkpoint names."""
    if folder.exists() and not (folder / REPORT).exists():
        raise InputError(f"{folder} has no {REPORT} to name its dense model; give --dense MODEL.")
    return read_report(folder).model


class _Child:
    """Process that holds one model; ``timed`` is the code that it runs."""

    def __init__(self, model: str | Path, asked: dict[str, Any]) -> None:
        place = str(folder_of(model).absolute())
        self._model = model
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prunus.judge.timed"],
            cwd=Path(__file__).parents[2],  # not the user's folder, whose files -m could import
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.facts = self.ask({**asked, "model": place})
        except BaseException:
            self.close()
            raise

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to an order."""
        stdin, stdout = self._process.stdin, self._process.stdout
        try:
            print(json.dumps(order), file=stdin, flush=True)
        except BrokenPipeError:
            pass  # its last answer says why
        line = stdout.readline() if stdout else ""
        answer = json.loads(line) if line else {"error": "its process ended (out of memory?)"}
        if "error" in answer:
            raise CheckpointError(f"{self._model} cannot be measured: {answer['error']}")
        return dict(answer)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def _check(facts: Sequence[dict[str, Any]], prompt: int | None, new: int) -> int:
    """Return the length of the prompt, after checking that the two models compare."""
    pruned, dense = facts
    if pruned["dtype"] != dense["dtype"]:
        raise InputError(
            f"The checkpoint is {pruned['dtype']}, the dense model {dense['dtype']}; that would "
            "be measured instead of the pruning. Give --dtype."
        )
    context = min((f["context"] for f in facts if f["context"]), default=None)
    if context is not None and (prompt or 1) + new > context:
        raise InputError(
            f"A prompt of {prompt or 1} and {new} new tokens do not fit a context of {context}; "
            "give a smaller --prompt or --new."
        )
    return prompt or min(PROMPT, context - new if context else PROMPT)


def _drawn(length: int, vocabulary: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (length,), generator=generator).tolist()


def _shown(run: dict[str, float]) -> str:
    return f"{run['prefill']:.2f} s + {run['decode']:.2f} s"


def _reckon(
    runs: Sequence[tuple[dict[str, float], dict[str, float]]],
    facts: Sequence[dict[str, Any]],
    length: int,
    new: int,
    dense: str,
) -> Bench:
    def speeds(step: str, tokens: int) -> Against:
        return Against.of([(tokens / p[step], tokens / d[step]) for p, d in runs])

    def fact(name: str) -> Against:
        return Against.of([(facts[0][name], facts[1][name])])

    return Bench(
        prefill=speeds("prefill", length),
        decode=speeds("decode", new - 1),
        memory_bytes=Against.of([(p["peak"], d["peak"]) for p, d in runs]),
        weight_bytes=fact("weight_bytes"),
        parameters=fact("parameters"),
        prompt=length,
        new=new,
        dtype=facts[0]["dtype"],
        device=facts[0]["device"],
        threads=facts[0]["threads"],
        dense_model=dense,
    )
