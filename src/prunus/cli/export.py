"""``prunus export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, print_json, print_line

EXAMPLES = """
**Examples**

`prunus export pruned --to gguf --output pruned.gguf --dtype float16` (for `llama-cli -m`)

`prunus export pruned --to gguf --output pruned.gguf --tokenizer source.gguf --json`
"""
FORMATS = ("gguf",)


@command
def run(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, pruned or not.")],
    to: Annotated[str, typer.Option(help="gguf (llama.cpp; Llama, Mistral, SmolLM2 …).")],
    output: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    dtype: Annotated[
        str,
        typer.Option(help="Type of the matrices: auto (as stored), float32, bfloat16, float16."),
    ] = "auto",
    tokenizer: Annotated[
        Path | None, typer.Option(help="Use the tokenizer of this folder or GGUF instead.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object to stdout.")] = False,
) -> None:
    """Write a checkpoint in the format of another runtime."""
    from ..base.device import checked_dtype
    from ..base.errors import UnknownNameError
    from ..storage.gguf import write_gguf

    if to not in FORMATS:
        raise UnknownNameError("format", to, FORMATS)
    made = write_gguf(folder, output, dtype=checked_dtype(dtype), tokenizer=tokenizer)
    if json:
        print_json(made.to_dict())
        return
    print_line(f"{made.output}: {made.architecture}, {made.blocks} blocks, {made.dtype}")
    print_line(f"  {made.parameters:,} parameters in {made.tensors} tensors, {made.bytes:,} bytes")
