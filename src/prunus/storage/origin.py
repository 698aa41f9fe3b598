"""What a run does not change: the source's own bytes, names, dtypes, fields and files.

A pruned checkpoint is the checkpoint that it was made from with some numbers replaced. Loading and
saving a model would lose more than that: dtypes are rounded to the model's, tensors that
transformers ignores vanish, config.json and the tokenizer are rewritten in the form of one
version, other programs' files are left behind. So what is written is laid over the source.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import CheckpointError
from ..model.weights import Weights
from ..report.from_source import FromSource
from .decoding import CLAIMS, claimed, decode, without_claims
from .scratch import Scratch
from .shards import INDEX

ANEW_FILES = {
    "recipe.yaml", "pruning_report.json", "channel_orders.json", "widths.json", "README.md",
    "config.json", "answers.jsonl", "recovery-answers.jsonl",
}  # fmt: skip
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth",
           ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf", ".npz",
           ".part", ".tmp", ".lock")  # fmt: skip
LARGEST = 2**27  # bytes of a file that is copied along
LEFTOVERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")  # buffers that old files hold
ANEW = {*CLAIMS, "dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path"}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Origin:
    """The folder that a model was read from.

    Attributes:
        folder: as it was given.
        plain: the same with its weights decoded; the folder itself where they are plain.
        tensors: the file of every tensor.
        dtype: what the tensors shall become; None: every one keeps its own.
        aside: tensors that the model has no place for, by their names in the files.
        scratch: holds the decoded files.
        decoded: the format that they were decoded from.
    """

    folder: Path
    plain: Path
    tensors: Mapping[str, Path]
    dtype: str | None = None
    aside: list[str] = field(default_factory=list)
    scratch: Scratch | None = None
    decoded: str | None = None

    @classmethod
    def of(cls, folder: Path, tensors: Mapping[str, Path], dtype: str | None = None) -> Origin:
        """Look at config.json and the headers; decode the weights where they are not plain.

        Raises:
            CheckpointError: weights that cannot be decoded.
        """
        form = claimed(folder, read_config(folder), tensors)
        if form is None:
            return cls(folder, folder, tensors, dtype)
        scratch = decode(folder, form, tensors)
        index = json.loads((scratch.path / INDEX).read_text())
        plain = {name: scratch.path / file for name, file in index["weight_map"].items()}
        return cls(folder, scratch.path, plain, dtype, scratch=scratch, decoded=form.name)

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """Return every tensor's file, dtype and shape, from the headers alone."""
        found: dict[str, Stored] = {}
        for file in sorted(set(self.tensors.values())):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():
                    if self.tensors.get(name) == file:
                        part = opened.get_slice(name)
                        found[name] = Stored(file, part.get_dtype(), tuple(part.get_shape()))
        return found

    def read(self, name: str) -> Tensor:
        """Return a tensor with the bits that it has in its file."""
        with safe_open(self.tensors[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def own_name(self, name: str, model: PreTrainedModel) -> str:
        """Return what the source calls a tensor: some files have the names of the base model."""
        short = name.removeprefix(f"{model.base_model_prefix}.")
        if name in self.tensors or short == name:
            return name
        layer = short.rpartition(".")[0]  # whose weight may be packed by now
        known = short in self.tensors or f"{layer}.weight" in self.tensors
        return short if known else name

    def note_ignored(self, model: PreTrainedModel, unexpected: Iterable[str]) -> None:
        """Find the tensors that transformers did not put into the model.

        It reports some as unexpected, and says nothing of others: a family lists patterns of names
        (multi-token prediction, towers for other inputs) that it passes over in silence.
        """
        silent = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
        pattern = re.compile("|".join(f"({x})" for x in (*silent, *LEFTOVERS)))
        told, own = set(unexpected), _with_and_without_prefix(model)
        # What is merged as it is loaded, such as experts, is reported under the merged name.
        merged = {f"{name.rpartition('.')[0]}." for name in told}
        nowhere = tuple(x for x in merged if not any(name.startswith(x) for name in own))
        self.aside = sorted(
            name
            for name in self.tensors
            if name not in own
            and (
                name in told
                or pattern.search(name)
                or any(x.endswith(f".{name}") for x in told)
                or name.startswith(nowhere)
            )
        )

    def restored(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor that is to be written in the dtype that the source has it in.

        Numbers that the run did not change are the source's own to the last bit. A number that
        would become 0 in a narrower dtype becomes the smallest one of that dtype: what is 0 was
        pruned.
        """
        known = self.stored.get(name)
        dtype = DTYPES.get(known.dtype) if known is not None else None
        if known is None or dtype in (None, tensor.dtype) or self.dtype is not None:
            return tensor
        if not tensor.is_floating_point():
            return tensor
        assert dtype is not None
        narrow = _narrowed(tensor, dtype)
        if known.shape != tuple(tensor.shape):
            return narrow
        was = self.read(name)
        same = was.to(tensor.dtype) == tensor
        if bool(same.all()):
            return was
        return torch.where(same & (tensor != 0), was, narrow)

    def taken_over(self, keeps_architecture: bool) -> FromSource:
        """Return what the new checkpoint has from these files, besides its model.

        Args:
            keeps_architecture: whether what the model has no place for fits it still: not where it
                has fewer heads or neurons, or another order of the residual stream.
        """
        files: list[str] = []
        left: dict[str, str] = {}
        for name, reason in self._files():
            if reason is None:
                files.append(name)
            else:
                left[name] = reason
        carried, dropped = (self.aside, []) if keeps_architecture else ([], self.aside)
        return FromSource(self.decoded, self.dtype, carried, dropped, files, left)

    def write_files(self, names: Sequence[str], target: Path) -> None:
        """Copy files of the source byte for byte."""
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, target / name)

    def _files(self) -> Iterator[tuple[str, str | None]]:
        """Yield every file beside the weights, with the reason why it is not copied, if any.

        Weights in another form, and what describes those, would be the unpruned model's.
        """
        read = {path.name for path in self.tensors.values()}
        for top, folders, names in os.walk(self.folder):
            folders[:] = sorted(x for x in folders if not x.startswith((".", "__pycache__")))
            here = Path(top).relative_to(self.folder)
            others = [x for x in names if x.endswith(WEIGHTS) and x not in read | {INDEX}]
            if others and here.parts:
                folders.clear()
                yield f"{here.as_posix()}/", "weights in another form"
                continue
            for name in sorted(names):
                shown = (here / name).as_posix()
                if name in others or (name == "params.json" and others):
                    yield shown, "weights in another form"
                elif (
                    not name.endswith(WEIGHTS)
                    and not name.startswith(".")
                    and shown not in ANEW_FILES
                ):
                    large = (Path(top) / name).stat().st_size > LARGEST
                    yield shown, f"larger than {LARGEST // 2**20} MiB" if large else None

    def write_config(self, target: Path, model: PreTrainedModel) -> None:
        """Write the source's config.json with what this run changed, and nothing else."""
        config = read_config(self.folder)
        own = without_claims(config)
        new = copy.deepcopy(own)  # parts of it change, and it is compared with what it was
        if self.dtype is not None:
            new["torch_dtype" if "torch_dtype" in new else "dtype"] = self.dtype
        new.setdefault("architectures", [type(model).__name__])
        read = type(model.config).from_pretrained(self.plain, local_files_only=True)
        _merge(new, read.to_dict(), model.config.to_dict())
        if new == config:
            shutil.copyfile(self.folder / "config.json", target / "config.json")
        else:
            text = json.dumps(new, indent=2, ensure_ascii=False) + "\n"
            (target / "config.json").write_text(text, encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Return what ``config.json`` says.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / 'config.json'} is damaged: no JSON object.")
    return content


def _merge(target: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Put the fields of ``now`` that differ from ``before`` into ``target``, level by level."""
    for key, value in now.items():
        was = before.get(key)
        if key in ANEW or (key in before and was == value):
            continue
        if isinstance(value, dict) and isinstance(was, dict):
            _merge(target.setdefault(key, {}), was, value)
        else:
            target[key] = value


def _with_and_without_prefix(model: PreTrainedModel) -> set[str]:
    """Return the names of the model's tensors, also as a file of its base model has them."""
    names, prefix = set(model.state_dict()), f"{model.base_model_prefix}."
    return names | {name.removeprefix(prefix) for name in names}


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in another dtype; no number but 0 becomes 0."""
    narrow = tensor.to(dtype)
    lost = (narrow == 0) & (tensor != 0)
    if bool(lost.any()):
        info = torch.finfo(dtype)
        smallest = torch.full_like(narrow, info.smallest_normal * info.eps)
        narrow = torch.where(lost, torch.copysign(smallest, tensor.to(torch.float32)), narrow)
    return narrow.to(dtype)


def origin_of(weights: Weights) -> Origin | None:
    """Return the folder that a model was read from; None where it is no folder of safetensors."""
    return weights.origin if isinstance(weights.origin, Origin) else None
