"""Measure prefill, decoding and memory of the ways to run a checkpoint against its dense model.

Each way lives in a process of its own, so that its memory is its own. All stay loaded and take
turns, one running while the others wait: what else the machine does then hits all alike. Who goes
first rotates. A speed is tokens per second, median over the turns; a ratio the median of the ratios
to the dense model in the same turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from ..base.arguments import typed
from ..base.device import Dtype, pick_device
from ..base.errors import InputError
from ..report.report import FILE as REPORT
from ..report.report import read_report
from .measured import Against, Bench, Model, Row
from .traffic import Bound
from .turns import Child, turns
from .ways import DENSE, LLAMA_CPP, PRUNED, Way, counts, disk_bytes, names, ways_of

PROMPT, NEW = 512, 64


@typed
def bench(
    folder: str | Path,
    dense: str | Path | None = None,
    *,
    ways: str | Sequence[str] = (PRUNED,),
    batch: int | str | Sequence[int] = 1,
    prompt: int | str | Sequence[int] | None = None,
    new: int = NEW,
    repeats: int = 5,
    threads: int | None = None,
    dtype: Dtype = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Bench:
    """Measure ways to run a checkpoint against the dense model that it was made from.

    >>> bench("pruned", "path/to/model", ways="packed-bf16", threads=2).decode.ratio

    Args:
        folder: the checkpoint, loaded as ``prunus.load`` does.
        dense: a folder, hub id or GGUF; None: what ``pruning_report.json`` names.
        ways: to run it, beside the dense model: ``pruned`` (as it is), ``packed-bf16`` and others
            (``prunus.load(…, packed=)``), ``csr``, ``int8`` (the dense model, quantised by torch),
            ``2:4``, ``llama.cpp=FILE.gguf``. ``KIND=CHECKPOINT`` runs another checkpoint.
        batch: how many rows at once; several: one after the other.
        prompt: tokens of each row's prompt, drawn at random; several: one after the other; None:
            up to 512.
        new: tokens to write, of which the first belongs to prefill.
        repeats: turns, after one that is thrown away.
        threads: of torch in each process; None: torch's own choice.
        dtype: of all models; ``csr`` and ``int8`` are float32. A way in another dtype than the
            dense model is compared with the dense model in its own.
        device: where all run.
        trust_remote_code: run code that a checkpoint brings.
        say: told of every turn.

    Raises:
        InputError: a way that cannot run here, a model that cannot be loaded, two that do not
            compare, lengths that do not fit.
    """
    prompts = None if prompt is None else counts("prompt", prompt)
    batches = counts("batch", batch)
    _check_numbers(new, repeats, threads)
    where = str(pick_device(device))
    named = _dense(Path(folder).expanduser()) if dense is None else dense
    chosen = ways_of(names(ways), folder, named, dtype, where)
    asked = {"device": where, "threads": threads, "trust": trust_remote_code}
    with ExitStack() as stack:

        def load(way: Way) -> Child:
            say(f"loading {way.model}" + ("" if way.kind in (DENSE, PRUNED) else f" as {way.kind}"))
            return stack.enter_context(closing(Child(way, asked)))

        children = [load(way) for way in chosen]
        _check_dtypes(children)
        children += [load(way) for way in _other_dense(children)]
        lengths = _lengths([child.facts for child in children], prompts, new)
        rows: list[Row] = []
        for rows_B, length in ((b, t) for b in batches for t in lengths):
            rows += _measured(children, (rows_B, length, new), repeats, say)
    return Bench(
        models=_models(children),
        rows=rows,
        new=new,
        repeats=repeats,
        device=children[0].facts["device"],
        threads=children[0].facts["threads"],
        dense_model=str(named),
    )


def _check_numbers(new: int, repeats: int, threads: int | None) -> None:
    if new < 2 or repeats < 1:
        raise InputError(
            f"A run writes at least 2 tokens, at least once; got new {new}, repeats {repeats}."
        )
    if threads is not None and threads < 1:
        raise InputError(f"threads is at least 1; got {threads}.")


def _dense(folder: Path) -> str:
    """Return the dense model that the report of a pruned checkpoint names."""
    if folder.exists() and not (folder / REPORT).exists():
        raise InputError(f"{folder} has no {REPORT} to name its dense model; give --dense MODEL.")
    return read_report(folder).model


def _check_dtypes(children: Sequence[Child]) -> None:
    """Raise InputError for a checkpoint whose files have another dtype than the dense model's."""
    dense = children[0].facts["dtype"]
    for child in children[1:]:
        found, way = child.facts["dtype"], child.way
        if way.kind != LLAMA_CPP and not way.own_dtype and found != dense:
            raise InputError(
                f"The checkpoint is {found}, the dense model {dense}; that would be measured "
                "instead of the pruning. Give --dtype."
            )


