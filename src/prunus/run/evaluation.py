"""One evaluation from start to end: texts, a dense model beside, tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.device import Dtype, pick_device
from ..base.errors import InputError
from ..judge.dense import dense_model
from ..judge.perplexity import Evaluation
from ..judge.remembered import Remembered
from ..judge.tasks import Tasks, TaskScore, load_tasks, run_tasks
from ..judge.text import Asked, read_text
from ..report.report import FILE as REPORT
from ..runtime.packed_model import load_to_run
from ..storage.checkpoint import find, folder_of, load_tokenizer
from ..text.given import collect, is_source
from ..text.tokens import needed
from .inputs import in_memory
from .observer import Observer
from .progress import Scored, hearing, scoring


@dataclass(frozen=True)
class Evaluations:
    """What was found of one model.

    Attributes:
        texts: a result for each text, in the order in which they were given.
        tasks: a result for each task, and for each group of tasks.
    """

    texts: list[Evaluation]
    tasks: list[TaskScore]


@dataclass(frozen=True)
class Wanted:
    """What is to be evaluated, and how: see ``prunus.evaluate_all``.

    With ``remembered`` a dense model that is given as a path starts from what it made of the same
    windows before; for a caller who compares many models with it.
    """

    texts: Sequence[Any]
    tasks: Tasks | None = None
    against: str | Path | PreTrainedModel | None = None
    length: int | None = None
    windows: int | None = None
    tokenizer: Any = None
    data_dir: str | Path | None = None
    field: str | None = None
    bos: str = "auto"
    last_word: bool | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    scored: Scored | None = None
    observer: Observer | None = None
    remembered: Remembered | None = None


def carry_out(model: str | Path | PreTrainedModel, wanted: Wanted) -> Evaluations:
    """Evaluate a model; whatever can be checked is checked before anything is loaded.

    Raises:
        InputError: something that cannot be used, with the cure.
        NumericalError: a model puts out NaN or inf.
    """
    say = hearing(wanted.observer).say
    if not isinstance(model, str | Path):
        in_memory(model, wanted.dtype)
    _check_against(wanted)
    texts, tokenizer = _read(model, wanted, say)
    loaded = [] if wanted.tasks is None else load_tasks(wanted.tasks, wanted.data_dir)
    sound = isinstance(model, str | Path) and _is_dense(model)
    if isinstance(model, str | Path):
        model = load_to_run(model, wanted.dtype, wanted.trust_remote_code)
    scorers = [x.scorer(model, tokenizer, wanted.length, wanted.windows, say) for x in texts]
    device = pick_device(wanted.device)
    model.eval()
    model.to(device)  # type: ignore[arg-type]
    found = []
    with _beside(wanted, device, say) as dense:
        for text, score in zip(texts, scorers, strict=True):
            settings = {} if text.last_word else {"sound": sound, **dense}
            with scoring(wanted.scored) as told:
                found.append(text.described(score(scored=told, **settings)))
            if warning := found[-1].warning:
                say(warning)
    if wanted.tasks is None:
        return Evaluations(found, [])
    say(f"lm-eval runs {', '.join(wanted.tasks.names)}")
    return Evaluations(found, run_tasks(model, tokenizer, loaded, wanted.tasks))


def _check_against(wanted: Wanted) -> None:
    """Raise InputError for a dense model that cannot be compared with."""
    if wanted.against is None:
        return
    if not wanted.texts:
        raise InputError("A dense model is compared on a text; give one: --text SOURCE.")
    if isinstance(wanted.against, str | Path):
        find(wanted.against, packed=True)
    else:
        in_memory(wanted.against, "auto")


def _read(
    model: str | Path | PreTrainedModel, wanted: Wanted, say: Callable[[str], None]
) -> tuple[list[Asked], Any]:
    """Read all texts; return them, and the tokenizer."""
    given = [
        text if is_source(text) else collect(text, "text", wanted.windows, flat=True)
        for text in wanted.texts
    ]
    tokenizer, speaks = wanted.tokenizer, not all(isinstance(x, Tensor) for x in given)
    if tokenizer is None and isinstance(model, str | Path) and (speaks or wanted.tasks):
        tokenizer = load_tokenizer(model, trust_remote_code=wanted.trust_remote_code)
    if wanted.tasks is not None:
        needed(tokenizer)
    read = [
        read_text(one, tokenizer, wanted.field, wanted.bos, wanted.data_dir, say, wanted.last_word)
        for one in given
    ]
    passages = [text.name for text in read if text.last_word]
    if passages and wanted.against is not None:
        raise InputError(
            f"The last words of {passages[0]} are scored, and models are compared on windows. "
            "Leave that text out, or score its windows with --no-last-word."
        )
    return read, tokenizer


@contextmanager
def _beside(
    wanted: Wanted, device: torch.device, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Have the dense model there, as settings of ``score_windows``; none where none was given."""
    against = wanted.against
    if against is None:
        yield {}
    elif isinstance(against, str | Path):
        remembered = wanted.remembered
        with (
            dense_model(against, device, wanted.dtype, wanted.trust_remote_code, say) as dense,
            nullcontext() if remembered is None else remembered.of(dense),
        ):
            yield {"dense": dense, "name": str(against)}
    else:
        against.eval()
        against.to(device)  # type: ignore[arg-type]
        yield {"dense": against, "name": against.config.name_or_path or "in memory"}


def _is_dense(model: str | Path) -> bool:
    """Whether this is a folder without a report of pruning."""
    folder = folder_of(model)
    return folder.is_dir() and not (folder / REPORT).exists()
