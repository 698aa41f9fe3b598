"""What a run leaves: the result, and the checkpoint that gets its name when it is verified."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from ..base.atomic import new_folder, no_new_parents
from ..base.errors import CheckpointError, CheckpointWarning, NotVerifiedError
from ..base.words import a_few, number_of
from ..judge.verify import Verification, verify
from ..maths.orders.orders import FILE as ORDERS
from ..maths.orders.orders import Orders
from ..model.weights import InMemory
from ..recipe import Recipe
from ..report import PruningReport, shown
from ..report.card import model_card
from ..report.report import FILE as REPORT
from ..storage.answered import FILE as ANSWERS
from ..storage.answered import has_answers
from ..storage.assembly import assemble
from ..storage.checkpoint import load_model
from ..storage.journal import Journal
from ..storage.kinds import auto_of
from ..storage.origin import origin_of
from ..storage.output import write_model
from ..storage.widths import FILE as WIDTHS
from ..storage.widths import to_json, widths_of
from .cures import explained
from .fingerprint import defaults
from .job import Job
from .observer import Observer
from .prepare import Request, Run

TITLE = "prunus.Result"


@dataclass(frozen=True)
class Result:
    """A pruned model and all that is known about it.

    Attributes:
        report: layer by layer.
        orders: of the channels, where they were put into others.
        output: the checkpoint, if one was written.
        verification: what ``verify`` found in it.
        held: the model, where it is in memory.
        trust_remote_code: whether code that the checkpoint brings may run.
    """

    report: PruningReport
    orders: Orders
    output: Path | None = None
    verification: Verification | None = None
    held: PreTrainedModel | None = None
    trust_remote_code: bool = False

    @cached_property
    def model(self) -> PreTrainedModel:
        """Pruned, in eval mode; read from the checkpoint where it was streamed into that."""
        if self.held is not None:
            return self.held
        return load_model(cast(Path, self.output), trust_remote_code=self.trust_remote_code)

    def __repr__(self) -> str:
        """Show a few lines."""
        return shown.as_text(self._facts(), TITLE)

    def _repr_html_(self) -> str:
        """Show the same in a notebook, with a table of the layers."""
        return shown.as_html(self.report, self._facts(), TITLE)

    def _facts(self) -> list[tuple[str, str]]:
        return shown.facts(
            self.report, self.output, bool(self.verification and self.verification.ok)
        )

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each layer; pandas must be installed.

        >>> result.to_pandas().sort_values("relative_output_error").tail()
        """
        return shown.as_rows(self.report.layers)


def carry_out(run: Run, request: Request, tokenizer: Any) -> Result:
    """Prune: block by block onto the disk where a path becomes a checkpoint, else in memory."""
    if request.output is not None and request.path is not None:
        return _prune_journaled(run, request, request.output, tokenizer)
    result = Result(*run.prune(), request.output, held=run.job.model)
    with run.job.team.agreed():
        if request.output is not None and run.job.team.first:
            job, trust = run.job, request.trust_remote_code
            proof = write(result, tokenizer, job.recipe, job.observer, trust, job.answers)
            result = replace(result, verification=proof)
    return result


def _prune_journaled(run: Run, request: Request, output: Path, tokenizer: Any) -> Result:
    """Prune block by block onto the disk; the checkpoint gets its name when it is verified.

    Under ``torchrun`` the first process has the journal, and the others wait for it at the end.
    """
    job, trust, verification = run.job, request.trust_remote_code, None
    with no_new_parents(output), _journal(run, request, output) as journal:
        report, orders = run.prune(journal)
        with job.team.agreed():
            if journal is not None:
                report = replace(report, different=journal.different)
                with journal.finished(output) as folder:
                    job.observer.say(f"writing {output}")
                    report = _with_source(report, orders, job)
                    texts = _texts(report, orders, job.recipe, job.model, job.answers)
                    packed = job.recipe.grid() if job.recipe.pack else None
                    kept = report.source
                    assemble(
                        folder, journal, job.weights, job.blocks, tokenizer, texts, packed, kept
                    )
                    verification = _verified(folder, job.observer, trust, journal.folder)
    held = job.model if isinstance(job.weights, InMemory) else None
    return Result(report, orders, output, verification, held, trust)


