"""The calls of the library: prune, plan, quantize, evaluate, evaluate_all."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from .base.arguments import typed
from .base.atomic import check_output
from .base.device import Dtype
from .base.errors import InputError, UnknownNameError
from .base.team import ALONE, Team
from .judge.perplexity import Evaluation
from .judge.tasks import Tasks
from .methods.table import QUANTIZE
from .model.samples import Sample, either
from .recipe import Recipe
from .run import evaluation
from .run.evaluation import Evaluations, Wanted
from .run.finish import Result, carry_out
from .run.forecast import Plan, forecast
from .run.need import make_room
from .run.observer import Observer
from .run.prepare import Request, check_pack, prepare
from .run.progress import Scored, watching
from .storage.resuming import threads_of
from .storage.scratch import check_spill
from .text.given import collect, is_source


@typed
def prune(
    model: str | Path | PreTrainedModel,
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    allow_different: bool = False,
    spill: str | Path | None = None,
    tokenizer: Any = None,
    tokens_ST: Tensor | None = None,
    inputs: Sequence[Sample] | None = None,
    trust_remote_code: bool = False,
    observer: Observer | None = None,
    team: Team = ALONE,
    **fields: Any,
) -> Result:
    """Prune a causal language model without retraining.

    >>> prunus.prune("path/to/model", method="ria", sparsity=0.5, output="pruned")
    >>> prunus.prune(model, method="wanda", pattern="2:4", tokenizer=tokenizer)  # in place

    With a path and an ``output`` every finished block is on disk at once, for a later run to take
    up; and the model is never in memory as a whole, unless it cannot be read block by block (a
    GGUF, packed integers, blocks of different widths), writes its own text, or ``llm-pruner`` wants
    its gradients.

    Args:
        model: a folder, hub id or GGUF; or a model in memory, which is pruned in place.
        recipe: a Recipe, or a YAML file of one; fields given beside it replace its own.
        output: folder for the checkpoint, new or empty; None writes nothing.
        resume: go on with the unfinished run that was to become ``output``, with as many threads
            as it had.
        allow_different: go on also with another version, device or number of processes, at the
            price of the last bits; the report says what differed.
        spill: a folder for activations, which else stay in memory.
        tokenizer: of a model in memory; a path brings its own.
        tokens_ST: calibration token ids (samples, tokens) instead of text.
        inputs: calibration samples as a model's processor makes them, each a mapping of tensors:
            ``[processor(images=image, text=text, return_tensors="pt"), …]``.
        trust_remote_code: run code that comes with the checkpoint.
        observer: told of every step; None: a progress bar on a terminal or in a notebook, else the
            logger ``prunus`` at the level INFO. ``prunus.Silent()`` keeps silent.
        team: the processes that do this together, each with the same arguments:
            ``with Team.join() as team`` under ``torchrun``. The first writes, and alone has the
            verification and, after a resume, all orders.
        **fields: the fields of ``Recipe``: method, sparsity, pattern, calibration, samples …
            ``calibration`` may also be the text itself: a list of strings or of chats, a
            ``datasets.Dataset``, a DataLoader (of token ids its first ``samples``), token ids.

    Raises:
        InputError: anything that cannot be used, with the cure. No file is written then.
        NumericalError: NaN or inf, with the layer or block. A model in memory may be pruned in
            part when it comes.
        TeamError: another process failed, or is gone.
    """
    path = model if isinstance(model, str | Path) else None
    with team.agreed():
        recipe, given = _asked(recipe, fields, tokens_ST, inputs)
        if output is not None:
            output = Path(output).expanduser().absolute()
            check_output(output)
        if spill is not None:
            spill = check_spill(spill)
        if resume and (path is None or output is None):
            raise InputError("resume=True is for a model given as a path, with an output.")
    verb = "quantising" if recipe.method == QUANTIZE else "pruning"
    with (
        _modes_kept(model, always=False),
        watching(observer, team.first, verb) as observer,
        threads_of(output if resume else None, team, observer.say),
    ):
        request = Request(
            model, recipe, output is not None, output, spill, tokenizer, given, trust_remote_code,
            resume, allow_different, observer, team,
        )  # fmt: skip
        run, tokenizer = prepare(request)
        if recipe.pack:
            check_pack(run, request)
        make_room(run, request)
        return carry_out(run, request, tokenizer)


@typed
def plan(
    model: str | Path | PreTrainedModel,
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path | None = None,
    spill: str | Path | None = None,
    tokenizer: Any = None,
    tokens_ST: Tensor | None = None,
    inputs: Sequence[Sample] | None = None,
    trust_remote_code: bool = False,
    observer: Observer | None = None,
    **fields: Any,
) -> Plan:
    """Forecast what ``prune`` with the same arguments will cover and cost. Write nothing.

    >>> prunus.plan("path/to/model", method="mrp-sm", pattern="2:4", output="pruned").peak_bytes

    It looks at the model as ``prune`` does, and prunes one block for nothing: a model in memory has
    its weights afterwards. Where heads and neurons go it is the whole model, by two samples (of a
    model in memory, a copy).
    """
    if output is not None:
        check_output(Path(output).expanduser())
    if spill is not None:
        spill = check_spill(spill)
    recipe, given = _asked(recipe, fields, tokens_ST, inputs)
    with _modes_kept(model), watching(observer) as observer:
        return forecast(
            Request(
                model, recipe, True, None, spill, tokenizer, given, trust_remote_code,
                observer=observer,
            )
        )  # fmt: skip


@contextmanager
def _modes_kept(model: Any, always: bool = True) -> Iterator[None]:
    """Restore the training mode of a model in memory; or only if an error ends this."""
    modules = list(model.modules()) if isinstance(model, PreTrainedModel) else []
    before = [(module, module.training) for module in modules]
    refused = True
    try:
        yield
        refused = False
    finally:
        for module, training in before if always or refused else ():
            module.training = training


@typed
def quantize(
    model: str | Path | PreTrainedModel,
    *,
    bits: int = 4,
    group: int | None = 128,
    scales: bool | None = None,
    clip: bool = True,
    pack: bool = False,
    **others: Any,
) -> Result:
    """Put the weights of a pruned (or a dense) model on integer grids; its zeros stay zeros.

    >>> prunus.quantize("pruned", bits=4, group=128, output="pruned-4-bits")

    Where ``prune`` wrote the model, what its report claims of each layer's zeros is claimed of the
    result, and verified: the pattern, along which side, in which order of the inputs. ``pattern``
    (and ``sparsity``) claim one pattern of all layers instead.

    Args:
        model: as for ``prune``.
        bits: 2 to 8.
        group: inputs that share a grid; None: whole rows.
        scales: search input scales (AWQ); None: unless it is packed, which cannot hold them.
        clip: search clipping strengths.
        pack: write the integers, in place of the numbers that they stand for.
        **others: as for ``prune``: output, calibration, samples, resume, observer …
    """
    if "method" in others:
        raise InputError("quantize has a method of its own; prune(method=…, bits=4) has both.")
    settings = {"scales": not pack if scales is None else scales, "clip": clip}
    fields: dict[str, Any] = {"method": QUANTIZE, "bits": bits, "group": group or 0, "pack": pack}
    fields["settings"] = settings
    Recipe.of(**fields).build()  # what is wrong with it is said before anything is downloaded
    if others.get("output") is not None:
        check_output(Path(others["output"]).expanduser())
    return prune(model, **{**fields, **others})


@typed
def evaluate(
    model: str | Path | PreTrainedModel,
    text: Any = "builtin",
    *,
    against: str | Path | PreTrainedModel | None = None,
    length: int | None = None,
    windows: int | None = None,
    tokenizer: Any = None,
    data_dir: str | Path | None = None,
    field: str | None = None,
    bos: str = "auto",
    last_word: bool | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    scored: Scored | None = None,
    observer: Observer | None = None,
) -> Evaluation:
    """Perplexity by the papers' protocol: see ``prunus.judge.perplexity``.

    >>> prunus.evaluate("pruned", "wiki.test.raw", length=2048, windows=8).perplexity
    >>> prunus.evaluate("pruned", "lambada", data_dir="texts").accuracy
    >>> prunus.evaluate("pruned", "builtin", windows=2, against="path/to/model").against.kl

    Args:
        model: a folder, hub id or GGUF, or a model in memory.
        text: a SOURCE: a file, a folder, c4, wikitext2, ptb, lambada, or builtin's held-out part.
            A known name is the text that papers score; a file is scored as it lies. Or the text
            itself, as ``prune`` takes it; token ids of several rows are one window each, those of
            one dimension, or of one row, are one text.
        against: the dense model, to compare with token by token: KL, likeliest tokens, greedy text
            (``prunus.judge.perplexity.Agreement``). A folder that does not fit beside the other
            model is read block by block.
        length: tokens per window; None: 2048, or the model's context where that is shorter.
        windows: how many to score, windows or passages; None: all.
        tokenizer: of a model in memory; a path brings its own.
        data_dir: where named sources lie as files.
        field: the field of the text's rows; None: by its name.
        bos: ``yes`` begins every window with the beginning-of-text token, ``no`` leaves it out,
            ``auto`` has it where the tokenizer puts it, at the start of the whole text.
        last_word: score the last word of each passage, as ``judge.last_word`` says, in place of
            windows; None: for lambada alone.
        dtype: of the weights of a model that is loaded here.
        device: where to run.
        trust_remote_code: run code that comes with the checkpoint.
        scored: called after every window with (done, total, perplexity so far); None: a bar on a
            terminal or in a notebook.
        observer: told what is read; None: as for ``prune``.
    """
    wanted = Wanted(
        [text], None, against, length, windows, tokenizer, data_dir, field, bos, last_word, dtype,
        device, trust_remote_code, scored, observer,
    )  # fmt: skip
    return evaluation.carry_out(model, wanted).texts[0]


@typed
def evaluate_all(
    model: str | Path | PreTrainedModel,
    texts: Sequence[Any] = (),
    *,
    tasks: str | Sequence[str] = (),
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    **others: Any,
) -> Evaluations:
    """Evaluate on several texts and on lm-eval's tasks. The model is loaded once.

    >>> prunus.evaluate_all("pruned", ["wiki.test.raw", "builtin"], windows=2).texts[1].perplexity
    >>> prunus.evaluate_all("pruned", tasks="lambada_openai", data_dir="texts").tasks[0].values

    Args:
        model: as for ``evaluate``.
        texts: any number of what ``evaluate`` takes as its text.
        tasks: names of lm-eval's tasks, groups and tags; also in words with commas between them.
            With ``data_dir`` they are read from local files (``prunus.judge.task_files``).
        shots: examples before each question; None: as the task defines it, usually none.
        limit: questions of each task; None: all.
        batch_size: questions at once.
        **others: as for ``evaluate``: against, length, data_dir, device, tokenizer …
    """
    known = set(inspect.signature(evaluate).parameters) - {"model", "text"}
    for name in others:
        if name not in known:
            raise UnknownNameError("argument", name, known)
    if is_source(texts):
        raise InputError(f"texts is a list of texts; got {texts!r}. Use evaluate for one.")
    asked = Tasks.of(tasks, shots, limit, batch_size)
    if not texts and not asked.names:
        raise InputError("Nothing is to be evaluated; give texts, tasks or both.")
    return evaluation.carry_out(model, Wanted(texts, asked if asked.names else None, **others))


def _asked(
    recipe: Recipe | str | Path | None,
    fields: dict[str, Any],
    tokens_ST: Any,
    inputs: Sequence[Sample] | None,
) -> tuple[Recipe, Any]:
    """Return the recipe, and the text or samples that were given beside it."""
    given, samples = fields.get("calibration"), either(tokens_ST, inputs)
    if is_source(given):
        return _recipe(recipe, fields), samples
    if samples is not None:
        name = "tokens_ST" if inputs is None else "inputs"
        raise InputError(f"{name} and calibration are both given. Give one of them.")
    recipe = _recipe(recipe, {k: v for k, v in fields.items() if k != "calibration"})
    return recipe, collect(given, "calibration", recipe.samples)


def _recipe(recipe: Recipe | str | Path | None, fields: dict[str, Any]) -> Recipe:
    if recipe is None:
        return Recipe.of(**fields)
    if isinstance(recipe, Recipe):
        return recipe.replaced(**fields)
    if isinstance(recipe, str | Path):
        return Recipe.read(recipe, **fields)
    raise InputError(
        f"A recipe is a Recipe or a YAML file of one; got {type(recipe).__name__}. Fields go "
        "beside it: method='ria', sparsity=0.5."
    )
