"""From a recipe to calibration token ids, and the checks of any token ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import CalibrationError, InputError
from ..model.blocks import context_length
from ..model.samples import Processed, Samples
from .bos import first_token, missing_bos
from .documents import Documents
from .sampling import OVERLAPPING, Protocol, digest, sample_windows
from .self_generated import generate

DEFAULT_LENGTH = 2048


def calibration_tokens(
    model: PreTrainedModel,
    tokenizer: Any,
    documents: Documents | None,
    *,
    samples: int,
    length: int | None,
    seed: int,
    bos: str,
    say: Callable[[str], None],
    purpose: str = "calibration",
) -> tuple[Tensor, Protocol]:
    """Return token ids (samples, length) and a record of what they are, told with their purpose.

    From documents, or where there are none from text that the model writes.
    """
    first = first_token(needed(tokenizer), bos)
    tokenizer, length = needed(tokenizer), window_length(model, length)
    if documents is None:
        if bos == "no":
            raise InputError(
                "The model starts its own text with a beginning-of-text token, so --bos no cannot "
                "be used with --calibration self. Leave it out."
            )
        say(f"the model writes {samples} × {length} tokens of {purpose} text")
        ids_ST, protocol = generate(model, tokenizer, samples=samples, length=length, seed=seed)
    else:
        ids_ST, protocol = sample_windows(
            documents,
            lambda text: tokenize(tokenizer, text, bos),
            samples=samples,
            length=length,
            seed=seed,
            first=first,
        )
        if warning := missing_bos(model, tokenizer, ids_ST, bos):
            say(warning)
    protocol = replace(protocol, bos=bos)
    say(f"{purpose}: {protocol}")
    if protocol.distinct < OVERLAPPING:
        say(
            f"warning: {purpose} windows repeat each other, for this text is short or few of its "
            f"documents are longer than {length} tokens. More text, or a shorter --length, gives "
            "more to read."
        )
    return checked(ids_ST, model), protocol


def given_samples(samples: Any, model: PreTrainedModel) -> tuple[Samples, Protocol]:
    """Check what was given in Python: token ids, or samples as a processor makes them."""
    if not isinstance(samples, Processed):
        return given_tokens(samples, model)
    for sample in samples:
        checked(sample["input_ids"], model)
    longest, limit = max(samples.lengths), context_length(model)
    if limit is not None and longest > limit:
        raise CalibrationError(
            f"inputs has a sample of {longest} tokens, but the model takes at most {limit}."
        )
    names = ", ".join(sorted({name for sample in samples for name in sample}))
    return samples, Protocol(
        f"inputs given ({names})", len(samples), longest, 0, 0, 0, False, samples.sha256
    )


def given_tokens(ids_ST: Any, model: PreTrainedModel) -> tuple[Tensor, Protocol]:
    """Check token ids that were given in Python."""
    if not isinstance(ids_ST, Tensor) or ids_ST.ndim != 2 or ids_ST.is_floating_point():
        shape = tuple(ids_ST.shape) if isinstance(ids_ST, Tensor) else ""
        kind = f"{ids_ST.dtype} " if isinstance(ids_ST, Tensor) else ""
        raise CalibrationError(
            "tokens_ST is an integer tensor of token ids, (samples, tokens); got "
            f"{type(ids_ST).__name__} {kind}{shape}."
        )
    samples, length = ids_ST.shape
    if samples < 1 or length < 2:
        raise CalibrationError(
            f"tokens_ST needs at least one sample of two tokens; got {samples} × {length}."
        )
    longest = context_length(model)
    if longest is not None and length > longest:
        raise CalibrationError(
            f"tokens_ST has samples of {length} tokens, but the model takes at most {longest}."
        )
    ids_ST = checked(ids_ST.to(torch.int64), model)
    return ids_ST, Protocol("tokens given", samples, length, 0, 0, 0, False, digest(ids_ST))


def checked(ids: Tensor, model: PreTrainedModel) -> Tensor:
    """Return the same ids, if the model has an embedding for each."""
    table: Any = model.get_input_embeddings()
    rows = int(table.weight.shape[0])
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= rows:
        raise CalibrationError(
            f"Token id {low if low < 0 else high} is outside of the model's {rows} embeddings: the "
            "tokenizer does not belong to this model. Use the one that came with it."
        )
    return ids


def tokenize(tokenizer: Any, text: str, bos: str = "auto") -> list[int]:
    """Tokenize a whole text with the tokenizer's own special tokens; never truncated.

    Unless ``bos`` is ``auto``, without the beginning-of-text token: windows have it, or none.
    """
    ids: list[int] = tokenizer(text, truncation=False, verbose=False).input_ids
    return ids if bos == "auto" else [token for token in ids if token != tokenizer.bos_token_id]


def window_length(model: PreTrainedModel, length: int | None) -> int:
    """Return the tokens per window: as asked, else 2048 or the model's shorter context."""
    limit = context_length(model)
    if length is None:
        return min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)
    if limit is not None and length > limit:
        raise InputError(f"--length {length} is more than the model's context of {limit} tokens.")
    return length


def needed(tokenizer: Any) -> Any:
    """Return the tokenizer, or raise an error if there is none."""
    if tokenizer is None:
        raise InputError("A model in memory needs tokenizer=…, or token ids in place of text.")
    return tokenizer