def _with_source(report: PruningReport, orders: Orders, job: Job) -> PruningReport:
    """Note what the checkpoint has from the source's files, and say what it has not."""
    origin = origin_of(job.weights)
    if origin is None:
        return report
    other = report.structured is not None or orders.residual is not None
    source = origin.taken_over(keeps_architecture=not other)
    if source.carried:
        job.observer.say(
            f"copied unchanged: {number_of(len(source.carried), 'tensor')} that transformers "
            f"ignores ({a_few(source.carried)})"
        )
    if source.dropped:
        warnings.warn(
            f"Left out: {number_of(len(source.dropped), 'tensor')} that transformers ignores and "
            f"the pruned model has no place for ({a_few(source.dropped)}). The report lists all.",
            CheckpointWarning,
            stacklevel=2,
        )
    if source.left:
        names = ", ".join(f"{name} ({why})" for name, why in source.left.items())
        job.observer.say(f"not copied: {names}")
    return replace(report, source=source)


@contextmanager
def _journal(run: Run, request: Request, output: Path) -> Iterator[Journal | None]:
    """Open the first process's journal; keep finished blocks if the run ends early."""
    journal, job = None, run.job
    with job.team.agreed():
        if job.team.first and request.path is not None:
            journal = Journal.open(
                output, job.fingerprint(request.path), request.resume, job.observer.say,
                request.allow_different, defaults(),
            )  # fmt: skip
    if journal is None:
        yield None
        return
    try:
        yield journal
    except NotVerifiedError:
        raise  # which says what is kept
    except BaseException:
        if journal.worthwhile or has_answers(journal.folder):
            done = f"{len(journal.blocks)} of {number_of(len(job.blocks), 'block')}"
            job.observer.say(f"{done} are done and kept; --resume goes on from there")
        else:
            journal.remove()
        raise
    finally:
        journal.close()


def write(
    result: Result,
    tokenizer: Any,
    recipe: Recipe,
    observer: Observer,
    trust_remote_code: bool = False,
    answers: str = "",
) -> Verification:
    """Write a model in memory to ``result.output``: under a temporary name until verified."""
    output = cast(Path, result.output)
    with new_folder(output) as folder:
        observer.say(f"writing {output}")
        texts = _texts(result.report, result.orders, recipe, result.model, answers)
        write_model(folder, result.model, tokenizer, texts, own_names=WIDTHS in texts)
        return _verified(folder, observer, trust_remote_code)


def _texts(
    report: PruningReport,
    orders: Orders,
    recipe: Recipe,
    model: PreTrainedModel,
    answers: str,
) -> dict[str, str]:
    recipe_yaml, widths = recipe.to_yaml(report.model), widths_of(model)
    return {
        "recipe.yaml": recipe_yaml,
        REPORT: report.to_json(),
        "README.md": model_card(report, recipe_yaml, widths is None, auto_of(model)),
        **({ORDERS: orders.to_json()} if orders else {}),
        **({ANSWERS: answers} if answers else {}),
        **({WIDTHS: to_json(widths)} if widths is not None else {}),
    }


def _verified(
    folder: Path, observer: Observer, trust_remote_code: bool, kept: Path | None = None
) -> Verification:
    """Verify a checkpoint that is about to get its name.

    Raises:
        NotVerifiedError: it must not have that name; says what to change, and what is ``kept``.
    """
    observer.say("verifying: patterns, zeros, and a reload in a fresh process")
    try:
        verification = verify(folder, trust_remote_code=trust_remote_code)
    except CheckpointError as error:  # it cannot even be looked into
        verification = Verification([str(error)], in_files=True)
    if not verification.ok:
        raise NotVerifiedError(explained(verification, kept))
    return verification