def _other_dense(children: Sequence[Child]) -> list[Way]:
    """Return the dense model in each dtype that a way chose and it does not have yet."""
    dense = children[0]
    others = {child.facts["dtype"] for child in children[1:] if child.way.own_dtype}
    return [
        Way(f"{DENSE}-{dtype}", DENSE, dense.way.model, dtype, own_dtype=True)
        for dtype in sorted(others - {dense.facts["dtype"]})
    ]


def _lengths(facts: Sequence[Mapping[str, Any]], prompts: list[int] | None, new: int) -> list[int]:
    """Return the lengths of the prompts, after checking that they fit all models."""
    context = min((f["context"] for f in facts if f["context"]), default=None)
    longest = max(prompts or [1])
    if context is not None and longest + new > context:
        raise InputError(
            f"A prompt of {longest} and {new} new tokens do not fit a context of {context}; "
            "give a smaller --prompt or --new."
        )
    return prompts or [min(PROMPT, context - new if context else PROMPT)]


def _measured(
    children: Sequence[Child],
    sizes: tuple[int, int, int],
    repeats: int,
    say: Callable[[str], None],
) -> list[Row]:
    """Let all take their turns at one batch size and length."""
    batch, length, new = sizes
    least = min(child.facts["vocabulary"] for child in children)
    order = {"ids": _drawn(batch, length, least), "new": new}
    found = []
    for turn in turns(children, order, repeats):
        found.append(turn)
        shown = ", ".join(
            f"{child.way.label} {run['prefill']:.2f} s + {run['decode']:.2f} s"
            for child, run in zip(children, turn, strict=True)
        )
        say(f"turn {len(found)} of {repeats}, batch {batch}, prompt {length}: {shown}")
    return [_row(children, at, found, sizes) for at in range(len(children))]


def _drawn(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (batch, length), generator=generator).tolist()


def _row(
    children: Sequence[Child],
    at: int,
    found: Sequence[Sequence[Mapping[str, float]]],
    sizes: tuple[int, int, int],
) -> Row:
    batch, length, new = sizes
    reference = _reference(children, children[at])
    pairs = [(turn[at], turn[reference]) for turn in found]

    def speeds(step: str, tokens: int) -> Against:
        return Against.of([(tokens / own[step], tokens / dense[step]) for own, dense in pairs])

    decode = speeds("decode", batch * (new - 1))
    bound = _bound(children[at], children[reference])
    compared = bound is not None and batch == 1 and at != reference
    return Row(
        way=children[at].way.label,
        batch=batch,
        prompt=length,
        prefill=speeds("prefill", batch * length),
        decode=decode,
        memory_bytes=Against.of([(own["peak"], dense["peak"]) for own, dense in pairs]),
        of_bound=decode.ratio / bound.ratio if bound is not None and compared else None,
    )


def _reference(children: Sequence[Child], child: Child) -> int:
    """Return which of the processes has the dense model in the dtype of this one."""
    for at, other in enumerate(children):
        if other.way.kind == DENSE and other.facts["dtype"] == child.facts["dtype"]:
            return at
    return 0  # of a GGUF


def _bound(child: Child, dense: Child) -> Bound | None:
    own, read = child.facts["read"], dense.facts["read"]
    return None if own is None or read is None else Bound.of(read, own)


def _models(children: Sequence[Child]) -> list[Model]:
    found = []
    for child in children:
        facts, dense = child.facts, children[_reference(children, child)]
        bound = _bound(child, dense)
        found.append(
            Model(
                way=child.way.label,
                checkpoint=str(child.way.model),
                dtype=facts["dtype"],
                against=dense.way.label,
                parameters=facts["parameters"],
                weight_bytes=facts["weight_bytes"],
                disk_bytes=disk_bytes(child.place),
                rest_bytes=facts["rest"],
                read_bytes=None if facts["read"] is None else sum(facts["read"].values()),
                share=None if bound is None else bound.share,
                saving=None if bound is None else bound.saving,
                bound=None if bound is None else bound.ratio,
                kernels=facts["kernels"],
            )
        )
    return found
