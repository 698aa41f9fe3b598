"""``prunus plan``."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from rich.console import Console
from rich.table import Table

from . import prune
from .console import PruningBar, command, print_json, print_line

EXAMPLES = """
**Examples**

`prunus plan ./model --method mrp-sm --pattern 2:4` (what a run would cover and cost)

`prunus plan org/model --method wanda --samples 512 --spill /scratch --json`
"""


def _run(**given: Any) -> None:
    """Say what `prunus prune` with the same options would do and cost; write nothing."""
    from .. import api
    from ..planning import ADVICE

    with PruningBar() as bar:
        plan = api.plan(observer=bar, **prune.request(given))
    if given["json"]:
        print_json(plan.to_dict())
        return
    table = Table("tensors", "count", "parameters", "pruned", box=None)
    for kind in plan.kinds:
        share = f"{kind.pruned / kind.parameters:.0%}" if kind.pruned else "no"
        table.add_row(kind.kind, f"{kind.tensors:,}", f"{kind.parameters:,}", share)
    Console().print(table)
    once = plan.rehearsed
    print_line(f"covers {plan.coverage:.1%} of all parameters, at sparsity {plan.sparsity:g}")
    print_line(f"memory {plan.peak_bytes / 2**30:.2f} GiB at the peak")
    print_line(f"disk   {plan.disk_bytes / 2**30:.2f} GiB")
    print_line(
        f"time   {plan.seconds / 60:.1f} min: {plan.blocks} blocks; the one that was tried took "
        f"{once['prune']:.2f} s to prune, {once['record'] + once['advance']:.3f} s a sample"
    )
    print_line(ADVICE)


def _options() -> tuple[inspect.Signature, dict[str, Any]]:
    """Those of ``prunus prune``; the output may be left out, and there is nothing to resume."""
    hints = get_type_hints(prune.run, include_extras=True)
    parameters = [
        p.replace(annotation=hints[p.name], default=None if p.name == "output" else p.default)
        for p in inspect.signature(prune.run).parameters.values()
        if p.name != "resume"
    ]
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)
    return inspect.Signature(parameters), {p.name: p.annotation for p in parameters}


_run.__signature__, _run.__annotations__ = _options()  # type: ignore[attr-defined]
run = command(_run)
