"""``prunus eval``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.words import number_of
from .console import command, print_json, print_line, print_table
from .options import DtypeName, Json, TrustRemoteCode

if TYPE_CHECKING:
    from ..judge.perplexity import Agreement, Evaluation
    from ..judge.tasks import TaskScore

EXAMPLES = """
**Examples**

`prunus eval pruned --text wikitext2 --length 2048` (the papers' number)

`prunus eval pruned --text wikitext2 --data-dir texts` (the same text from texts/wikitext2/)

`prunus eval pruned --text wikitext2 --text c4 --against ./model` (KL and agreement beside)

`prunus eval pruned --tasks arc_easy,piqa,hellaswag,boolq --limit 500 --json`

`prunus eval pruned --tasks lambada_openai --data-dir texts` (from texts/lambada/, no network)

`prunus eval org/model --text wiki.test.raw --windows 8 --json` (the file as it lies)

`prunus eval pruned --text lambada` (the last word of each passage)
"""


@command
def run(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or a GGUF.")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="A file, a folder, c4, wikitext2 (wikitext2-raw: as its file lies), ptb, lambada, "
            "builtin. May be given several times.  [default: builtin, unless there are --tasks]"
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="DENSE",
            help="The dense model: mean KL, agreement of the likeliest token and of the five "
            "likeliest, length of the greedy text that agrees.",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Tasks that lm-eval runs, with commas: arc_easy,piqa,boolq."
        ),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Examples before each question of a task.  [default: the task's own]"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="First N questions of each task.  [default: all]")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions of a task at once.")] = 1,
    length: Annotated[
        int | None, typer.Option(help="Tokens per window.  [default: up to 2048]")
    ] = None,
    windows: Annotated[int | None, typer.Option(help="Score the first N.  [default: all]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with c4, wikitext2, arc_easy … as files.")
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
    dtype: DtypeName = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Perplexity by the papers' protocol: non-overlapping windows, logits in float32.

    Of LAMBADA, perplexity and accuracy of the last word. Beside it, how near the model is to its
    dense one (--against), and tasks of lm-eval (--tasks).
    """
    from ..api import evaluate_all
    from ..base.device import checked_dtype
    from ..run.progress import PruningBar

    found = evaluate_all(
        model,
        text or ([] if tasks and not against else ["builtin"]),
        tasks=tasks or (),
        shots=shots,
        limit=limit,
        batch_size=batch_size,
        against=against,
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
        print_json(_as_json(found.texts, found.tasks))
        return
    if len(found.texts) > 1:
        _print_texts(found.texts)
    elif found.texts:
        _print_text(found.texts[0])
    if found.tasks:
        _print_tasks(found.tasks)


def _as_json(texts: list[Evaluation], tasks: list[TaskScore]) -> dict[str, Any]:
    """One text alone is its own object; otherwise ``texts`` and ``tasks`` are lists."""
    if len(texts) == 1 and not tasks:
        return asdict(texts[0])
    return {"texts": [asdict(text) for text in texts], "tasks": [asdict(task) for task in tasks]}


def _print_text(found: Evaluation) -> None:
    if found.accuracy is None:
        print_line(f"perplexity {found.perplexity:.4f}")
        what = f"{number_of(found.windows, 'window')} of {found.length} tokens"
    else:
        print_line(f"perplexity of the last word {found.perplexity:.4f}")
        print_line(f"accuracy of the last word {found.accuracy:.4f}")
        what = f"{number_of(found.windows, 'passage')} of up to {found.length} tokens"
    if found.against is not None:
        for line in _lines(found.against):
            print_line(line)
    reading = f", {found.reading}" if found.accuracy is None and found.reading else ""
    print_line(f"  {found.source}{reading}: {what}")
    print_line(f"  {found.tokens_per_second:.0f} tokens per second")


def _lines(against: Agreement) -> list[str]:
    prompts = number_of(against.prompts, "prompt")
    return [
        f"against {against.model}",
        f"  dense perplexity {against.perplexity:.4f}",
        f"  KL {against.kl:.4f} nats per token",
        f"  same likeliest token {against.top_token:.1%}, of the five likeliest "
        f"{against.best_five:.1%}",
        f"  same greedy text: {against.prefix_mean:.1f} of {against.prefix_most} tokens (median "
        f"{against.prefix_median:g}) behind {prompts} of {against.prompt_tokens}",
    ]


def _print_texts(texts: list[Evaluation]) -> None:
    rows = []
    for text in texts:
        unit = "windows" if text.accuracy is None else "passages"
        accuracy = "" if text.accuracy is None else f"{text.accuracy:.4f}"
        scored = f"{text.windows} {unit} of {text.length}"
        rows.append((text.source, f"{text.perplexity:.4f}", accuracy, scored))
    print_table(["text", "perplexity", "accuracy", "scored"], rows)
    beside = [(text.source, *_cells(text.against)) for text in texts if text.against is not None]
    if beside:
        print_line()
        columns = ["against the dense model", "dense", "KL", "top token", "top five", "greedy"]
        print_table(columns, beside)


def _cells(against: Agreement) -> tuple[str, ...]:
    return (
        f"{against.perplexity:.4f}",
        f"{against.kl:.4f}",
        f"{against.top_token:.1%}",
        f"{against.best_five:.1%}",
        f"{against.prefix_mean:.1f} of {against.prefix_most}",
    )


def _print_tasks(tasks: list[TaskScore]) -> None:
    rows = [
        (
            task.task,
            metric,
            "" if value is None else f"{value:.4f}",
            _error(task, metric),
            "" if task.samples is None else f"{task.samples} of {task.total}",
            "" if task.shots is None else str(task.shots),
        )
        for task in tasks
        for metric, value in task.values.items()
        if "_stderr" not in metric
    ]
    print_table(["task", "metric", "value", "±", "questions", "shots"], rows)


def _error(task: TaskScore, metric: str) -> str:
    name, comma, way = metric.partition(",")
    found = task.values.get(f"{name}_stderr{comma}{way}")
    return "" if found is None else f"{found:.4f}"
