"""Makes a run of what ``prunus.prune`` and ``prunus.plan`` are given, before the first change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..base.atomic import no_new_parents
from ..base.device import pick_device
from ..base.errors import CalibrationError, InputError
from ..base.team import ALONE, Team
from ..base.words import number_of
from ..maths.contracts import BlockPruner
from ..maths.orders.orders import Orders
from ..maths.pruners import ActivationAware
from ..methods.build import Composition
from ..methods.own import check_weighs, check_written
from ..methods.table import QUANTIZE
from ..model.samples import Processed
from ..recipe import Recipe
from ..storage.answered import AnswerJournal
from ..storage.assembly import check_names
from ..storage.checkpoint import folder_of
from ..storage.widths import widths_of
from ..text.given import Given, how_many, source_name
from ..text.mixture import parts_of
from .carried import Carried
from .fingerprint import files_of
from .inputs import inputs, named
from .job import Job
from .observer import Observer, Silent
from .units_run import UnitsRun, check_text
from .weights_run import WeightsRun

Run = WeightsRun | UnitsRun


@dataclass(frozen=True)
class Request:
    """What ``prune`` and ``plan`` are given.

    Attributes:
        model: a folder, hub id or GGUF; or a model in memory.
        recipe: every choice.
        written: whether a checkpoint is to come of it.
        output: where that goes, for a run that writes it.
        spill: a folder for activations; None keeps them in memory.
        tokenizer: of a model in memory.
        given: token ids, processed samples or texts that were given in Python.
        trust_remote_code: run code that comes with the checkpoint.
        resume: go on with the unfinished run that was to become ``output``.
        allow_different: go on also with another version, device or number of processes.
        observer: told of every step.
        team: the processes that do it together.
    """

    model: str | Path | PreTrainedModel
    recipe: Recipe
    written: bool
    output: Path | None = None
    spill: Path | None = None
    tokenizer: Any = None
    given: Given | None = None
    trust_remote_code: bool = False
    resume: bool = False
    allow_different: bool = False
    observer: Observer = field(default_factory=Silent)
    team: Team = ALONE

    @property
    def path(self) -> str | Path | None:
        """The checkpoint; None for a model in memory."""
        return None if isinstance(self.model, PreTrainedModel) else self.model

    @property
    def samples(self) -> int:
        """How many samples there are, or will be."""
        return how_many(self.given, self.recipe.samples)

    @property
    def recovery_samples(self) -> int:
        """How many samples the text of recovery has, or will have; 0: it has none of its own."""
        own = self.recipe.text_of_recovery()
        return 0 if own is None else own.samples

    def few(self, samples: int) -> Request:
        """Return the same request with at most that many samples of each text."""
        sources = len(parts_of(self.recipe.calibration or "none"))
        least = {"samples": min(self.samples, max(samples, sources))}
        if self.recovery_samples:
            least["recovery_samples"] = min(self.recovery_samples, samples)
        return replace(self, recipe=self.recipe.model_copy(update=least))


def prepare(request: Request) -> tuple[Run, Any]:
    """Look at the model and its text; change nothing.

    Returns:
        The run, and the tokenizer that is to be saved, if one is.

    Raises:
        InputError: anything that cannot be used, with the cure.
    """
    team = request.team
    with team.agreed():
        run, tokenizer = _prepared(request)
    run.check_team()
    return run, tokenizer


def _prepared(request: Request) -> tuple[Run, Any]:
    recipe, built = filled(request.recipe, request.given)
    device = pick_device(recipe.device)  # raises before the model is loaded
    units = built.units
    weights, tokens, recovery, tokenizer = inputs(
        request.model, recipe, request.written, request.tokenizer, request.given,
        request.trust_remote_code, request.observer, units is not None and units.wants("gradients"),
        request.spill, request.team, partial(_journal_of_answers, request),
    )  # fmt: skip
    name = named(request.model, weights.model)
    look = partial(
        Job.of, weights, name, recipe, tokens, recovery, device, request.observer, request.spill,
        request.team,
    )  # fmt: skip
    if units is not None:
        check_text(recipe, units, tokens[0], (tokens if recovery is None else recovery)[0])
        return UnitsRun.of(look, recipe, units), tokenizer
    pruner, orders = _with_claims(request, built.weights)
    run = replace(
        WeightsRun.of(look, pruner, built.allocation, built.reconstruction), orders=orders
    )
    if isinstance(tokens[0], Processed) and tokens[0].weights is not None:
        _check_weighs(run)
    if request.written:
        check_written(run.pruner, [x for block in run.planned for x in block.planned(run.plan)])
    return run, tokenizer


def _journal_of_answers(
    request: Request, fingerprint: Mapping[str, Any], purpose: str
) -> AnswerJournal:
    """Open the first process's journal of answers, where there is to be a checkpoint."""
    if request.output is None or request.path is None or not request.team.first:
        return AnswerJournal()
    whole = {**files_of(request.path), **fingerprint}
    with no_new_parents(request.output):
        return AnswerJournal.open(
            request.output, whole, request.resume, request.allow_different, request.observer.say,
            purpose,
        )  # fmt: skip


