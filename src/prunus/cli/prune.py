"""``prunus prune``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.words import number_of
from .console import command, print_json, print_line, print_table
from .options import TEXT, AnswerLength, Answers, Json, Length, Samples, TrustRemoteCode

if TYPE_CHECKING:
    from ..report import PruningReport
    from ..report.units import UnitsReport
    from ..run.finish import Result

WEIGHTS = "Single weights"
INTEGERS = "Integer grids"
UNITS = "Heads and neurons"

EXAMPLES = """
**Examples**

`prunus prune ./SmolLM2 --method ria --output pruned` (half of all weights)

`prunus prune org/model --method wanda --pattern 2:4 --calibration c4 --output pruned-2-4`

`prunus prune ./model --method mrp-sm --pattern 2:4 --permutation fold --output fast`

`prunus prune model.gguf --method dass --mlp-only --calibration text.jsonl --output pruned`

`prunus prune ./model --method mrp-sm --refine swaps --output best` (the lowest loss, slower)

`prunus prune ./model --method wanda --sparsity 0.7 --allocation slope+besa --output shared`

`prunus prune ./model --method goa --sparsity 0.2 --blocks 4:26 --recovery after --output smaller`

`prunus prune ./model --method besa --sparsity 0.6 --update least-squares --output learned`

`prunus prune ./model --method mrp-sm --reconstruct block --output better` (slower: learns)

`prunus prune ./model --method wanda --bits 4 --group 64 --pack --output small` (4-bit integers)

`prunus prune ./chat --method mrp-sm --calibration prompts.jsonl --answers --output for-chat`

`prunus prune ./model --recipe pruned/recipe.yaml --seed 1 --output again`
"""


@command
def run(
    model: Annotated[
        str, typer.Argument(help="A folder, a GGUF, or a hub id (org/model@revision).")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint, new or empty.")],
    method: Annotated[str | None, typer.Option(help="See `prunus methods`.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="fast or best: a method with update, orders and budget that fit the pattern; "
            "options beside it replace its parts."
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="Fraction of weights to remove, 0 to 1; of the parameters in heads and neurons "
            "where a method removes those.  [default: 0.5; heads and neurons 0.2]"
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="layer, row, column, N:M (N kept of M), or several N:M to choose from with "
            "--allocation: 1:4,2:4,3:4.  [default: the method's]"
        ),
    ] = None,
    update: Annotated[
        str | None,
        typer.Option(
            help="keep, sparsegpt or least-squares: new values for the kept weights.  "
            "[default: the method's]",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            help="none or swaps: exchange kept and pruned weights while it helps.  [default: none]",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    reconstruct: Annotated[
        str | None,
        typer.Option(
            help="none, block or half: new values for the kept weights of a block, or of its "
            "attention and its MLP apart, from the error of what it puts out.  [default: none]",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    permutation: Annotated[
        str | None,
        typer.Option(
            help="none, fold, gather or free: N:M in an order of the inputs that keeps more. fold: "
            "in the stored weights, for hardware; gather: keeps more, needs prunus.load; free: the "
            "papers' count, which nothing runs.  [default: none]",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            help="assignment, paper, heuristic or greedy: how orders are found. paper: round-robin "
            "and one sweep.  [default: assignment]",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(
            help="How much of each layer to remove: uniform, owl (by outliers), besa (learned), "
            "slope or evolve (searched on held-out text); owl, slope or evolve +besa. "
            "Heads and neurons: uniform, or adaptive (the lowest standardised scores of all).  "
            "[default: the method's]"
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="2 to 8: put the kept weights on an integer grid; zeros stay exact.",
            rich_help_panel=INTEGERS,
        ),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            help="Inputs that share a grid; 0: a whole row.  [default: 128]",
            rich_help_panel=INTEGERS,
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="before or after: the grid, then the mask, or the other way round. before with "
            "--allocation besa learns clipping too.  [default: after]",
            rich_help_panel=INTEGERS,
        ),
    ] = None,
    pack: Annotated[
        bool | None,
        typer.Option(
            "--pack/--no-pack",
            help="Store integers; needs compressed-tensors to load.",
            rich_help_panel=INTEGERS,
        ),
    ] = None,
    true_sequential: Annotated[
        bool | None,
        typer.Option(
            "--true-sequential/--no-true-sequential",
            help="Gather statistics again after q/k/v, o, gate/up, down: slower.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(
            help="pruned or dense: whether a block reads the outputs of pruned blocks, or of dense "
            "ones (faster), while its statistics are gathered.  [default: pruned]",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    min_tokens: Annotated[
        int | None,
        typer.Option(
            help="An expert with fewer is pruned by its weights alone.  [default: 128; twice its "
            "inputs where the method reads the Gram matrix]",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field of the method: score.power=0.4")
    ] = None,
    mlp_only: Annotated[
        bool | None,
        typer.Option("--mlp-only/--no-mlp-only", help="Leave attention dense, and keep all heads."),
    ] = None,
    skip_blocks: Annotated[
        str | None, typer.Option(help="A:B leaves blocks A to B-1 dense.", rich_help_panel=WEIGHTS)
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="A:B prunes only blocks A to B-1.", rich_help_panel=UNITS)
    ] = None,
    parameters: Annotated[
        int | None,
        typer.Option(
            help="How many parameters to remove, instead of a share.", rich_help_panel=UNITS
        ),
    ] = None,
    recovery: Annotated[
        str | None,
        typer.Option(
            help="none, before, after or both: least squares around the removal.  [default: none]",
            rich_help_panel=UNITS,
        ),
    ] = None,
    recovery_text: Annotated[
        str | None,
        typer.Option(
            help="Text that recovery is solved on, as for --calibration.  [default: that text]",
            rich_help_panel=UNITS,
        ),
    ] = None,
    recovery_samples: Annotated[
        int | None,
        typer.Option(
            help="Number of windows that recovery is solved on.  [default: --samples]",
            rich_help_panel=UNITS,
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe.yaml; options beside it replace its fields.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text: a .txt, .jsonl, .json, .csv or .parquet file, a folder, c4, wikitext2, "
            "ptb, lambada, self, builtin, none; or several with shares: c4:0.5,prompts.jsonl:0.5.  "
            "[default: builtin; none for data-free methods]",
            rich_help_panel=TEXT,
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            help="Field of each row that holds the text.  [default: by name: text, content, "
            "messages, conversations, instruction + output, question + answer …]",
            rich_help_panel=TEXT,
        ),
    ] = None,
    bos: Annotated[
        str | None,
        typer.Option(
            help="yes, no or auto: the beginning-of-text token in every window, in none, or where "
            "a document begins if the tokenizer puts it there.  [default: auto, as in the papers]",
            rich_help_panel=TEXT,
        ),
    ] = None,
    answers: Answers = None,
    answer_length: AnswerLength = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with c4, wikitext2 … as files.", rich_help_panel=TEXT),
    ] = None,
    samples: Samples = None,
    length: Length = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Random seed for sampling.  [default: 0]", rich_help_panel=TEXT),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="auto, float32, bfloat16, float16.  [default: the checkpoint's]"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.  [default: auto]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the unfinished run of this output.")
    ] = False,
    allow_different: Annotated[
        bool,
        typer.Option(
            "--allow-different",
            help="With --resume: continue with another version, device or number of processes; "
            "the last bits may differ.",
        ),
    ] = False,
    spill: Annotated[
        Path | None,
        typer.Option(
            help="A folder for activations.  [default: memory; where they do not fit, the system's "
            "temporary folder]"
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Prune MODEL and write a checkpoint that plain transformers loads."""
    given = dict(locals())
    from ..api import prune
    from ..report.experts import COLUMNS

    result = together(prune, lambda: request(given))
    if result is None:
        return
    report = result.report
    if json:
        print_json({"output": str(output), **report.summary()})
        return
    if report.structured is not None:
        _smaller(output, report.structured, report.seconds)
        return
    layers = number_of(len(report.layers), "layer")
    print_line(f"{output}: {report.sparsity:.2%} of {layers} are zero")
    print_line(f"  covers {report.coverage}")
    if report.reconstructed:
        lower = f"{1 - report.held_out_loss:.1%} lower in the mean"
        print_line(f"  reconstruction: held-out error of what blocks put out {lower}")
    if report.experts:
        print_line("  tokens that experts were given, block by block; routers stay dense:")
        print_table(COLUMNS, [block.cells for block in report.experts])
    print_line(f"  {report.seconds:.0f} s; verified: pattern, zeros, reload in a fresh process")
    print_stored(report, output)


