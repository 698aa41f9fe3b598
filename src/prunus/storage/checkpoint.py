"""Reads a checkpoint: a folder, a hub id, a GGUF.

Only safetensors and GGUF are read, never a pickle. A local path is never looked up on the hub.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from ..base.atomic import check_name
from ..base.device import Dtype, checked_dtype
from ..base.errors import (
    CheckpointError,
    CheckpointWarning,
    InputError,
    first_line,
    other_shape,
)
from ..base.words import a_few, number_of
from ..model.blocks import find_blocks
from ..model.weights import InMemory, Weights
from . import kinds
from .gguf_parts import parts, whole, wholes
from .gguf_reading import quick
from .hub import commit_of, snapshot
from .origin import Origin
from .packed import is_packed
from .scratch import Scratch
from .shards import check_shards
from .streamed import Streamed, note_untied
from .widths import read_widths, rebuilt

TOKENIZER = (  # files that some tokenizer has
    "tokenizer*", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "added_tokens.json",
    "special_tokens_map.json", "chat_template*",
)  # fmt: skip
# transformers 5.0 gives accelerate no map of one device alone; no module has the second one's name.
ON_DISK = {"": "disk", "nothing": "cpu"}
GIT_LFS, POINTER = b"version https://git-lfs", 1024  # how a pointer begins; bytes that it has not


@dataclass(frozen=True)
class Source:
    """The place of a checkpoint, as arguments that transformers takes.

    Attributes:
        location: the folder.
        gguf_file: the file in it, where it is a GGUF.
        hub: ``org/model@commit``, where the folder is that model's snapshot in the cache.
    """

    location: str
    gguf_file: str | None = None
    hub: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of safetensors, not a GGUF."""
        return self.gguf_file is None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``."""
        gguf = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        # the code of a hub id may lie in another repository
        return {"local_files_only": self.hub is None, **gguf}


def find(checkpoint: str | Path, packed: bool = False) -> Source:
    """Find a folder, a GGUF file, a folder that holds one, or a hub id, which becomes a folder.

    Args:
        checkpoint: as it was given.
        packed: whether a packed checkpoint will do.

    Raises:
        CheckpointError: none of these, or a folder whose files are damaged.
    """
    path = Path(checkpoint).expanduser()
    check_name(path)
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
        return _gguf(parts(path)[0])
    if path.is_dir():
        return _find_in(path, packed)
    name = str(checkpoint)
    repo = name.partition("@")[0]
    if repo.count("/") > 1 or name.startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise CheckpointError(f"{name} does not exist. Give a folder, a .gguf file or a hub id.")
    folder = snapshot(name)
    return replace(_find_in(folder, packed), hub=commit_of(folder))


def folder_of(checkpoint: str | Path) -> Path:
    """Return where the files beside the weights of a folder, a GGUF or a hub id would lie."""
    source = find(checkpoint, packed=True)
    return Path(source.location) if source.gguf_file is None else Path(checkpoint).expanduser()


def _check_fetched(folder: Path) -> None:
    """Raise CheckpointError for what a clone without git-lfs leaves in place of large files."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < POINTER:
            with path.open("rb") as file:
                if file.read(len(GIT_LFS)) == GIT_LFS:
                    raise CheckpointError(
                        f"{path} is a git-lfs pointer, not the file itself. Install git-lfs and "
                        f"run `git lfs pull` in {folder}."
                    )


def _find_in(folder: Path, packed: bool) -> Source:
    _check_fetched(folder)
    kinds.check(Source(str(folder)))
    if is_packed(folder):
        if not packed:
            raise CheckpointError(
                f"{folder} is packed, which prunus.load, prunus eval and prunus bench read. Give "
                "the checkpoint that it was exported from."
            )
        return Source(str(folder))
    if (folder / "config.json").exists():
        check_shards(folder)
        return Source(str(folder))
    ggufs = wholes(sorted(folder.glob("*.gguf")))
    if len(ggufs) > 1:
        names = ", ".join(p.name for p in ggufs)
        raise CheckpointError(f"{folder} holds several GGUF files ({names}). Name one of them.")
    if not ggufs:
        raise CheckpointError(
            f"{folder} holds no checkpoint: no config.json and no .gguf. Give the folder that "
            "save_pretrained wrote."
        )
    return _gguf(ggufs[0])


