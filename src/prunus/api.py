"""The three calls of the library: prune, evaluate, load."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .allocation import Uniform, select_layers
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
from .channels import Channels
from .checkpoint import (
    Dtype,
    check_output,
    load_model,
    load_tokenizer,
    new_folder,
    write_model,
)
from .engine import (
    Observer,
    Silent,
    any_tokens,
    inspect,
    prune_blocks,
    residual_order,
    start,
)
from .errors import CalibrationError, InputError, UnknownNameError
from .evaluation import Evaluation, perplexity
from .methods import METHODS
from .permutation.orders import FILE as ORDERS
from .permutation.orders import Orders
from .recipe import Recipe
from .replay import Recording
from .report import Coverage, PruningReport, model_card
from .report.pruning_report import FILE as REPORT
from .report.pruning_report import read_report, realised_sparsity
from .runtime import index_inputs, to_semi_structured
from .types import BlockPruner
from .verification import Verification, verify


@dataclass(frozen=True)
class Result:
    """A pruned model and all that is known about it.

    Attributes:
        model: pruned in place, in eval mode.
        report: layer by layer.
        orders: of the channels, where they were put into others.
        output: the checkpoint, if one was written.
        verification: what ``verify`` found in it.
    """

    model: PreTrainedModel
    report: PruningReport
    orders: Orders
    output: Path | None
    verification: Verification | None


def prune(
    model: str | Path | PreTrainedModel,
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path | None = None,
    tokenizer: Any = None,
    tokens_ST: Tensor | None = None,
    trust_remote_code: bool = False,
    observer: Observer | None = None,
    **fields: Any,
) -> Result:
    """Prune a causal language model without retraining.

    >>> prunus.prune("path/to/model", method="ria", sparsity=0.5, output="pruned")
    >>> prunus.prune(model, method="wanda", pattern="2:4", tokenizer=tokenizer)  # in place

    Args:
        model: a folder, hub id or GGUF; or a model in memory, which is pruned in place.
        recipe: a Recipe, or a YAML file of one; fields given beside it replace its own.
        output: folder for the checkpoint, which must not exist; None writes nothing.
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
    observer = observer or Silent()
    recipe, pruner = _resolved(recipe, fields, tokens_ST is not None)
    pick_device(recipe.device)  # raises before the model is loaded
    if output is not None:
        output = Path(output).expanduser()
        check_output(output)
    name = str(model)
    if isinstance(model, str | Path):
        observer.say(f"loading {model}")
        reads_text = recipe.calibration not in ("none", GIVEN)
        if tokenizer is None and (reads_text or output is not None):
            tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
        model = load_model(model, dtype=recipe.dtype, trust_remote_code=trust_remote_code)
    else:
        _in_memory(model, recipe.dtype)
        name = model.config.name_or_path or "in memory"
    model.eval()
    ids_ST, protocol = (
        given_tokens(tokens_ST, model)
        if tokens_ST is not None
        else _tokens(model, tokenizer, recipe, observer)
    )
    report, orders = _run(model, name, recipe, pruner, ids_ST, protocol, observer)
    result = Result(model, report, orders, output, None)
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


def _run(
    model: PreTrainedModel,
    name: str,
    recipe: Recipe,
    pruner: BlockPruner,
    ids_ST: Tensor | None,
    protocol: Protocol | None,
    observer: Observer,
) -> tuple[PruningReport, Orders]:
    """Look at the model, plan, prune, report."""
    begun = time.perf_counter()
    ids = ids_ST if ids_ST is not None else any_tokens(model)
    blocks, traced = inspect(model, ids)
    layers = select_layers(blocks, mlp_only=recipe.mlp_only, skip_blocks=recipe.skip_blocks)
    sparsity = cast(float, recipe.sparsity)
    plan = Uniform()(layers, sparsity)
    coverage = Coverage.of(model, blocks, set(plan))
    if not recipe.mlp_only and recipe.skip_blocks is None:
        coverage.check()
    observer.say(f"pruning {len(layers)} layers in {len(blocks)} blocks: {coverage}")

    def recording() -> Recording | None:
        return None if ids_ST is None else start(model, blocks, traced, ids_ST)

    where: Any = {"device": pick_device(recipe.device), "observer": observer}
    channels = None
    if pruner.ordering is not None:
        fold = pruner.ordering.realisation == "fold"
        channels = Channels.of(model, blocks, traced, ids, fold)
        if fold:
            order_I = residual_order(blocks, recording(), pruner.ordering, plan, **where)
            channels.apply(Orders(order_I))
    reports = prune_blocks(
        blocks,
        recording(),
        pruner,
        plan,
        true_sequential=recipe.true_sequential,
        channels=channels,
        **where,
    )
    report = PruningReport(
        model=name,
        method=recipe.method,
        pruner=repr(pruner),
        pattern=recipe.pattern,
        requested=sparsity,
        sparsity=realised_sparsity(reports),
        coverage=coverage,
        protocol=protocol,
        seconds=time.perf_counter() - begun,
        layers=reports,
    )
    return report, channels.orders if channels else Orders()


def write(
    result: Result,
    tokenizer: Any,
    recipe: Recipe,
    observer: Observer,
    trust_remote_code: bool = False,
) -> Verification:
    """Write ``result.output`` under a temporary name, verify it, then give it its own."""
    output, report = cast(Path, result.output), result.report
    recipe_yaml = recipe.to_yaml(report.model)
    texts = {
        "recipe.yaml": recipe_yaml,
        REPORT: report.to_json(),
        "README.md": model_card(report, recipe_yaml),
    }
    if result.orders:
        texts[ORDERS] = result.orders.to_json()
    with new_folder(output) as folder:
        observer.say(f"writing {output}")
        write_model(folder, result.model, tokenizer, texts)
        observer.say("verifying: patterns, zeros, and a reload in a fresh process")
        verification = verify(folder, trust_remote_code=trust_remote_code)
        if not verification.ok:
            raise InputError(
                f"The checkpoint did not pass its own verification and was not kept: "
                f"{verification.problems[0]}"
            )
    return verification


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
