"""The ways to run a model that ``prunus bench`` compares, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..base.device import Dtype
from ..base.errors import CheckpointError, InputError, UnknownNameError
from .comparators import has_dynamic_int8

DENSE, PRUNED, LLAMA_CPP = "dense", "pruned", "llama.cpp"
PACKED = {  # by the dtype that a model of these values runs in where none is asked for
    "packed-fp32": "float32",
    "packed-bf16": "bfloat16",
    "packed-fp16": "float16",
    "packed-int8": "auto",
    "packed-int4": "auto",
}
WAYS = (DENSE, PRUNED, *PACKED, "csr", "int8", "2:4", LLAMA_CPP)
FLOAT32 = ("csr", "int8")  # all that torch has for them


@dataclass(frozen=True)
class Way:
    """One way to run one checkpoint.

    Attributes:
        label: its name in tables: what was asked for.
        kind: one of ``WAYS``.
        model: the checkpoint.
        dtype: that it is loaded in; "auto": that of its files.
        own_dtype: whether the way chose the dtype, and not the run.
    """

    label: str
    kind: str
    model: str | Path
    dtype: str
    own_dtype: bool = False


def ways_of(
    asked: Sequence[str], folder: str | Path, dense: str | Path, dtype: Dtype, device: str
) -> list[Way]:
    """Return the dense model, then every way that was asked for, each of them possible here.

    ``KIND`` runs ``folder``, and ``KIND=CHECKPOINT`` another one. ``int8`` is of the dense model.

    Raises:
        UnknownNameError: no such way.
        InputError: twice the same, none beside the dense model, or one that cannot run here.
    """
    found = [Way(DENSE, DENSE, dense, dtype)]
    for label in asked:
        kind, given, model = label.partition("=")
        if kind not in WAYS:
            raise UnknownNameError("way to run", kind, WAYS)
        if label == DENSE:
            continue
        _check(kind, model if given else None, device)
        if label in {way.label for way in found}:
            raise InputError(f"{label} is there twice. Name every way once.")
        place = model or (dense if kind == "int8" else folder)
        own = _own(kind, dtype)
        found.append(Way(label, kind, place, own or dtype, own is not None))
    if len(found) == 1:
        raise InputError(
            f"There is nothing to compare the dense model with. Name a way: {', '.join(WAYS[1:])}."
        )
    return found


def _own(kind: str, dtype: str) -> str | None:
    """Return the dtype that a way chooses itself; None: that of the run."""
    if kind in FLOAT32:
        return "float32"
    own = PACKED.get(kind, "auto")
    return own if dtype == "auto" and own != "auto" else None


def _check(kind: str, model: str | None, device: str) -> None:
    """Raise InputError for a way that cannot run here."""
    if model == "" or (kind == DENSE and model is not None):
        other = "the dense model is named by --dense" if kind == DENSE else "it names no checkpoint"
        raise InputError(f"{kind}={model or ''}: {other}. Write {kind}{_example(kind)}.")
    if kind == "2:4" and device == "cpu":
        raise InputError(
            "2:4 runs on sparse tensor cores, and this is the CPU. Give --device cuda, or leave "
            "2:4 out."
        )
    if kind in ("int8", LLAMA_CPP) and device != "cpu":
        raise InputError(f"{kind} is measured on the CPU alone. Leave it out, or --device.")
    if kind == "int8" and not has_dynamic_int8():
        raise InputError(
            "int8 is torch's dynamic quantisation (torch.ao.quantization), which this torch no "
            "longer has. Leave int8 out, or install torch 2.13 or earlier."
        )
    if kind == LLAMA_CPP:
        _check_llama_cpp(model)


def _check_llama_cpp(model: str | None) -> None:
    if find_spec("llama_cpp") is None:
        raise InputError(
            "llama.cpp is measured through llama-cpp-python, which is not installed: "
            "pip install llama-cpp-python."
        )
    if model is None:
        raise InputError(f"llama.cpp needs a file: {LLAMA_CPP}{_example(LLAMA_CPP)}.")
    path = Path(model).expanduser()
    if not path.is_file() or path.suffix != ".gguf":
        raise CheckpointError(f"llama.cpp reads a .gguf file; got {path}, which is none.")


def _example(kind: str) -> str:
    return {DENSE: "", LLAMA_CPP: "=FILE.gguf"}.get(kind, "=FOLDER")


def names(given: str | Sequence[str]) -> list[str]:
    """Return the names in a list, or in words with commas between them."""
    words = [given] if isinstance(given, str) else list(given)
    if not all(isinstance(word, str) for word in words):
        raise InputError(f"Ways to run are names; got {given!r}. There are {', '.join(WAYS)}.")
    return [part.strip() for word in words for part in word.split(",") if part.strip()]


def counts(name: str, given: int | str | Sequence[int]) -> list[int]:
    """Return whole numbers of at least 1, which may come as ``"1,4,16"``.

    >>> counts("batch", "1,4"), counts("batch", 2)
    ([1, 4], [2])

    Raises:
        InputError: anything else, none, or one of them twice.
    """
    parts = given.split(",") if isinstance(given, str) else given
    parts = parts if isinstance(parts, Sequence) else [parts]
    try:
        found = [int(part) for part in parts]
    except (TypeError, ValueError):
        found = []
    if not found or min(found) < 1 or len(set(found)) < len(found):
        raise InputError(
            f"{name} is a whole number of at least 1, or different ones such as 1,4,16; got "
            f"{given!r}."
        )
    return found


def disk_bytes(place: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())
