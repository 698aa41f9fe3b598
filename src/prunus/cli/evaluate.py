"""``prunus eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, print_json, print_line

EXAMPLES = """
**Examples**

`prunus eval pruned --text wikitext2 --length 2048` (the papers' number)

`prunus eval pruned --text wikitext2 --data-dir texts` (the same text from texts/wikitext2/)

`prunus eval org/model --text wiki.test.raw --windows 8 --json` (the file as it lies)

`prunus eval pruned --text lambada` (the last word of each passage)
"""


@command
def run(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or a GGUF.")],
    text: Annotated[
        str,
        typer.Option(
            help="A file, a folder, c4, wikitext2 (wikitext2-raw: as its file lies), ptb, lambada, "
            "builtin."
        ),
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
    last_word: Annotated[
        bool | None,
        typer.Option(
            "--last-word/--no-last-word",
            help="Score the last word of each passage.  [default: for lambada]",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object to stdout.")] = False,
) -> None:
    """Perplexity by the papers' protocol: non-overlapping windows, logits in float32.

    Of LAMBADA, perplexity and accuracy of the last word.
    """
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
        last_word=last_word,
        dtype=checked_dtype(dtype),
        device=device,
        trust_remote_code=trust_remote_code,
        observer=PruningBar(),
    )
    if json:
        print_json(vars(found))
        return
    if found.accuracy is None:
        print_line(f"perplexity {found.perplexity:.4f}")
        what = f"{found.windows} windows of {found.length} tokens"
    else:
        print_line(f"perplexity of the last word {found.perplexity:.4f}")
        print_line(f"accuracy of the last word {found.accuracy:.4f}")
        what = f"{found.windows} passages of up to {found.length} tokens"
    reading = f", {found.reading}" if found.accuracy is None and found.reading else ""
    print_line(f"  {found.source}{reading}: {what}")
    print_line(f"  {found.tokens_per_second:.0f} tokens per second")