def _check_weighs(run: WeightsRun) -> None:
    """Raise InputError where tokens cannot count differently."""
    check_weighs(run.pruner)
    for block in run.planned:
        for layer in block.planned(run.plan):
            if layer.expert is not None:
                raise InputError(
                    f"{layer.name} is an expert, which reads some of the tokens, and prunus does "
                    "not follow an answer's tokens there. Leave --set calibration.answers out: "
                    "every token then counts alike."
                )


def _with_claims(request: Request, pruner: BlockPruner) -> tuple[BlockPruner, Orders]:
    """Have a pruned model that is quantised make the claims about its zeros again.

    Not where a pattern is asked for: that is then claimed of all layers.
    """
    asked = request.recipe.pattern is not None
    if not isinstance(pruner, ActivationAware) or asked or request.path is None:
        return pruner, Orders()
    carried = Carried.of(folder_of(request.path))
    for claim, layers in carried.lost.items():
        request.observer.say(f"not claimed again of {number_of(layers, 'layer')}: {claim}")
    return replace(pruner, claims=carried.claims), carried.orders


def filled(recipe: Recipe, given: Given | None) -> tuple[Recipe, Composition]:
    """Fill in the recipe's defaults, and build what it spells."""
    built = recipe.build()
    reads = built.reads_text
    if built.units is not None and recipe.recovery_text is not None:
        reads = built.units.scores_text
    source = source_name(recipe.calibration, "builtin" if reads else "none", given)
    if reads and source == "none":
        raise CalibrationError(_needs_text(recipe, built))
    alone = built.units is not None and built.units.threshold is not None
    sparsity = None if recipe.parameters is not None else built.sparsity
    if alone and recipe.sparsity is None:
        sparsity = None  # filled in, it would limit what the threshold removes
    filled = recipe.model_copy(update={"sparsity": sparsity, "calibration": source})
    return filled, built


def _needs_text(recipe: Recipe, built: Composition) -> str:
    """Why there must be text, and what else would do."""
    if built.units is not None:
        return (
            f"{recipe.method} so set reads text. Give a calibration source; self, which the "
            "model writes; or use l1, l2 or random without --recovery."
        )
    names = ", ".join(kind.__name__ for kind in built.weights.needs)
    what, cure = names or f"--allocation {recipe.allocation}", "use magnitude or ri"
    if recipe.method == QUANTIZE:
        cure = "give --no-scales --no-clip"
    elif recipe.method in ("magnitude", "ri"):
        cure = "leave --update, --refine and --allocation out"
    return (
        f"{recipe.method} so set reads activations ({what}), so it needs calibration text. "
        f"Give a source, or {cure}."
    )


def check_pack(run: Run, request: Request) -> None:
    """Raise InputError where integers cannot be written, or nothing could read them."""
    assert isinstance(run, WeightsRun)  # a recipe that packs has no units
    if request.output is None or request.path is None:
        raise InputError("pack is for a model given as a path, with an output.")
    if widths_of(run.job.model) is not None:
        raise InputError(
            f"The blocks of {request.path} have different widths: prunus.load alone can load it, "
            "and reads no packed integers. Leave --pack out."
        )
    check_names(run.job.model, run.plan)
