"""All that decides what comes out of a run, for a later one to compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..methods.own import code_of, spelled
from ..recipe import Recipe
from ..report.report import VERSIONS
from ..storage.checkpoint import find
from ..storage.gguf_parts import parts
from ..storage.journal import sha256
from ..storage.shards import check_shards
from ..text import Protocol

ELSEWHERE = {
    "calibration",
    "recovery_text",
    "data_dir",
    "device",
}  # fields that a fingerprint has in other words

RECOVERY = "recovery sha256"


def fingerprint(
    checkpoint: str | Path,
    recipe: Recipe,
    read: Mapping[str, str | None],
    device: torch.device,
    processes: int,
) -> dict[str, Any]:
    """Flat, one entry for each thing that can differ; ``read``: the hashes of ``texts``."""
    return {
        **files_of(checkpoint),
        **choices(recipe),
        **read,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "number of processes": processes,
        **VERSIONS,
    }


def texts(calibration: Protocol | None, recovery: Protocol | None) -> dict[str, str | None]:
    """Return the hashes of the texts that a run reads; None where it reads none."""
    return {
        "calibration sha256": calibration.sha256 if calibration else None,
        **_parts(calibration),
        RECOVERY: recovery.sha256 if recovery else None,
    }


def _parts(text: Protocol | None) -> dict[str, str]:
    """Return what each source of a mixture gave."""
    return {
        f"source {i}": f"{part.samples} samples, split {part.split}, sha256 {part.sha256}"
        for i, part in enumerate(text.parts if text is not None else ())
    }


def defaults() -> dict[str, Any]:
    """Return what stands for fields of a recipe that an earlier version did not know."""
    fields = {
        f"recipe {name}": field.get_default(call_default_factory=True)
        for name, field in Recipe.model_fields.items()
    }
    return {**fields, RECOVERY: None}


def choices(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's fields, without those hashed elsewhere, and the method's code."""
    fields = {f"recipe {k}": v for k, v in recipe.model_dump().items() if k not in ELSEWHERE}
    if recipe.structured:
        return fields
    pruner = recipe.build().weights
    return {**fields, "method": spelled(pruner), "method's code": code_of(pruner)}


def files_of(checkpoint: str | Path) -> dict[str, str]:
    """Hash every file that decides what the model is; of a hub id, return the commit."""
    source = find(checkpoint)
    if source.hub is not None:
        model, _, commit = source.hub.rpartition("@")
        return {"model": model, "commit": commit}
    folder = Path(source.location)
    if source.gguf_file:
        files = set(parts(folder / source.gguf_file))
    else:
        text = {path for kind in ("*.json", "*.py", "*.model") for path in folder.glob(kind)}
        files = text | set(check_shards(folder).values())
    return {f"file {path.name}": sha256(path) for path in sorted(files)}
