"""``prunus bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import command, console, escape, print_json, print_line, print_table
from .options import DtypeName, Json, TrustRemoteCode

if TYPE_CHECKING:
    from ..judge.measured import Bench, Model, Row

EXAMPLES = """
**Examples**

`prunus bench pruned` (against the model that it was pruned from)

`prunus bench pruned --dense org/model --prompt 1024 --new 128 --threads 2 --json`

`prunus bench pruned --as pruned,packed-bf16,packed-int8,int8 --batch 1,4,16 --prompt 128,512`

`prunus bench pruned --as packed-int8 --as pruned=smaller --as llama.cpp=model-q4_0.gguf`
"""
WAYS = (
    "Ways to run it: pruned, packed-bf16 (-fp32, -fp16, -int8, -int4), csr, int8, 2:4, "
    "llama.cpp=FILE.gguf; WAY=CHECKPOINT for another one. With commas, or repeated."
)


@command
def run(
    folder: Annotated[Path, typer.Argument(help="A pruned checkpoint.")],
    dense: Annotated[
        str | None, typer.Option(help="Dense model to compare with.  [default: from the report]")
    ] = None,
    ways: Annotated[list[str] | None, typer.Option("--as", help=WAYS)] = None,
    batch: Annotated[str, typer.Option(help="Rows at once; several: 1,4,16.")] = "1",
    prompt: Annotated[
        str | None,
        typer.Option(help="Tokens in the prompt; several: 128,512.  [default: up to 512]"),
    ] = None,
    new: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    repeats: Annotated[int, typer.Option(help="Turns of every way.")] = 5,
    threads: Annotated[
        int | None, typer.Option(help="Number of torch threads.  [default: torch's choice]")
    ] = None,
    dtype: DtypeName = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Prefill, decode and memory against the dense model, in turns of fresh processes."""
    from ..base.device import checked_dtype
    from ..judge.bench import bench

    found = bench(
        folder,
        dense,
        ways=ways or ["pruned"],
        batch=batch,
        prompt=prompt,
        new=new,
        repeats=repeats,
        threads=threads,
        dtype=checked_dtype(dtype),
        device=device,
        trust_remote_code=trust_remote_code,
        say=lambda message: console.print(escape(message), soft_wrap=True),
    )
    if json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: Bench) -> None:
    """Print a table for each batch size and length, and one of the models."""
    for batch, prompt in dict.fromkeys((row.batch, row.prompt) for row in found.rows):
        print_line(f"batch {batch}, prompt {prompt}")
        rows = [row for row in found.rows if (row.batch, row.prompt) == (batch, prompt)]
        columns = ["", "prefill", "ratio", "decode", "ratio", "of bound", "MiB", "ratio"]
        print_table(columns, [_speeds(row, found.model(row.way)) for row in rows])
        print_line()
    columns = ["", "dtype", "million", "weights", "on disk", "at rest", "bound"]
    print_table(columns, [_sizes(model) for model in found.models])
    print_line(
        f"Medians of {found.repeats} turns: tokens/s and peak memory; {found.new} new tokens, "
        f"{found.device}, threads {found.threads}."
    )
    kernels = {model.kernels for model in found.models} - {None}
    if "none" in kernels:
        print_line("Packed layers ran without kernels, in torch: no speed to expect.")
    elif kernels:
        print_line(f"Packed layers: kernels for {kernels.pop()}.")
    print_line(
        "Ratios are to the dense model in the same dtype. Sizes are in MiB, parameters in millions."
    )
    print_line(
        "Bound: how much faster decoding can be at batch 1, by the bytes of weights it reads."
    )


def _speeds(row: Row, model: Model) -> list[str]:
    def ratio(value: float) -> str:
        return "" if model.against == model.way else f"{value:.3f}"

    return [
        row.way,
        f"{row.prefill.value:,.1f}",
        ratio(row.prefill.ratio),
        f"{row.decode.value:,.1f}",
        ratio(row.decode.ratio),
        "" if row.of_bound is None else f"{row.of_bound:.2f}",
        f"{row.memory_bytes.value / 2**20:,.0f}",
        ratio(row.memory_bytes.ratio),
    ]


def _sizes(model: Model) -> list[str]:
    sizes = (model.weight_bytes, model.disk_bytes, model.rest_bytes)
    known = model.bound is not None and model.against != model.way
    return [
        model.way,
        model.dtype,
        f"{model.parameters / 10**6:,.1f}",
        *(f"{size / 2**20:,.1f}" for size in sizes),
        f"{model.bound:.2f}" if known else "",
    ]
