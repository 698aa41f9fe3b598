"""Text and token ids that are given in Python, in their common forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..base.errors import CalibrationError
from ..model.samples import Samples
from .dialects import Row, RowReader
from .documents import Documents, Split
from .sources import finished

IDS, TEXTS = "tokens", "texts"  # how a recipe names what was given in Python
EXPECTED = (
    "a SOURCE (a file, a folder or a name), a list of strings or of chats, a datasets.Dataset, a "
    "DataLoader, or token ids of one length (torch or numpy)"
)


@dataclass(frozen=True)
class Texts:
    """Rows of text that were given in Python.

    Attributes:
        rows: strings, chats, or mappings of fields.
        kind: what they came as.
    """

    rows: Sequence[Row]
    kind: str

    def documents(self, split: Split, field: str | None, tokenizer: Any) -> Documents:
        """Return the texts, read like those of a file.

        Raises:
            CalibrationError: no text is found in a row; says in which.
        """
        reader = RowReader(field, tokenizer)
        name = f"texts given ({self.kind})"
        named = ((f"{name}, row {i}", row) for i, row in enumerate(self.rows, 1))
        documents = Documents(name, reader.texts(named, keep_empty=split == "evaluation"))
        return finished(documents, split, reader)


Given = Samples | Texts


def how_many(given: Given | None, asked: int) -> int:
    """Return the number of calibration samples: those that were given, or those asked of text."""
    return asked if given is None or isinstance(given, Texts) else len(given)


def is_source(value: Any) -> bool:
    """Return whether this names text, rather than being it."""
    return value is None or isinstance(value, str | Path)


def source_name(asked: str | None, default: str, given: Any) -> str:
    """Return the recipe's name for the calibration text.

    Raises:
        CalibrationError: it was given in Python when the recipe was run, and now it is not.
    """
    if given is not None:
        return TEXTS if isinstance(given, Texts) else IDS
    if asked in (IDS, TEXTS):
        what, argument = ("token ids", "tokens_ST") if asked == IDS else ("texts", "calibration")
        raise CalibrationError(
            f"This recipe was run on {what} given in Python, which a recipe cannot hold. Give a "
            f"calibration source, or the same {what} as {argument}."
        )
    return asked or default


def collect(value: Any, name: str, most: int | None = None, flat: bool = False) -> Tensor | Texts:
    """Collect token ids (samples, tokens), or texts, from whatever holds them.

    Args:
        value: see ``EXPECTED``; also the output of a tokenizer, a list of ids or of batches, of
            which those of several tensors count by their first, and a data frame.
        name: of the argument, for errors.
        most: samples to take from a DataLoader of token ids, which may have no end; None: all.
        flat: take one dimension of token ids too.

    Raises:
        CalibrationError: it is something else, mixed, ragged, padded or empty; one line says which.
    """
    kind = type(value).__name__
    if hasattr(value, "iloc") and hasattr(value, "to_dict"):  # a pandas DataFrame or Series
        value = value.to_dict("records") if hasattr(value, "columns") else value.tolist()
    if isinstance(value, Mapping) and "input_ids" not in value:
        parts = ", ".join(map(str, list(value)[:8])) or "nothing"
        raise CalibrationError(
            f"{name} is a {kind} of {parts}. Give one part of it, such as data['train']."
        )
    whole = isinstance(value, Mapping) or _is_array(value) or _is_whole(value)
    found: Tensor | Texts | None = _ids(value, name) if whole else None
    if found is None:
        _check_iterable(value, kind, name)
        found = _collected(value, kind, name, most)
    if isinstance(found, Texts):
        return found
    if not found.numel():
        raise CalibrationError(f"{name} is an empty {kind}. Give some text, or token ids.")
    if found.ndim > 2 or found.ndim < (1 if flat else 2):
        raise CalibrationError(
            f"{name} has token ids of the shape {tuple(found.shape)}; expected (samples, tokens), "
            "such as ids.reshape(-1, 2048)."
        )
    return found


def _check_iterable(value: Any, kind: str, name: str) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise CalibrationError(f"{name} is {EXPECTED}; got {kind}.")
    if not hasattr(value, "__len__"):
        raise CalibrationError(
            f"{name} is a {kind}, which has no known end. Give a list of what it yields, "
            "such as list(itertools.islice(data, 1000))."
        )


def _collected(value: Iterable[Any], kind: str, name: str, most: int | None) -> Tensor | Texts:
    """Collect what an iterable yields, one by one or in batches."""
    batches: list[Tensor] = []
    rows: list[Row] = []
    loader = isinstance(value, DataLoader)
    for place, item in enumerate(value, 1):
        ids = _ids(item, f"{name}, item {place}")
        if ids is not None:
            batches.append(ids if ids.ndim > 1 else ids[None])
        elif loader:
            _check_ends(value, name)
            rows += _batch(item)
        else:
            rows.append(item)
        if rows and batches:
            raise CalibrationError(f"{name} has token ids and text; give one or the other.")
        if loader and most is not None and sum(map(len, batches)) >= most:
            break
    if not rows:
        return _together(batches, name)[: most if loader else None]
    if isinstance(value, list) and all(isinstance(r, Mapping) and "role" in r for r in rows):
        rows = [rows]  # one chat
    odd = [r for r in rows if not isinstance(r, str | Mapping | list | tuple) and r is not None]
    if odd:
        raise CalibrationError(f"{name} is {EXPECTED}; got a {kind} of {type(odd[0]).__name__}.")
    return Texts(rows, f"{kind} of {len(rows)}")


def _together(batches: Sequence[Tensor], name: str) -> Tensor:
    if not batches:
        return torch.empty(0, 0, dtype=torch.int64)
    shapes = {tuple(ids.shape[1:]) for ids in batches}
    if len(shapes) > 1:
        lengths = sorted({shape[0] for shape in shapes})
        raise CalibrationError(
            f"{name} has samples of {lengths[0]} to {lengths[-1]} tokens. Give samples of one "
            "length, or their texts."
        )
    return torch.cat(list(batches))


def _ids(item: Any, where: str) -> Tensor | None:
    """Return the token ids of a tensor, an array, numbers or a batch; None if it is text.

    Raises:
        CalibrationError: they are no integers, or padded.
    """
    if isinstance(item, Mapping):
        if "input_ids" not in item:
            return None
        mask = item.get("attention_mask")
        if mask is not None and not torch.as_tensor(mask).all():
            raise CalibrationError(
                f"{where} is padded, and padding would count as text. Give samples of one length "
                "without padding, or their texts."
            )
        return _ids(item["input_ids"], where)
    if isinstance(item, np.ndarray):
        if item.dtype.kind not in "iuf":
            return None
        item = torch.from_numpy(item.astype(np.int64) if item.dtype.kind in "iu" else item)
    if isinstance(item, Tensor):
        if item.is_floating_point() or item.is_complex() or item.dtype == torch.bool:
            raise CalibrationError(f"{where} has {item.dtype} numbers; token ids are integers.")
        return item.detach().cpu().to(torch.int64)
    if isinstance(item, list | tuple) and item:
        if _is_array(item[0]):
            if item[0].ndim < 2 and len(item) > 1:  # a column each, if torch collated lists
                raise CalibrationError(
                    f"{where} is {len(item)} tensors of one dimension. Give one tensor (samples, "
                    "tokens), as dataset.set_format('torch') makes it."
                )
            return _ids(item[0], where)
        if _is_whole(item):
            return torch.tensor(item, dtype=torch.int64)
        if all(isinstance(row, list) and _is_whole(row) for row in item):
            return _together([torch.tensor([row], dtype=torch.int64) for row in item], where)
    return None


def _batch(item: Any) -> list[Row]:
    """Return the rows of a batch of texts, as a DataLoader collates them or leaves them."""
    if isinstance(item, Mapping):
        columns = {
            name: values for name, values in item.items() if isinstance(values, list | tuple)
        }
        if columns:
            return [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
    return list(item) if isinstance(item, list | tuple) else [item]


def _check_ends(loader: Any, name: str) -> None:
    try:
        len(loader)
    except TypeError:
        raise CalibrationError(
            f"{name} is a DataLoader of texts without a known end. Give a list of them."
        ) from None


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_whole(value: Any) -> bool:
    """Return whether it is a list of whole numbers."""
    numbers = isinstance(value, list | tuple) and len(value) > 0
    return numbers and all(
        isinstance(x, int | np.integer) and not isinstance(x, bool) for x in value
    )
