"""``prunus export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.words import number_of
from .console import command, print_json, print_line
from .options import Json, TrustRemoteCode

EXAMPLES = """
**Examples**

`prunus export pruned --to packed --output packed` (without its zeros: see docs/packed.md)

`prunus export pruned --to packed --output packed --values int8 --group 128`

`prunus export pruned --to gguf --output pruned.gguf --dtype float16` (for `llama-cli -m`)

`prunus export pruned --to gguf --output pruned.gguf --tokenizer source.gguf --json`
"""
FORMATS = ("gguf", "packed")
OPTIONS = {"gguf": ("dtype", "tokenizer"), "packed": ("values", "group")}


@command
def run(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, pruned or not.")],
    to: Annotated[
        str,
        typer.Option(
            help="packed (prunus.load: pruned layers without their zeros) or gguf (llama.cpp; "
            "Llama, Mistral, SmolLM2 …)."
        ),
    ],
    output: Annotated[Path, typer.Option(help="What to write; it must not exist.")],
    values: Annotated[
        str | None,
        typer.Option(
            help="packed: what kept weights are stored as: float32, bfloat16 (bf16), float16, int8 "
            "or int4.  [default: as they are]"
        ),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(help="packed: inputs that share a scale.  [default: the row; int4: 64]"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="gguf: type of the matrices: float32, bfloat16, float16.  [default: as stored]"
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="gguf: use the tokenizer of this folder or GGUF instead.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Write a checkpoint in the format of another runtime."""
    from ..base.errors import InputError, UnknownNameError

    if to not in FORMATS:
        raise UnknownNameError("format", to, FORMATS)
    given = {"dtype": dtype, "tokenizer": tokenizer, "values": values, "group": group}
    other = next((x for x, v in given.items() if v is not None and x not in OPTIONS[to]), None)
    if other is not None:
        raise InputError(f"--{other} does not apply to --to {to}. Leave it out.")
    if to == "packed":
        _packed(folder, output, values, group, trust_remote_code, json)
    else:
        _gguf(folder, output, dtype, tokenizer, json)


def _gguf(
    folder: Path, output: Path, dtype: str | None, tokenizer: Path | None, json: bool
) -> None:
    from ..base.device import checked_dtype
    from ..storage.gguf import write_gguf

    made = write_gguf(folder, output, dtype=checked_dtype(dtype or "auto"), tokenizer=tokenizer)
    if json:
        print_json(made.to_dict())
        return
    blocks = number_of(made.blocks, "block")
    print_line(f"{made.output}: {made.architecture}, {blocks}, {made.dtype}")
    tensors = number_of(made.tensors, "tensor")
    print_line(f"  {made.parameters:,} parameters in {tensors}, {made.bytes:,} bytes")


def _packed(
    folder: Path, output: Path, values: str | None, group: int | None, trust: bool, json: bool
) -> None:
    from ..storage.packed_export import write_packed_checkpoint

    made = write_packed_checkpoint(
        folder, output, values=values or "auto", group=group, trust_remote_code=trust
    )
    if json:
        print_json(made.to_dict())
        return
    share, size = made.kept / made.weights, made.packed_bytes / made.dense_bytes
    print_line(f"{made.output}: {number_of(made.layers, 'layer')} packed, {made.values}")
    print_line(
        f"  {share:.1%} of their weights kept, in {size:.1%} of their bytes "
        f"({made.packed_bytes:,} for {made.dense_bytes:,}); all weights {made.bytes:,} bytes"
    )
