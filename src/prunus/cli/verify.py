"""``prunus verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import command, print_json, print_line
from .options import Json, TrustRemoteCode

EXAMPLES = """
**Examples**

`prunus verify pruned` — exit 0 when all holds, 1 when not

`prunus verify pruned --source ./model --pattern 2:4 --json`

`prunus verify others-model` (no report: finds the patterns itself)
"""


@command
def run(
    folder: Annotated[
        Path, typer.Argument(help="What `prunus prune --output` wrote, or any other tool.")
    ],
    source: Annotated[
        str | None, typer.Option(help="The checkpoint it was made from: compare the other tensors.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Demand this pattern of every pruned layer.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Check zeros, pattern, finite weights, report; reload in a fresh process."""
    from ..judge.verify import verify

    found = verify(folder, source=source, pattern=pattern, trust_remote_code=trust_remote_code)
    if json:
        print_json(
            {
                "ok": found.ok,
                "problems": found.problems,
                "sparsity": found.sparsity,
                "pattern": found.pattern,
                "patterns": found.patterns,
                "kinds": {kind: zeros.to_dict() for kind, zeros in found.kinds.items()},
                "checks": found.checks,
            }
        )
    else:
        for check in found.checks:
            print_line(f"checked: {check}")
        for problem in found.problems:
            print_line(f"PROBLEM: {problem}")
        layers = ", ".join(f"{count} × {name}" for name, count in found.patterns.items())
        print_line(f"sparsity {found.sparsity:.4%} in {layers}")
        for kind, zeros in found.kinds.items():
            shown = ", ".join(f"{count} × {name}" for name, count in zeros.patterns.items())
            print_line(f"  {kind}: {zeros.sparsity:.4%} in {shown}")
        if any(name.endswith(":output") for name in found.patterns):
            print_line(
                "  N:M along outputs is no pattern of hardware: it multiplies these as dense"
            )
        print_line("ok" if found.ok else f"{len(found.problems)} problems")
    if not found.ok:
        raise typer.Exit(1)
