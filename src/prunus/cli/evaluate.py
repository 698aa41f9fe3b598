"""``prunus eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, print_json, print_line

EXAMPLES = """
**Examples**

`prunus eval pruned --text wiki.test.raw --length 2048` (the papers' number)

`prunus eval org/model --text wikitext2 --windows 8 --json`
"""


@command
def run(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or a GGUF.")],
    text: Annotated[
        str, typer.Option(help="A file, a folder, c4, wikitext2, ptb, lambada, builtin.")
    ] = "builtin",
    length: Annotated[
        int | None, typer.Option(help="Tokens per window.  [default: up to 2048]")
    ] = None,
    windows: Annotated[int | None, typer.Option(help="Score the first N.  [default: all]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with c4, wikitext2 … as files.")
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(help="Field of each row that holds the text.  [default: by name]"),
    ] = None,
    bos: Annotated[
        str,
        typer.Option(
            help="yes, no or auto: the beginning-of-text token in every window, in none, or where "
            "the tokenizer puts it: before the whole text."
        ),
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object to stdout.")] = False,
) -> None:
    """Perplexity by the papers' protocol: non-overlapping windows, logits in float32."""
    from ..api import evaluate
    from ..base.device import checked_dtype
    from ..run.progress import PruningBar

    found = evaluate(
        model,
        text,
        length=length,
        windows=windows,
        data_dir=data_dir,
        field=field,
        bos=bos,
        dtype=checked_dtype(dtype),
        device=device,
        trust_remote_code=trust_remote_code,
        observer=PruningBar(),
    )
    if json:
        print_json({**vars(found), "tasks": {}})
        return
    print_line(f"perplexity {found.perplexity:.4f}")
    print_line(f"  {found.source}: {found.windows} windows of {found.length} tokens")
    print_line(f"  {found.tokens_per_second:.0f} tokens per second")
