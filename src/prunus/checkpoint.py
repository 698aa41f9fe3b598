"""Reads a checkpoint: a folder, a hub id, a GGUF.

Only safetensors and GGUF are read, never a pickle. A local path is never looked up on the hub.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .blocks import find_blocks
from .errors import CheckpointError, CheckpointWarning, UnknownNameError, first_line, other_shape
from .origin import Origin
from .spill import Scratch
from .structured.widths import read_widths, rebuilt
from .weights import InMemory, Streamed, Weights, note_untied

TOKENIZER = (  # files that some tokenizer has
    "tokenizer*", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "added_tokens.json",
    "special_tokens_map.json", "chat_template*",
)  # fmt: skip
# transformers 5.0 gives accelerate no map of one device alone; no module has the second one's name.
ON_DISK = {"": "disk", "nothing": "cpu"}
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def checked_dtype(name: str) -> Dtype:
    """The dtype of that name, or UnknownNameError."""
    if name not in get_args(Dtype):
        raise UnknownNameError("dtype", name, get_args(Dtype))
    return cast(Dtype, name)


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is: arguments that transformers takes."""

    location: str
    gguf_file: str | None = None
    local: bool = True

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of safetensors here, not a GGUF and not a name on the hub."""
        return self.local and self.gguf_file is None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``."""
        gguf = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        return {"local_files_only": True, **gguf} if self.local else gguf


def find(checkpoint: str | Path) -> Source:
    """A folder, a GGUF file, a folder that holds one, or a hub id.

    Raises:
        CheckpointError: none of these, or a folder whose files are damaged.
    """
    path = Path(checkpoint).expanduser()
    try:
        path.exists()
    except OSError as error:
        name = str(checkpoint)[:60]
        raise CheckpointError(f"{name} … cannot be opened: {error.strerror}.") from None
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"{path} is a file but not a GGUF. Give the folder of a checkpoint, or a .gguf."
            )
        return Source(str(path.parent), path.name)
    if path.is_dir():
        return _find_in(path)
    name = str(checkpoint)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise CheckpointError(f"{name} does not exist. Give a folder, a .gguf file or a hub id.")
    return Source(name, local=False)


def _find_in(folder: Path) -> Source:
    if (folder / "config.json").exists():
        check_shards(folder)
        return Source(str(folder))
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) > 1:
        names = ", ".join(p.name for p in ggufs)
        raise CheckpointError(f"{folder} holds several GGUF files ({names}). Name one of them.")
    if not ggufs:
        raise CheckpointError(
            f"{folder} holds no checkpoint: no config.json and no .gguf. Give the folder that "
            "save_pretrained wrote."
        )
    return Source(str(folder), ggufs[0].name)


def check_shards(folder: Path) -> dict[str, Path]:
    """Every tensor's name and the shard that holds it, after a look at each shard's header.

    Raises:
        CheckpointError: no safetensors, a shard that is missing, damaged or outside of the folder.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            files = [Path(name) for name in names]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise CheckpointError(f"{index} is damaged; download the checkpoint again.") from None
        for file in files:  # names, not resolved paths: a hub cache links its files elsewhere
            if file.is_absolute() or ".." in file.parts:
                raise CheckpointError(f"{index} names {file}, which lies outside of the folder.")
    else:
        files = [Path("model.safetensors")]
    tensors: dict[str, Path] = {}
    for file in (folder / file for file in files):
        if not file.exists():
            pickles = list(folder.glob("*.bin")) and " It holds .bin files: prunus reads no pickle."
            raise CheckpointError(
                f"{folder} has no {file.name}.{pickles or ''} Give a checkpoint saved as "
                "safetensors, complete."
            )
        try:
            with safe_open(file, framework="pt") as opened:
                tensors.update(dict.fromkeys(opened.keys(), file))
        except SafetensorError as error:
            raise CheckpointError(
                f"{file} is damaged ({error}). Download or copy the checkpoint again."
            ) from None
    return tensors


def read_tensors(tensors: dict[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint, one in memory at a time."""
    for file in sorted(set(tensors.values())):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)


