"""The beginning-of-text token (BOS), and which windows begin with it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import InputError, UnknownNameError

Bos = Literal["auto", "yes", "no"]


def adds_bos(tokenizer: Any) -> bool:
    """Return whether the tokenizer puts BOS before a text by itself."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and list(tokenizer("a").input_ids[:1]) == [bos]


def first_token(tokenizer: Any, bos: str) -> int | None:
    """Return the token that every window begins with: BOS for ``yes``, else None.

    Raises:
        InputError: ``yes``, and the tokenizer has no BOS; a value that is none of the three.
    """
    if bos not in ("auto", "yes", "no"):
        raise UnknownNameError("value of bos", str(bos), ["auto", "yes", "no"])
    if bos != "yes":
        return None
    if getattr(tokenizer, "bos_token_id", None) is None:
        raise InputError(
            "--bos yes: this tokenizer has no beginning-of-text token. Leave --bos out."
        )
    return int(tokenizer.bos_token_id)


def stream_with(ids_T: Tensor, first: int, length: int) -> Tensor:
    """Return token ids in which every window of ``length`` begins with ``first``, included."""
    pieces = ids_T.split(length - 1)
    start_T = torch.tensor([first], dtype=ids_T.dtype)
    return torch.cat([part for piece_T in pieces for part in (start_T, piece_T)])


def missing_bos(model: PreTrainedModel, tokenizer: Any, windows_NL: Tensor, bos: str) -> str | None:
    """Return a warning for windows without BOS in a family that was always trained with it.

    The rule: the model's type has "gemma" in its name, its tokenizer adds BOS by itself, and
    ``bos`` is ``auto``. Gemma's outputs without BOS are far from those with it.
    """
    family = str(model.config.model_type)
    if bos != "auto" or "gemma" not in family or not adds_bos(tokenizer):
        return None
    without = int((windows_NL[:, 0] != tokenizer.bos_token_id).sum())
    if not without:
        return None
    return (
        f"warning: {family} expects {tokenizer.bos_token} at the beginning of every window, and "
        f"{without} of {len(windows_NL)} windows begin without it. --bos yes puts it there."
    )