def print_stored(report: PruningReport, output: Path) -> None:
    """Print what the checkpoint holds, and what to do next."""
    if report.packed:
        print_line(f"  Stored as integers: {report.grid}; needs compressed-tensors to be loaded.")
        print_line("  transformers unpacks them as it loads: small on disk alone.")
    elif report.grid:
        print_line(f"  Stored as ordinary numbers, on grids of {report.grid}: as large as before.")
    else:
        print_line("  Stored as ordinary numbers: as large and as fast as the dense model.")
    print_line(f"  Quality: prunus eval {output} --text your.txt")


def _smaller(output: Path, report: UnitsReport, seconds: float) -> None:
    before, after = report.parameters
    print_line(f"{output}: {before:,} parameters became {after:,}")
    print_line(f"  removed {report.shares}")
    if report.bound is not None:
        print_line(f"  {report.bound}")
    print_line(f"  {seconds:.0f} s; verified: shapes, finite weights, reload in a fresh process")
    print_line(f"  Loads with {report.loads_with}.")
    speed = report.predicted_speedup
    print_line(f"  Speed: {speed:.2f} times, by multiply-adds; measured: prunus bench {output}")
    print_line(f"  Quality: prunus eval {output} --text your.txt")


def together(
    do: Callable[..., Result], asked: Callable[[], dict[str, Any]], verb: str = "pruning"
) -> Result | None:
    """Do it with the other processes that torchrun started; None in all but the first."""
    from ..base.team import Team
    from ..run.observer import Silent
    from ..run.progress import PruningBar

    with ExitStack() as stack:
        team = stack.enter_context(Team.join())
        bar = stack.enter_context(PruningBar(verb)) if team.first else Silent()
        with team.agreed():
            arguments = asked()
        result = do(observer=bar, team=team, **arguments)
    return result if team.first else None


def request(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``prunus.prune``: the options that were given, by name."""
    from ..base.errors import InputError

    given = {name: value for name, value in given.items() if value is not None and name != "json"}
    arguments = dict(given)
    setting = arguments.pop("setting", None) or []
    if wrong := [item for item in setting if item.find("=") < 1]:
        raise InputError(f"--set takes FIELD=VALUE, such as score.power=0.4; got {wrong[0]!r}.")
    if setting:
        arguments["settings"] = dict(item.split("=", 1) for item in setting)
    if "data_dir" in arguments:
        arguments["data_dir"] = str(arguments["data_dir"])
    return arguments