def load_model(
    checkpoint: str | Path, *, dtype: Dtype = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """A causal language model in eval mode on the CPU.

    Raises:
        CheckpointError: not there, damaged, incomplete, or of no causal language model.
    """
    source = find(checkpoint)
    origin = _origin(source, checked_dtype(dtype))
    return _loaded(checkpoint, dtype, trust_remote_code, {}, source, origin)


def load_weights(
    checkpoint: str | Path,
    *,
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
    stream: bool = False,
) -> Weights:
    """The same; with ``stream`` a block's weights are read when it needs them, but for a GGUF.

    Raises:
        CheckpointError: as ``load_model``.
    """
    source = find(checkpoint)
    if not source.is_folder:
        return InMemory(load_model(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code))
    origin = _origin(source, dtype)
    if not stream or read_widths(source.location) is not None:
        model = _loaded(checkpoint, dtype, trust_remote_code, {}, source, origin)
        return InMemory(model, origin)
    converted = Scratch()  # for what transformers keeps in another layout
    getLogger("accelerate.big_modeling").setLevel(ERROR)  # "offloaded": that is what we want
    onto_disk = {"device_map": ON_DISK, "offload_folder": str(converted.path)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*device_map keys do not match")
        model = _loaded(checkpoint, dtype, trust_remote_code, onto_disk, source, origin)
    return Streamed.of(model, list(find_blocks(model)), converted, origin)


def _origin(source: Source, dtype: Dtype) -> Origin | None:
    """The files that the model comes from; None: it is no folder of safetensors."""
    if not source.is_folder:
        return None
    folder = Path(source.location)
    return Origin.of(folder, check_shards(folder), None if dtype == "auto" else dtype)


def _loaded(
    checkpoint: str | Path,
    dtype: Dtype,
    trust_remote_code: bool,
    where: Mapping[str, Any],
    source: Source,
    origin: Origin | None,
) -> PreTrainedModel:
    widths = read_widths(source.location) if source.is_folder else None
    if widths is not None:
        wanted = dtype if dtype == "auto" else getattr(torch, dtype)
        folder = Path(source.location)
        with _explained(checkpoint):
            tensors = read_tensors(check_shards(folder))
            made = rebuilt(folder, widths, tensors, wanted, trust_remote_code)
        made.eval()
        return made
    loaded: Any  # a pair, which the stubs do not know
    with _explained(checkpoint):
        loaded = AutoModelForCausalLM.from_pretrained(
            source.location if origin is None else str(origin.plain),
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=None if source.gguf_file else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to name them below
            **where,
            **source.arguments,
        )
    model, loading = loaded
    _check_loading(checkpoint, loading)
    if origin is not None:
        origin.note_ignored(model, loading["unexpected_keys"])
    result: PreTrainedModel = _plain(model) if source.gguf_file else model
    note_untied(result)
    result.eval()
    return result


def _check_loading(checkpoint: str | Path, loading: Mapping[str, Any]) -> None:
    """Tensors that are missing, have another shape, or no place."""
    missing = sorted(loading["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{checkpoint} lacks {len(missing)} tensors ({', '.join(missing[:3])} …); transformers "
            "would fill them at random. Get the complete checkpoint."
        )
    for name, found, expected in sorted(loading.get("mismatched_keys", ())):
        raise CheckpointError(f"{checkpoint}: {other_shape(name, found, expected)}")
    if loading["unexpected_keys"]:
        unused = sorted(loading["unexpected_keys"])
        warnings.warn(
            f"{checkpoint} holds {len(unused)} tensors that its config.json has no place for: "
            f"{', '.join(unused[:3])} … They are no part of the model.",
            CheckpointWarning,
            stacklevel=3,
        )


def load_tokenizer(checkpoint: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer beside the checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    source = find(checkpoint)
    if source.gguf_file is None:
        with _explained(checkpoint):  # a config that cannot be read, or a hub out of reach
            AutoConfig.from_pretrained(
                source.location, trust_remote_code=trust_remote_code, **source.arguments
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.location, trust_remote_code=trust_remote_code, **source.arguments
        )
        if not getattr(tokenizer, "vocab_size", 1):  # of some families, where there are no files
            raise ValueError("its vocabulary is empty")
        return tokenizer
    except Exception as error:  # as below
        if source.gguf_file is not None:
            raise CheckpointError(
                f"{checkpoint} cannot be read as a GGUF: {first_line(error)}. Download it again."
            ) from None
        raise CheckpointError(
            f"{checkpoint} has no tokenizer that can be loaded ({first_line(error)}). Copy "
            "tokenizer.json and tokenizer_config.json of the model into the folder."
        ) from None


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer that is only to be handed on."""

    files: tuple[Path, ...]

    def save_pretrained(self, folder: Path) -> None:
        """Copy them."""
        for file in self.files:
            shutil.copyfile(file, folder / file.name)


def tokenizer_to_copy(
    checkpoint: str | Path, trust_remote_code: bool, say: Callable[[str], None]
) -> Any:
    """The tokenizer; its files where it cannot be loaded; None where there are none."""
    try:
        return load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    except CheckpointError:
        source, files = find(checkpoint), set[Path]()
        if source.local and not source.gguf_file:
            files = {x for kind in TOKENIZER for x in Path(source.location).glob(kind)}
    if not files:
        say(f"{checkpoint} has no tokenizer, so the output gets none")
        return None
    names = ", ".join(sorted(file.name for file in files))
    say(f"the tokenizer cannot be loaded, so its files are copied as they are: {names}")
    return TokenizerFiles(tuple(sorted(files)))


@contextmanager
def _explained(checkpoint: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers raises half a dozen kinds here
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{checkpoint} brings code of its own. Read it, and pass --trust-remote-code "
                "(trust_remote_code=True) to run it."
            ) from None
        why = f"cannot be loaded as a causal language model: {first_line(error)}."
        cure = "Get a whole checkpoint of one."
        if not find(checkpoint).local:
            why = f"is no folder here, and cannot be had from the hub: {first_line(error)}."
            cure = "Give a folder, a .gguf, or a hub id that can be reached or is in the cache."
        raise CheckpointError(f"{checkpoint} {why} {cure}") from error


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model whose config does not claim that they are a GGUF."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with init_empty_weights():
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    result: PreTrainedModel = plain
    return result


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model takes, where its config says so."""
    config = model.config.get_text_config()
    found: int | None = getattr(config, "max_position_embeddings", None)
    return found
