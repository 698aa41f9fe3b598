"""Calibration samples: token ids of text, or what a processor makes of text and images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base.errors import CalibrationError, InputError

Sample = Mapping[str, Any]
"""Keyword arguments of a model's forward."""


@dataclass(frozen=True)
class Processed:
    """Samples of any length, each with its processed images or sounds.

    Attributes:
        samples: arguments of a forward each, one sample by itself.
        weights: how much each token of each sample counts in the statistics; None: all alike.
        said: of each sample the chat that it is, as a line of JSON; "" where it is none.
    """

    samples: tuple[Sample, ...]
    weights: tuple[Tensor, ...] | None = None
    said: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, part: slice | Sequence[int]) -> Processed:
        if isinstance(part, slice):
            part = range(len(self))[part]
        weights = None if self.weights is None else tuple(self.weights[i] for i in part)
        said = tuple(self.said[i] for i in part) if self.said else ()
        return Processed(tuple(self.samples[i] for i in part), weights, said)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each sample."""
        return [sample["input_ids"].shape[1] for sample in self.samples]

    def numel(self) -> int:
        """Return the number of all samples' tokens, as a tensor of ids counts them."""
        return sum(self.lengths)

    @property
    def sha256(self) -> str:
        """A hash of every tensor's name, dtype, shape and bytes."""
        digest = hashlib.sha256()
        for sample in self.samples:
            for name, value in sorted(sample.items()):
                digest.update(f"{name} {getattr(value, 'dtype', '')} ".encode())
                digest.update(_bytes(value))
        return digest.hexdigest()


Samples = Tensor | Processed
"""Token ids (S, T), or samples as a processor makes them."""


def processed(inputs: Sequence[Sample]) -> Processed:
    """Check what a processor returned for each sample.

    Raises:
        CalibrationError: no samples, or one that is not a mapping with ``input_ids`` (1, T).
    """
    if isinstance(inputs, Mapping | str) or not isinstance(inputs, Sequence):
        raise CalibrationError(
            "inputs is a list of what the processor returns, one mapping per sample; got "
            f"{type(inputs).__name__}. Give [processor(images=…, text=…, return_tensors='pt'), …]."
        )
    if not inputs:
        raise CalibrationError("inputs is empty; give at least one sample.")
    return Processed(tuple(_sample(i, sample) for i, sample in enumerate(inputs)))


def _sample(index: int, sample: Any) -> Sample:
    ids = sample.get("input_ids") if isinstance(sample, Mapping) else None
    if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != 1 or ids.shape[1] < 2:
        found = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        if not isinstance(sample, Mapping):
            found = f"no mapping but {type(sample).__name__}"
        raise CalibrationError(
            f"inputs[{index}] needs input_ids of shape (1, tokens), at least two of them; got "
            f"{found}. Process the samples one by one, with return_tensors='pt'."
        )
    mask = sample.get("attention_mask")
    if isinstance(mask, Tensor) and not bool(mask.all()):
        raise CalibrationError(
            f"inputs[{index}] is padded: its attention_mask has zeros, and padding would count as "
            "text. Process the samples one by one, without padding."
        )
    own = {
        str(name): value for name, value in sample.items() if name not in ("labels", "use_cache")
    }
    return {name: x.to(torch.int64) if name == "input_ids" else x for name, x in own.items()}


def either(tokens_ST: Tensor | None, inputs: Sequence[Sample] | None) -> Samples | None:
    """Return the one that was given.

    Raises:
        InputError: both were.
    """
    if inputs is None:
        return tokens_ST
    if tokens_ST is not None:
        raise InputError("Give tokens_ST or inputs, not both: each is the calibration set.")
    return processed(inputs)


def keywords(sample: Tensor | Sample, device: torch.device) -> dict[str, Any]:
    """Return arguments of a forward without a cache, for token ids (B, T) or a processed sample."""
    own: Sample = {"input_ids": sample} if isinstance(sample, Tensor) else sample
    placed = {k: x.to(device) if isinstance(x, Tensor) else x for k, x in own.items()}
    return {**placed, "use_cache": False}


def each(samples: Samples) -> Iterator[Tensor | Sample]:
    """Yield one sample after the other, a row of ids as (1, T)."""
    if isinstance(samples, Tensor):
        return (ids_T[None] for ids_T in samples)
    return iter(samples)


def token_ids(samples: Samples) -> Iterator[Tensor]:
    """Yield the token ids (T,) of one sample after the other."""
    if isinstance(samples, Tensor):
        return iter(samples)
    return (sample["input_ids"][0] for sample in samples)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, Tensor):
        return repr(value).encode()
    flat = value.detach().cpu().contiguous().flatten()
    return str(tuple(value.shape)).encode() + flat.view(torch.uint8).numpy().tobytes()
