"""A Llama-like checkpoint as GGUF, for llama.cpp: ``llama``, or ``deci`` where blocks differ.

``deci`` is a Llama whose head counts and feed-forward widths are lists, one number per block. What
llama.cpp does with halves of a block that are gone decides how they are written:

* a block without heads computes no attention, so the bias that pruning left there would be lost;
* a block without neurons is skipped as a whole, its attention too;
* the size of a head is not read where block 0 has none.

In these cases the half is written with one head, or one neuron, of zeros, which adds nothing.
Rows of queries and keys are stored pairwise, as llama.cpp rotates neighbours and transformers
halves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..base.arguments import typed
from ..base.atomic import check_output, check_room, new_file
from ..base.device import Dtype
from ..base.errors import (
    CheckpointError,
    InputError,
    NumericalError,
    UnsupportedModelError,
    first_line,
)
from ..report.naming import title
from ..report.units import BlockWidths
from .checkpoint import find, read_tensors
from .gguf_widths import Family, Shape, check_shapes, known_widths, sizes, tensor_shapes
from .shards import check_shards
from .vocabulary import add_vocabulary

FAMILIES = ("llama", "mistral")
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Exported:
    """A record of what was written.

    Attributes:
        output: the file.
        architecture: ``llama`` or ``deci``.
        dtype: of the matrices; vectors are float32.
        blocks: how many.
        tensors: how many.
        parameters: in them.
        bytes: of the file.
    """

    output: str
    architecture: str
    dtype: str
    blocks: int
    tensors: int
    parameters: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the record for ``--json``."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Entry:
    """A tensor of the file: its name there, shape (outputs first) and type.

    ``heads`` is that of queries and keys, else 0; ``made`` holds what no shard does.
    """

    name: str
    shape: Shape
    dtype: torch.dtype
    heads: int = 0
    made: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Size of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@typed
def write_gguf(
    folder: str | Path,
    output: str | Path,
    *,
    dtype: Dtype = "auto",
    tokenizer: str | Path | None = None,
) -> Exported:
    """Write the checkpoint in ``folder`` as one GGUF file, a tensor at a time.

    >>> write_gguf("pruned", "pruned.gguf", dtype="float16")

    Args:
        folder: a Llama, Mistral, SmolLM2 …, pruned or not; ``widths.json`` says how blocks differ.
        output: the file, which must not exist.
        dtype: of the matrices; "auto": the config's.
        tokenizer: a folder or a GGUF whose tokenizer to take instead of the folder's.

    Raises:
        InputError: a family that these architectures cannot hold, tensors that do not have the
            stated widths, a tokenizer that llama.cpp does not have, or no place to write.
        NumericalError: NaN or inf, also where float16 cannot hold a weight.
    """
    gguf = _library()
    output = Path(output).expanduser()
    check_output(output, file=True)
    source = find(folder)
    if source.gguf_file:
        raise CheckpointError(f"{folder} is not a folder of safetensors; give one.")
    where = Path(source.location)
    config = _config(where)
    widths, files = known_widths(where, config), check_shards(where)
    stored = _shapes(files)
    check_shapes(stored, config, widths, where)
    kept = _dtype(dtype, config)
    held = [_runnable(index, block) for index, block in enumerate(widths)]
    arch = "deci" if len({sizes(widths) for widths in held}) > 1 else "llama"
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], len(held))
    entries = _entries(names, stored, config, held, kept)
    check_room(output, sum(entry.bytes for entry in entries.values()))
    with new_file(output) as path:
        with closing(gguf.GGUFWriter(path, arch)) as writer:
            name = title(source.hub or str(where.resolve())).rpartition("/")[2]
            _describe(gguf, writer, config, held, name)
            writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[_name(kept)]])
            add_vocabulary(writer, tokenizer or where, config.vocab_size)
            _write(gguf, writer, entries, files)
        size = path.stat().st_size
    count = sum(math.prod(entry.shape) for entry in entries.values())
    return Exported(str(output), arch, _name(kept), len(held), len(entries), count, size)


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise InputError("GGUF needs the gguf library: pip install 'prunus[gguf]'.") from None
    return gguf


def _config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises half a dozen kinds here
        said = first_line(error)
        raise CheckpointError(f"{folder}/config.json cannot be read: {said}.") from None
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{folder} is of the family {config.model_type}; prunus writes GGUF of "
            f"{' and '.join(FAMILIES)} models (SmolLM2 is a llama). For others use llama.cpp's own "
            "converter."
        )
    if config.hidden_act != "silu":
        raise UnsupportedModelError(
            f"{folder} has hidden_act {config.hidden_act!r}; llama.cpp's Llama computes silu only."
        )
    rope = config.rope_parameters
    known = rope.get("rope_type", "default") in ("default", "linear", "llama3")
    if not known or rope.get("partial_rotary_factor", 1) != 1:
        raise UnsupportedModelError(
            f"{folder} has positions by {rope}; prunus writes the rope types default, linear and "
            "llama3, over whole heads. For others use llama.cpp's own converter."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(f"{folder} is quantised; give the unquantised checkpoint.")
    return config


def _dtype(asked: Dtype, config: Any) -> torch.dtype:
    name = str(config.dtype or "float32").removeprefix("torch.") if asked == "auto" else asked
    if name not in FILE_TYPES:
        raise InputError(f"GGUF takes {', '.join(FILE_TYPES)}; got {name}. Give --dtype.")
    found: torch.dtype = getattr(torch, name)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shapes(files: Mapping[str, Path]) -> dict[str, Shape]:
    """Read the shapes of all stored tensors from headers, in the order of ``read_tensors``."""
    shapes: dict[str, Shape] = {}
    for file in sorted(set(files.values())):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                if not name.endswith("rotary_emb.inv_freq"):  # a buffer of old checkpoints
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
    return shapes


def _runnable(index: int, widths: BlockWidths) -> BlockWidths:
    """Return widths with which llama.cpp computes what the block does; see the module's text."""
    if not widths.heads and (index == 0 or widths.bias_o):
        widths = replace(widths, heads=1, kv_heads=1)
    return widths if widths.intermediate else replace(widths, intermediate=1)


