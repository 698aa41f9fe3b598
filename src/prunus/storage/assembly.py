"""From the shards of a journal to a checkpoint, with one block in memory at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save

from ..base.errors import UnsupportedModelError
from ..maths.grids import Grid
from ..model.blocks import Block
from ..model.weights import Weights
from ..report.from_source import FromSource
from .journal import Journal, packed_beside, write_shard
from .origin import Origin, origin_of
from .output import write_texts
from .packing import PACKED, config
from .widths import widths_of

CARRIED = "carried"  # how the shards begin that hold what the model has no place for
SMALL = 2**29  # bytes: shards that together stay below it become one


def assemble(
    folder: Path,
    journal: Journal,
    weights: Weights,
    blocks: Sequence[Block],
    tokenizer: Any,
    texts: Mapping[str, str],
    packed: Grid | None = None,
    kept: FromSource | None = None,
) -> None:
    """Write weights, index, configs, tokenizer and ``texts``, laid over the source's own files.

    Args:
        folder: of the new checkpoint.
        journal: has the blocks that were pruned.
        weights: of the model.
        blocks: of the model.
        tokenizer: to be saved; None: it comes with the source's files, or there is none.
        texts: by file name.
        packed: the grid of all layers that the journal has integers of, which are written in place
            of their weights.
        kept: what is taken over from the source's files.
    """
    shards = []
    for block in blocks:
        if block.index not in journal.blocks:  # nothing was to be pruned in it
            with block.at_hand():
                journal.put(block)
        shards.append(journal.shard(block.index))
    model, origin = weights.model, origin_of(weights)
    shards.insert(0, journal.folder / "outside.safetensors")
    write_shard(shards[0], _outside(model, blocks, origin))
    shards += _carried(journal, origin, kept.carried if kept else ())
    names = _write_weights(folder, model, shards, origin)
    if origin is None or kept is None:
        _write_configs(folder, model)
    else:
        origin.write_files(kept.files, folder)
        origin.write_config(folder, model)
    if packed is not None:
        _claim_packed(folder, model, packed, names)
    write_texts(folder, tokenizer, texts)


def check_names(model: PreTrainedModel, layers: Iterable[str]) -> None:
    """Raise UnsupportedModelError where transformers renames or merges layers as it loads them."""
    names = {f"{name}.weight": torch.empty(1, 1, device="meta") for name in layers}
    if revert_weight_conversion(model, dict(names)).keys() != names.keys():
        raise UnsupportedModelError(
            f"transformers stores layers of {type(model).__name__} under other names than it "
            "loads, which packed files do not support yet. Leave --pack out."
        )


def _outside(
    model: PreTrainedModel, blocks: Sequence[Block], origin: Origin | None
) -> dict[str, Tensor]:
    """Return embeddings, last norm, head: tied ones once, or as often as the source has them."""
    inside = tuple(f"{block.name}." for block in blocks)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    if origin is not None:
        tied = {name for name in tied if origin.own_name(name, model) not in origin.tensors}
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    return {
        name: tensor.clone()  # two names of one tensor are two tensors in a file
        for name, tensor in model.state_dict().items()
        if not name.startswith(inside) and name not in tied and name not in ignored
    }


def _write_weights(
    folder: Path, model: PreTrainedModel, shards: Sequence[Path], origin: Origin | None
) -> set[str]:
    """Write the shards, small neighbours in one file.

    Returns the names of all tensors.
    """
    groups = _groups(shards)
    where: dict[str, str] = {}
    total = 0
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        target = folder / (name if len(groups) > 1 else "model.safetensors")
        on_disk = _write_group(target, group, model, origin)
        total += sum(tensor.numel() * tensor.itemsize for tensor in on_disk.values())
        where |= dict.fromkeys(on_disk, target.name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return set(where)


def _groups(shards: Sequence[Path]) -> list[list[Path]]:
    """Group small neighbours together."""
    groups: list[list[Path]] = []
    size = 0
    for path in shards:
        size += path.stat().st_size
        if not groups or size > SMALL:
            groups.append([])
            size = path.stat().st_size
        groups[-1].append(path)
    return groups


def _carried(journal: Journal, origin: Origin | None, names: Sequence[str]) -> list[Path]:
    """Write what the model has no place for into shards, one for each file of the source."""
    by_file: dict[Path, list[str]] = {}
    for name in names if origin is not None else ():
        assert origin is not None
        by_file.setdefault(origin.tensors[name], []).append(name)
    shards = []
    for number, group in enumerate(by_file.values()):
        assert origin is not None
        shards.append(journal.folder / f"{CARRIED}-{number:05d}.safetensors")
        write_shard(shards[-1], {name: origin.read(name) for name in group})
    return shards


def _write_group(
    target: Path, group: Sequence[Path], model: PreTrainedModel, origin: Origin | None
) -> dict[str, Tensor]:
    """Write the shards of a group as one file, under the names and in the dtypes of the source.

    A shard whose names and dtypes are the model's is linked.
    """
    own: dict[str, Tensor] = {}
    on_disk: dict[str, Tensor] = {}
    for path in group:
        (on_disk if path.name.startswith(CARRIED) else own).update(_with_packed(path))
    own_names = widths_of(model) is not None  # prunus.load reads it, not transformers
    if own:
        on_disk |= own if own_names else revert_weight_conversion(model, dict(own))
    if origin is not None:
        if not own_names:
            on_disk = {origin.own_name(name, model): x for name, x in on_disk.items()}
        on_disk = {name: origin.restored(name, tensor) for name, tensor in on_disk.items()}
    alone = len(group) == 1 and not packed_beside(group[0]).exists()
    as_it_is = not own or (
        on_disk.keys() == own.keys()
        and all(on_disk[name].dtype == tensor.dtype for name, tensor in own.items())
    )
    if alone and as_it_is:
        _link(group[0], target)
    else:
        write_shard(target, on_disk)
    return on_disk


def _with_packed(shard: Path) -> dict[str, Tensor]:
    """Return the shard's tensors, with integers in place of weights that have them."""
    tensors, beside = load_file(shard), packed_beside(shard)
    if beside.exists():
        integers = load_file(beside)
        for name in integers:
            if name.endswith(PACKED):
                del tensors[f"{name.removesuffix(PACKED)}.weight"]
        tensors |= integers
    return tensors


def _claim_packed(folder: Path, model: PreTrainedModel, grid: Grid, names: set[str]) -> None:
    """Say in config.json how to read the integers, and which linear layers have none."""
    linears = (name for name, x in model.named_modules() if isinstance(x, nn.Linear))
    dense = [name for name in linears if f"{name}{PACKED}" not in names]
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["quantization_config"] = config(grid, dense)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    """Link the same file under another name, or copy it where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_configs(folder: Path, model: PreTrainedModel) -> None:
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    if model.is_remote_code():
        custom_object_save(model, folder, config=model.config)  # type: ignore[arg-type]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
