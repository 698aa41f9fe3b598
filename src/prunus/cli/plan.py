"""``prunus plan``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, get_type_hints

from ..base.words import number_of
from . import prune
from .console import command, print_json, print_line, print_table

if TYPE_CHECKING:
    from ..report.units import UnitsReport
    from ..run.forecast import Plan

EXAMPLES = """
**Examples**

`prunus plan ./model --method mrp-sm --pattern 2:4` (what a run would cover and cost)

`prunus plan ./model --method goa --sparsity 0.3 --blocks 4:26` (the widths that it leaves)

`prunus plan org/model --method wanda --samples 512 --spill /scratch --json`
"""


def _run(**given: Any) -> None:
    """Say what `prunus prune` with the same options would do and cost; write nothing."""
    from .. import api
    from ..run.progress import PruningBar

    with PruningBar() as bar:
        plan = api.plan(observer=bar, **prune.request(given))
    if given["json"]:
        print_json(plan.to_dict())
    elif plan.structured is not None:
        _print_units(plan, plan.structured)
    else:
        _print_weights(plan)


def _print_weights(plan: Plan) -> None:
    rows = []
    for kind in plan.kinds:
        share = f"{kind.pruned / kind.parameters:.0%}" if kind.pruned else "no"
        rows.append((kind.kind, f"{kind.tensors:,}", f"{kind.parameters:,}", share))
    print_table(("tensors", "count", "parameters", "pruned"), rows)
    once = plan.rehearsed
    print_line(f"covers {plan.coverage:.1%} of all parameters, at sparsity {plan.sparsity:g}")
    _print_room(plan)
    print_line(
        f"time   {plan.seconds / 60:.1f} min: {number_of(plan.blocks, 'block')}; the one that was "
        f"tried took {once['prune']:.2f} s to prune, {once['record'] + once['advance']:.3f} s a "
        "sample"
    )
    print_line(plan.speed)


def _print_units(plan: Plan, made: UnitsReport) -> None:
    from ..report.units import COLUMNS

    before, after = made.parameters
    print_table(COLUMNS, made.rows())
    if not plan.exact:
        print_line("Widths depend on text, and these are by two samples of it.")
    print_line(f"leaves {after:,} of {before:,} parameters")
    print_line(f"removes {made.shares}")
    if made.bound is not None:
        print_line(made.bound)
    print_line(f"loads  with {made.loads_with}")
    print_line(f"speed  {made.predicted_speedup:.2f} times the dense model's by its multiply-adds")
    _print_room(plan)
    print_line(f"time   {plan.seconds / 60:.1f} min")


def _print_room(plan: Plan) -> None:
    peak, there = plan.peak_bytes / 2**30, plan.available_bytes / 2**30
    verdict = "" if plan.fits else ": this does not fit"
    print_line(f"memory {peak:.2f} GiB at the peak, {there:.2f} GiB available{verdict}")
    if plan.advice is not None:
        print_line(plan.advice)
    print_line(f"disk   {plan.disk_bytes / 2**30:.2f} GiB")


def _options() -> tuple[inspect.Signature, dict[str, Any]]:
    """Return the options of ``prunus prune``, with an optional output and nothing to resume."""
    hints = get_type_hints(prune.run, include_extras=True)
    parameters = [
        p.replace(annotation=hints[p.name], default=None if p.name == "output" else p.default)
        for p in inspect.signature(prune.run).parameters.values()
        if p.name not in ("resume", "allow_different")
    ]
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)
    return inspect.Signature(parameters), {p.name: p.annotation for p in parameters}


_run.__signature__, _run.__annotations__ = _options()  # type: ignore[attr-defined]
run = command(_run)
