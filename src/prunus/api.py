"""The three calls of the library: prune, evaluate, load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .calibration import Protocol, read_documents
from .calibration.tokens import (
    GIVEN,
    calibration_tokens,
    checked,
    given_tokens,
    needed,
    tokenize,
    window_length,
)
from .checkpoint import (
    Dtype,
    check_output,
    load_model,
    load_tokenizer,
    load_weights,
)
from .errors import CalibrationError, InputError, UnknownNameError
from .evaluation import Evaluation, perplexity
from .journal import Journal
from .methods import METHODS
from .observer import Observer, Silent
from .permutation.orders import Orders
from .planning import Plan, forecast
from .recipe import Recipe
from .report.pruning_report import FILE as REPORT
from .report.pruning_report import read_report
from .result import Result, prune_journaled, write
from .run import Run
from .runtime import index_inputs, to_semi_structured
from .structured.methods import STRUCTURED
from .structured.run import Request, StructuredRun
from .types import BlockPruner
from .weights import InMemory, Weights


def prune(
    model: str | Path | PreTrainedModel,
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    spill: str | Path | None = None,
    tokenizer: Any = None,
    tokens_ST: Tensor | None = None,
    trust_remote_code: bool = False,
    observer: Observer | None = None,
    **fields: Any,
) -> Result:
    """Prune a causal language model without retraining.

    >>> prunus.prune("path/to/model", method="ria", sparsity=0.5, output="pruned")
    >>> prunus.prune(model, method="wanda", pattern="2:4", tokenizer=tokenizer)  # in place

    With a path and an ``output`` every finished block is on disk at once, for a later run to take
    up; and the model is never in memory as a whole, unless it is a GGUF or writes its own text.

    Args:
        model: a folder, hub id or GGUF; or a model in memory, which is pruned in place.
        recipe: a Recipe, or a YAML file of one; fields given beside it replace its own.
        output: folder for the checkpoint, which must not exist; None writes nothing.
        resume: go on with the unfinished run that was to become ``output``.
        spill: a folder for activations, which else stay in memory.
        tokenizer: of a model in memory; a path brings its own.
        tokens_ST: calibration token ids (samples, tokens) instead of text.
        trust_remote_code: run code that comes with the checkpoint.
        observer: told of every step.
        **fields: the fields of ``Recipe``: method, sparsity, pattern, calibration, samples …

    Raises:
        InputError: anything that cannot be used, with the cure. No file is written then.
        NumericalError: NaN or inf, with the layer or block. A model in memory may be pruned in
            part when it comes.
    """
    if output is not None:
        output = Path(output).expanduser().absolute()
        check_output(output)
    path = model if isinstance(model, str | Path) else None
    recipe = _recipe(recipe, fields)
    if recipe.structured:
        if resume or spill is not None:
            raise InputError(
                f"{recipe.method} changes the widths of a model that is in memory as a whole, so "
                "there is nothing to resume or spill. Leave --resume and --spill out."
            )
        return _prune_structured(
            model, recipe, output, tokenizer, tokens_ST, trust_remote_code, observer or Silent()
        )
    if resume and (path is None or output is None):
        raise InputError("resume=True is for a model given as a path, with an output.")
    written = output is not None
    run, tokenizer = _prepared(
        model, recipe, {}, written, spill, tokenizer, tokens_ST, trust_remote_code, observer
    )
    if path is None or output is None:
        result = Result(*run.prune(), output, held=run.weights.model)
        if output is None:
            return result
        verification = write(result, tokenizer, run.recipe, run.observer, trust_remote_code)
        return replace(result, verification=verification)
    journal = Journal.open(output, run.fingerprint(path), resume, run.observer.say)
    return prune_journaled(run, journal, output, tokenizer, trust_remote_code)


def plan(
    model: str | Path | PreTrainedModel,
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path | None = None,
    spill: str | Path | None = None,
    tokenizer: Any = None,
    tokens_ST: Tensor | None = None,
    trust_remote_code: bool = False,
    observer: Observer | None = None,
    **fields: Any,
) -> Plan:
    """What ``prune`` with the same arguments will cover and cost. Nothing is written.

    >>> prunus.plan("path/to/model", method="mrp-sm", pattern="2:4", output="pruned").peak_bytes

    It looks at the model as ``prune`` does, and prunes one block for nothing: a model in memory has
    its weights afterwards.
    """
    if output is not None:
        check_output(Path(output).expanduser())
    recipe = _recipe(recipe, fields)
    if recipe.structured:
        raise InputError(
            f"`prunus plan` is for methods that remove single weights; {recipe.method} removes "
            "heads and neurons. It holds the model in memory, and its calibration activations."
        )
    run, _ = _prepared(
        model, recipe, {}, True, spill, tokenizer, tokens_ST, trust_remote_code, observer
    )
    return forecast(run)


def _prepared(
    model: str | Path | PreTrainedModel,
    recipe: Recipe | str | Path | None,
    fields: dict[str, Any],
    written: bool,
    spill: str | Path | None,
    tokenizer: Any,
    tokens_ST: Tensor | None,
    trust_remote_code: bool,
    observer: Observer | None,
) -> tuple[Run, Any]:
    """All that comes before the first change: a run, and the tokenizer if one is needed."""
    observer = observer or Silent()
    recipe, pruner = _resolved(recipe, fields, tokens_ST is not None)
    device = pick_device(recipe.device)  # raises before the model is loaded
    weights, tokens, tokenizer = _inputs(
        model, recipe, written, tokenizer, tokens_ST, trust_remote_code, observer
    )
    path = model if isinstance(model, str | Path) else weights.model.config.name_or_path
    name, folder = str(path or "in memory"), Path(spill).expanduser() if spill else None
    return Run.of(weights, name, recipe, pruner, tokens, device, observer, folder), tokenizer


def _inputs(
    model: str | Path | PreTrainedModel,
    recipe: Recipe,
    stream: bool,
    tokenizer: Any,
    tokens_ST: Tensor | None,
    trust_remote_code: bool,
    observer: Observer,
) -> tuple[Weights, tuple[Tensor | None, Protocol | None], Any]:
    """The weights, the calibration tokens, and the tokenizer if one is needed."""
    weights: Weights
    if isinstance(model, str | Path):
        observer.say(f"loading {model}")
        if tokenizer is None and (stream or recipe.calibration not in ("none", GIVEN)):
            tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        # Text that the model writes takes hundreds of forwards: not from disk.
        stream = stream and recipe.calibration != "self" and not recipe.structured
        weights = load_weights(
            model, dtype=recipe.dtype, trust_remote_code=trust_remote_code, stream=stream
        )
    else:
        _in_memory(model, recipe.dtype)
        model.eval()
        weights = InMemory(model)
    tokens = (
        given_tokens(tokens_ST, weights.model)
        if tokens_ST is not None
        else _tokens(weights.model, tokenizer, recipe, observer)
    )
    return weights, tokens, tokenizer


def _prune_structured(
    model: str | Path | PreTrainedModel,
    recipe: Recipe,
    output: Path | None,
    tokenizer: Any,
    tokens_ST: Tensor | None,
    trust_remote_code: bool,
    observer: Observer,
) -> Result:
    """Whole heads and neurons: the model is in memory, and becomes smaller there."""
    pruner, sparsity = recipe.build_units()
    source = recipe.calibration or ("builtin" if pruner.reads_text else "none")
    if tokens_ST is not None:
        source = GIVEN
    if pruner.reads_text and source == "none":
        raise CalibrationError(
            f"{recipe.method} so set reads text ({STRUCTURED[recipe.method].needs}). Give a "
            "calibration source; self, which the model writes; or use l1, l2 or random."
        )
    share = sparsity if recipe.parameters is None else None
    recipe = recipe.model_copy(update={"sparsity": share, "calibration": source})
    device = pick_device(recipe.device)
    weights, tokens, tokenizer = _inputs(
        model, recipe, output is not None, tokenizer, tokens_ST, trust_remote_code, observer
    )
    name = model if isinstance(model, str | Path) else weights.model.config.name_or_path
    request = Request(
        str(name or "in memory"), recipe.method, pruner, sparsity, recipe.parameters,
        recipe.blocks, recipe.seed,
    )  # fmt: skip
    report, widths = StructuredRun.of(weights.model, request, tokens, device, observer).prune()
    result = Result(report, Orders(), output, held=weights.model, widths=widths)
    if output is None:
        return result
    verification = write(result, tokenizer, recipe, observer, trust_remote_code)
    return replace(result, verification=verification)


def _resolved(
    recipe: Recipe | str | Path | None, fields: dict[str, Any], tokens_given: bool
) -> tuple[Recipe, BlockPruner]:
    """The recipe with its defaults filled in, and the pruner that it spells."""
    recipe = _recipe(recipe, fields)
    pruner, sparsity = recipe.build()
    source = recipe.calibration or ("builtin" if pruner.needs else "none")
    if tokens_given:
        source = GIVEN
    if pruner.needs and source == "none":
        raise CalibrationError(
            f"{recipe.method} reads activations ({METHODS[recipe.method].needs}), so it needs "
            "calibration text. Give a source, or use magnitude or ri."
        )
    return recipe.model_copy(update={"sparsity": sparsity, "calibration": source}), pruner


def evaluate(
    model: str | Path | PreTrainedModel,
    text: str = "builtin",
    *,
    length: int | None = None,
    windows: int | None = None,
    tokenizer: Any = None,
    data_dir: str | Path | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    scored: Callable[[int, int, float], None] = lambda done, total, perplexity: None,
) -> Evaluation:
    """Perplexity by the papers' protocol: see ``prunus.evaluation.perplexity``.

    >>> prunus.evaluate("pruned", "wiki.test.raw", length=2048, windows=8).perplexity

    Args:
        model: a folder, hub id or GGUF, or a model in memory.
        text: a SOURCE: a file, a folder, c4, wikitext2, ptb, lambada, or builtin's held-out part.
        length: tokens per window; None: 2048, or the model's context where that is shorter.
        windows: how many to score; None: all.
        tokenizer: of a model in memory; a path brings its own.
        data_dir: where named sources lie as files.
        dtype: of the weights of a model that is loaded here.
        device: where to run.
        trust_remote_code: run code that comes with the checkpoint.
        scored: called after every window with (done, total, perplexity so far).
    """
    if text == "self":
        raise CalibrationError("Text that the model writes itself cannot judge it; give a file.")
    documents = read_documents(text, "evaluation", data_dir)
    if isinstance(model, str | Path):
        tokenizer = tokenizer or load_tokenizer(model, trust_remote_code=trust_remote_code)
        model = load_model(model, dtype=dtype, trust_remote_code=trust_remote_code)
    else:
        _in_memory(model, dtype)
    ids = tokenize(needed(tokenizer), documents.joined())
    ids_T = checked(torch.tensor(ids, dtype=torch.int64), model)
    length = window_length(model, length)
    if documents.windows is not None:
        windows = min(windows or documents.windows, documents.windows)
    model.eval()
    model.to(pick_device(device))  # type: ignore[arg-type]
    return perplexity(
        model, ids_T, length=length, windows=windows, source=documents.name, scored=scored
    )


def load(
    checkpoint: str | Path,
    *,
    dtype: Dtype = "auto",
    device: str = "cpu",
    sparse: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model in eval mode from a folder, a hub id or a GGUF.

    Layers that were pruned with ``--permutation gather`` get their weights in the order of the
    pattern, and an index before them.

    >>> prunus.load("pruned", dtype="bfloat16", device="cuda", sparse="2:4")

    Args:
        checkpoint: what ``prunus prune --output`` wrote, or any other.
        dtype: of the weights.
        device: where to put it.
        sparse: ``"2:4"`` makes torch's semi-structured tensors of the 2:4 layers, on CUDA; this
            has not been run yet, for lack of a GPU. Their layout is checked on any device.
        trust_remote_code: run code that comes with the checkpoint.
    """
    if sparse not in (None, "2:4"):
        raise UnknownNameError("sparse", sparse, ["2:4"])
    where = pick_device(device)
    model = load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)
    model.to(where)  # type: ignore[arg-type]
    folder = Path(checkpoint).expanduser()
    if (folder / REPORT).exists():
        layers = read_report(folder).layers
        index_inputs(model, layers, Orders.read(folder))
    else:
        layers = []
    if sparse is not None:
        to_semi_structured(model, layers)
    return model


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise UnknownNameError("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnknownNameError("device", name, ["auto", "cpu", "cuda", "cuda:0"]) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch sees no CUDA device. Use --device cpu.")
    return device


def _recipe(recipe: Recipe | str | Path | None, fields: dict[str, Any]) -> Recipe:
    if recipe is None:
        return Recipe.of(**fields)
    if isinstance(recipe, Recipe):
        return recipe.replaced(**fields)
    return Recipe.read(recipe, **fields)


def _in_memory(model: Any, dtype: str) -> None:
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            "A model in memory is a transformers PreTrainedModel, unwrapped; got "
            f"{type(model).__name__}. Or give a folder, a hub id or a GGUF."
        )
    if any(hasattr(module, "input_order") for module in model.modules()):
        raise InputError(
            "This model reads some inputs through indices (prunus.load of a gathered checkpoint); "
            "they would be lost. Give the checkpoint's folder instead."
        )
    if dtype != "auto":
        raise InputError(f"dtype={dtype} is for models that are loaded; convert this one first.")


def _tokens(
    model: PreTrainedModel, tokenizer: Any, recipe: Recipe, observer: Observer
) -> tuple[Tensor | None, Protocol | None]:
    return calibration_tokens(
        model,
        tokenizer,
        source=recipe.calibration or "none",
        samples=recipe.samples,
        length=recipe.length,
        seed=recipe.seed,
        data_dir=recipe.data_dir,
        say=observer.say,
    )
