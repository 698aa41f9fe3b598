"""``prunus methods``."""

from __future__ import annotations

from .console import command, print_json, print_line
from .options import Json


@command
def run(
    json: Json = False,
) -> None:
    """List the methods: name, paper, parts, needs, differences from the authors' code.

    The presets of `prunus prune --preset` come last.
    """
    from ..methods.presets import PRESETS, options
    from ..methods.table import all_rows

    rows = all_rows()

    if json:
        print_json(
            {
                name: {
                    "paper": method.paper,
                    "url": method.url,
                    "parts": method.parts,
                    "allocation": method.allocation,
                    "needs": method.needs,
                    "differs": method.differs,
                }
                for name, method in rows.items()
            }
        )
        return
    for name, method in rows.items():
        print_line(f"{name}\n  paper    {method.paper or 'none'}")
        if method.url:
            print_line(f"           {method.url}")
        print_line(f"  parts    {method.parts}\n  needs    {method.needs}")
        if method.allocation != "uniform":
            print_line(f"  budget   --allocation {method.allocation}")
        if method.differs:
            print_line(f"  differs  {method.differs}")
        print_line()
    print_line("--preset")
    for name, preset in PRESETS.items():
        print_line(f"  {name:<8} {preset.about}")
        print_line(f"           {options(preset.free)}")
        if preset.fixed != preset.free:
            print_line(f"           of one N:M: {options(preset.fixed)}")