def _gguf(path: Path) -> Source:
    if find_spec("gguf") is None:  # transformers would speak of torch
        raise InputError(f"{path} is a GGUF, which needs gguf: pip install 'prunus[gguf]'.")
    return Source(str(path.parent), path.name)


def read_tensors(tensors: dict[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the checkpoint, one in memory at a time."""
    for file in sorted(set(tensors.values())):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)


def load_model(
    checkpoint: str | Path, *, dtype: Dtype = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a causal language model in eval mode on the CPU.

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
    """Load a model; with ``stream``, weights of a block are read when needed (not from a GGUF).

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
    """Return the files that the model comes from; None if it is no folder of safetensors."""
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
        with explained(checkpoint):
            tensors = read_tensors(check_shards(folder))
            made = rebuilt(folder, widths, tensors, wanted, trust_remote_code)
        made.eval()
        return made
    loaded: Any  # a pair, which the stubs do not know
    auto_class = kinds.auto_class(source)
    with (
        whole(source.location, source.gguf_file) as location,
        quick(source.gguf_file),
        explained(checkpoint),
    ):
        loaded = auto_class.from_pretrained(
            location if origin is None else str(origin.plain),
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
    """Raise CheckpointError for tensors that are missing, misshapen or unexpected."""
    missing = sorted(loading["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{checkpoint} lacks {number_of(len(missing), 'tensor')} ({a_few(missing)}), which "
            "transformers would fill at random. Get the complete checkpoint."
        )
    for name, found, expected in sorted(loading.get("mismatched_keys", ())):
        raise CheckpointError(f"{checkpoint}: {other_shape(name, found, expected)}")
    if loading["unexpected_keys"]:
        unused = sorted(loading["unexpected_keys"])
        warnings.warn(
            f"{checkpoint} holds {number_of(len(unused), 'tensor')} that its config.json has no "
            f"place for ({a_few(unused)}). The model goes without.",
            CheckpointWarning,
            stacklevel=3,
        )


def load_tokenizer(checkpoint: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer beside the checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    source = find(checkpoint, packed=True)
    kinds.check(source)  # a hub id's too, before anything else is said of it
    if source.gguf_file is None:
        with explained(checkpoint):  # a config that cannot be read, or a hub out of reach
            AutoConfig.from_pretrained(
                source.location, trust_remote_code=trust_remote_code, **source.arguments
            )
    try:
        with quick(source.gguf_file):
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
    """A tokenizer that is only handed on, as files."""

    files: tuple[Path, ...]

    def save_pretrained(self, folder: Path) -> None:
        """Copy the files."""
        for file in self.files:
            shutil.copyfile(file, folder / file.name)


def tokenizer_to_copy(
    checkpoint: str | Path, trust_remote_code: bool, say: Callable[[str], None]
) -> Any:
    """Return the tokenizer; its files if it cannot be loaded; None if there are none."""
    try:
        return load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    except CheckpointError:
        source, files = find(checkpoint, packed=True), set[Path]()
        if not source.gguf_file:
            files = {x for kind in TOKENIZER for x in Path(source.location).glob(kind)}
    if not files:
        say(f"{checkpoint} has no tokenizer, so the output gets none")
        return None
    names = ", ".join(sorted(file.name for file in files))
    say(f"the tokenizer cannot be loaded, so its files are copied as they are: {names}")
    return TokenizerFiles(tuple(sorted(files)))


@contextmanager
def explained(checkpoint: str | Path) -> Iterator[None]:
    """Say in one sentence why transformers cannot build or load a model.

    Raises:
        CheckpointError: whatever went wrong.
    """
    try:
        yield
    except Exception as error:  # transformers raises half a dozen kinds here
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{checkpoint} brings code of its own. Read it, and pass --trust-remote-code "
                "(trust_remote_code=True) to run it."
            ) from None
        raise CheckpointError(
            f"{checkpoint} cannot be loaded as a causal language model: {first_line(error)}. Get "
            "a complete checkpoint of one."
        ) from error


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same weights in a model whose config does not claim that they are a GGUF."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with init_empty_weights():
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    result: PreTrainedModel = plain
    return result