def _describe(gguf: Any, writer: Any, config: Any, held: Sequence[BlockWidths], name: str) -> None:
    """Write the keys of the architecture."""

    def one_or_list(numbers: list[int]) -> int | list[int]:
        return numbers if writer.arch == "deci" else numbers[0]

    head_dim, context = Family.of(config).head_dim, config.max_position_embeddings
    window = getattr(config, "sliding_window", None)  # within it, sliding attention is plain
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(min(context, window or context))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(held))
    heads, kv_heads, neurons = (list(x) for x in zip(*map(sizes, held), strict=True))
    writer.add_feed_forward_length(one_or_list(neurons))
    writer.add_head_count(one_or_list(heads))
    writer.add_head_count_kv(one_or_list(kv_heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _entries(
    names: Any,
    stored: Mapping[str, Shape],
    config: Any,
    held: Sequence[BlockWidths],
    dtype: torch.dtype,
) -> dict[str, _Entry]:
    """List entries by name on disk: stored tensors in their order, then those to be made."""
    wanted = tensor_shapes(config, held)
    there = [name for name, shape in stored.items() if wanted.get(name) == shape]
    entries: dict[str, _Entry] = {}
    for source in dict.fromkeys([*there, *wanted]):
        shape, part = wanted[source], source.split(".")
        heads = 0
        if part[-2] in ("q_proj", "k_proj"):
            queries, groups, _ = sizes(held[int(part[2])])
            heads = queries if part[-2] == "q_proj" else groups
        kind = dtype if len(shape) > 1 else torch.float32  # llama.cpp adds and scales in float32
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        value = 1.0 if part[-2].endswith("norm") else 0.0
        made = None if source in there else torch.full(shape, value)
        entries[source] = _Entry(name, shape, kind, heads, made)
    if config.rope_parameters.get("rope_type") == "llama3":
        factors = _llama3_factors(config)
        shape = tuple(factors.shape)
        entries["rope"] = _Entry("rope_freqs.weight", shape, torch.float32, made=factors)
    return entries


def _llama3_factors(config: Any) -> Tensor:
    """Return the divisor of each frequency ``θ^(-2i/d)`` in Llama 3, (d/2,)."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    dim = Family.of(config).head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    plain = config.rope_parameters["rope_theta"] ** -exponents
    factors: Tensor = (plain / scaled).float()
    return factors


def _write(gguf: Any, writer: Any, entries: Mapping[str, _Entry], files: dict[str, Path]) -> None:
    """Write header, keys, and the tensors one by one."""
    for entry in entries.values():
        stored_as = gguf.GGMLQuantizationType[TYPES[entry.dtype]]
        writer.add_tensor_info(entry.name, entry.shape, None, entry.bytes, raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for source, tensor in _in_order(entries, files):
        entry = entries[source]
        if entry.heads:
            tensor = pairwise(tensor, entry.heads)
        converted = tensor.to(entry.dtype).contiguous()
        if not bool(torch.isfinite(converted).all()):
            raise NumericalError(
                f"{source} holds NaN or inf as {_name(entry.dtype)}; its largest magnitude is "
                f"{float(tensor.abs().max()):g}. Give --dtype bfloat16 or float32, or check the "
                "checkpoint."
            )
        bits = torch.int16 if converted.itemsize == 2 else torch.int32
        writer.write_tensor_data(converted.view(bits).numpy())


def _in_order(
    entries: Mapping[str, _Entry], files: dict[str, Path]
) -> Iterator[tuple[str, Tensor]]:
    made = {name: entry.made for name, entry in entries.items() if entry.made is not None}
    for name, tensor in read_tensors(files):
        if name in entries and name not in made:
            yield name, tensor
    yield from made.items()


def pairwise(rows_OI: Tensor, heads: int) -> Tensor:
    """Order the rows of each head as 0, d/2, 1, d/2 + 1, …: neighbours rotate together.

    transformers rotates row i of a head with row i + d/2, llama.cpp row 2i with row 2i + 1.

    Args:
        rows_OI: a weight (heads · d, I) or a bias (heads · d,).
        heads: how many heads the rows belong to.
    """
    halves: Tensor = rows_OI.unflatten(0, (heads, 2, -1))
    stored_OI: Tensor = halves.transpose(1, 2).reshape(rows_OI.shape)
    return stored_OI
