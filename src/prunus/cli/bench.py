"""``prunus bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .console import command, console, escape, print_json, print_line

EXAMPLES = """
**Examples**

`prunus bench pruned` (against the model that it was pruned from)

`prunus bench pruned --dense org/model --prompt 1024 --new 128 --threads 2 --json`
"""


@command
def run(
    folder: Annotated[Path, typer.Argument(help="A pruned checkpoint.")],
    dense: Annotated[
        str | None, typer.Option(help="Dense model to compare with.  [default: from the report]")
    ] = None,
    prompt: Annotated[
        int | None, typer.Option(help="Tokens in the prompt.  [default: up to 512]")
    ] = None,
    new: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    repeats: Annotated[int, typer.Option(help="Pairs of runs.")] = 5,
    threads: Annotated[
        int | None, typer.Option(help="Number of torch threads.  [default: torch's choice]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object to stdout.")] = False,
) -> None:
    """Prefill, decode and memory against the dense model, in paired runs of fresh processes."""
    from ..base.device import checked_dtype
    from ..judge.bench import bench

    found = bench(
        folder,
        dense,
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
        return
    table = Table("", "pruned", "dense", "ratio", box=None)
    for name, unit, scale, places, row in [
        ("prefill", "tokens/s", 1, 1, found.prefill),
        ("decode", "tokens/s", 1, 1, found.decode),
        ("memory", "MiB", 2**20, 0, found.memory_bytes),
        ("weights", "MiB", 2**20, 0, found.weight_bytes),
        ("parameters", "million", 10**6, 1, found.parameters),
    ]:
        values = [f"{value / scale:,.{places}f}" for value in (row.pruned, row.dense)]
        table.add_row(f"{name} ({unit})", *values, f"{row.ratio:.3f}")
    Console().print(table)
    print_line(
        f"medians of {len(found.decode.runs)} pairs: prompt {found.prompt}, {found.new} new "
        f"tokens, batch 1, {found.dtype}, {found.device}, threads {found.threads}"
    )
