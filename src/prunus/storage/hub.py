"""A model on the Hugging Face hub as a folder: the snapshot of one commit in the cache.

Everything that works for folders then works for hub ids, and the folder's name is the commit.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..base.errors import CheckpointError, CheckpointWarning, first_line

# Weights in formats that are not read, and second copies of the same weights for other software.
UNREAD = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.ot", "*.npz",
    "*.gguf", "*.ggml", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel", "*.mlpackage/*",
    "onnx/*", "openvino/*", "original/*", "consolidated*.safetensors", ".git*",
)  # fmt: skip
NEEDED = ("*.safetensors", "*.json")  # without which there is no model
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def snapshot(name: str) -> Path:
    """Return the folder of a hub id, downloaded unless the cache has all of the model's files.

    Every call in one process has the same commit, also if the branch moves meanwhile.

    Args:
        name: ``org/model``, or ``org/model@revision`` with a branch, a tag or a commit.

    Raises:
        CheckpointError: no such model or revision, no right to read it, or no connection and not
            in the cache.
    """
    repo, _, revision = name.partition("@")
    folder = downloaded(repo, revision or None)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{repo} has no safetensors on the hub (commit {folder.name}), and prunus does not "
            "read pickle files. If it has a .gguf, download that and give the file."
        )
    return folder


@cache
def downloaded(repo: str, revision: str | None) -> Path:
    """Download the snapshot with all files that are read of it; remember it."""
    asked: dict[str, Any] = {"repo_id": repo, "revision": revision}
    try:
        return Path(str(snapshot_download(**asked, ignore_patterns=list(UNREAD))))
    except LocalEntryNotFoundError as error:
        partial = _partial(asked)
        if partial is None:
            raise _unreachable(repo, revision, error) from None
        return partial
    except HFValidationError:
        raise CheckpointError(
            f"{repo} is neither a local folder nor a hub id. Give a folder, a .gguf or a hub id "
            "(org/model)."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(
            f"{repo} has no revision {revision} on the hub. Give a branch, a tag or a commit that "
            "it has."
        ) from None
    except GatedRepoError:
        raise CheckpointError(
            f"{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo}, and {LOG_IN}."
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{repo} is not a local folder, and the hub has no such model that you may read. Check "
            f"the name; if it is private, {LOG_IN}."
        ) from None
    except Exception as error:  # of the connection, or of the disk: half a dozen kinds
        raise CheckpointError(
            f"{repo} cannot be downloaded from the hub: {first_line(error)}."
        ) from error


def commit_of(folder: str | Path) -> str | None:
    """Return ``org/model@commit`` if the folder is a snapshot in a hub cache."""
    parts = Path(folder).absolute().parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None
    return f"{parts[-3].removeprefix('models--').replace('--', '/')}@{parts[-1]}"


def _partial(asked: dict[str, Any]) -> Path | None:
    """Return what other software left in the cache, if it is enough for a model."""
    try:
        found = snapshot_download(**asked, allow_patterns=list(NEEDED), local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    warnings.warn(
        f"{asked['repo_id']} is in the cache only in part, and the hub cannot be reached: files "
        "beside its weights that are missing there will be missing in the output.",
        CheckpointWarning,
        stacklevel=4,
    )
    return Path(str(found))


def _unreachable(repo: str, revision: str | None, error: Exception) -> CheckpointError:
    at = f" at {revision}" if revision else ""
    if constants.HF_HUB_OFFLINE:
        return CheckpointError(
            f"{repo} is not a local folder and not in the hub's cache{at}, and HF_HUB_OFFLINE "
            "forbids to download it. Unset that, or give a folder."
        )
    return CheckpointError(
        f"{repo} is not a local folder and not in the hub's cache{at}, and the hub cannot be "
        f"reached ({first_line(error)}). Check the connection, or give a folder."
    )
