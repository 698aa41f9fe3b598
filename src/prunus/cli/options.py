"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

TEXT = "Calibration text"  # a panel of --help

TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object to stdout.")]
DtypeName = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
Samples = Annotated[
    int | None, typer.Option(help="Number of windows.  [default: 128]", rich_help_panel=TEXT)
]
Length = Annotated[
    int | None,
    typer.Option(help="Tokens per window.  [default: up to 2048]", rich_help_panel=TEXT),
]
Answers = Annotated[
    bool | None,
    typer.Option(
        "--answers/--no-answers",
        help="The dense model answers the prompts of --calibration, through its chat template; "
        "the statistics come from prompts and answers.",
        rich_help_panel=TEXT,
    ),
]
AnswerLength = Annotated[
    int | None,
    typer.Option(help="Tokens of an answer at most.  [default: 256]", rich_help_panel=TEXT),
]
