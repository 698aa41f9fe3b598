"""``prunus``: the sub-commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .._version import __version__
from . import (
    bench,
    compare,
    demo,
    diff,
    evaluate,
    export,
    methods,
    plan,
    plot,
    prune,
    quantize,
    report,
    reproduce,
    simulate,
    verify,
)
from .console import print_error

# Of options and arguments. typer brings a click of its own or not, by version: no place to import
# this class from has been there in all of them.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class Commands(TyperGroup):
    """The sub-commands; what is wrong with their options is an object where --json is one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            if ctx.meta["json"]:
                said: Any = error
                print_error(type(error).__name__, said.format_message())
            raise


app = typer.Typer(
    cls=Commands,
    help="Prune pretrained language models without retraining.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("prune", epilog=prune.EXAMPLES)(prune.run)
app.command("quantize", epilog=quantize.EXAMPLES)(quantize.run)
app.command("plan", epilog=plan.EXAMPLES)(plan.run)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.run)
app.command("compare", epilog=compare.EXAMPLES)(compare.run)
app.command("verify", epilog=verify.EXAMPLES)(verify.run)
app.command("diff", epilog=diff.EXAMPLES)(diff.run)
app.command("bench", epilog=bench.EXAMPLES)(bench.run)
app.command("export", epilog=export.EXAMPLES)(export.run)
app.command("plot", epilog=plot.EXAMPLES)(plot.run)
app.command("report", epilog=report.EXAMPLES)(report.run)
app.command("simulate", epilog=simulate.EXAMPLES)(simulate.run)
app.command("reproduce", epilog=reproduce.EXAMPLES)(reproduce.run)
app.command("methods")(methods.run)
app.command("demo")(demo.run)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prune pretrained language models without retraining."""
