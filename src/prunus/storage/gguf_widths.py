"""Widths of a Llama-like checkpoint, block by block, and the tensors that they demand.

They are those of ``widths.json``, or where there is none the one width that ``config.json`` gives
all blocks; ``head_dim`` is always the config's. A half of a block that was removed has 0 heads or
an intermediate width of 0, and its tensors are left out or have no rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import CheckpointError
from ..report.units import BlockWidths
from .widths import FILE, read_widths

Shape = tuple[int, ...]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """Widths and biases that all blocks of a model share.

    Attributes:
        hidden: width of the residual stream.
        head_dim: width of every head.
        qkv_bias: whether queries, keys and values have biases.
        gate_bias: whether gate and up have biases.
    """

    hidden: int
    head_dim: int
    qkv_bias: bool
    gate_bias: bool

    @classmethod
    def of(cls, config: Any) -> Family:
        """Read a Llama's or Mistral's config."""
        return cls(
            config.hidden_size,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            getattr(config, "attention_bias", False),
            getattr(config, "mlp_bias", False),
        )


def known_widths(folder: Path, config: Any) -> list[BlockWidths]:
    """Return the widths of every block, from ``widths.json`` if there is one, else the config's.

    Raises:
        CheckpointError: the file cannot be read, leaves a width open, has another number of blocks
            than the config, or query heads that are no multiple of the key/value heads.
    """
    path, blocks = folder / FILE, read_widths(folder)
    if blocks is None:
        common = BlockWidths(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            intermediate=config.intermediate_size,
            bias_o=getattr(config, "attention_bias", False),
            bias_down=getattr(config, "mlp_bias", False),
        )
        blocks = [common] * config.num_hidden_layers
    if len(blocks) != config.num_hidden_layers:
        raise CheckpointError(
            f"{path} has {len(blocks)} blocks, config.json has {config.num_hidden_layers}."
        )
    for index, block in enumerate(blocks):
        if None in (block.heads, block.kv_heads, block.intermediate):
            raise CheckpointError(
                f"{path} cannot be exported: it leaves widths of block {index} open."
            )
        heads, kv_heads, _ = sizes(block)
        groups = kv_heads or heads + 1  # 0 divides 0 alone
        if heads % groups or (kv_heads > 0) != (heads > 0):
            raise CheckpointError(
                f"Block {index} of {folder} has {heads} query heads and {kv_heads} key/value "
                "heads; the first must be a multiple of the second."
            )
    return blocks


def sizes(block: BlockWidths) -> tuple[int, int, int]:
    """Return the query heads, key/value heads and neurons of a block whose widths are known."""
    return block.heads or 0, block.kv_heads or 0, block.intermediate or 0


def _block_shapes(index: int, widths: BlockWidths, family: Family) -> dict[str, Shape]:
    heads, kv_heads, inner = sizes(widths)
    q, kv, hidden = heads * family.head_dim, kv_heads * family.head_dim, family.hidden
    rows = (q, kv, kv, inner, inner)
    into = dict(zip((*ATTENTION[:3], *MLP[:2]), ((n, hidden) for n in rows), strict=True))
    maps = {**into, "o_proj": (hidden, q), "down_proj": (hidden, inner)}
    biased = {
        **dict.fromkeys(ATTENTION[:3], family.qkv_bias),
        **dict.fromkeys(MLP[:2], family.gate_bias),
        "o_proj": widths.bias_o,
        "down_proj": widths.bias_down,
    }
    shapes: dict[str, Shape] = {}
    for layer, shape in maps.items():
        half = "self_attn" if layer in ATTENTION else "mlp"
        shapes[f"model.layers.{index}.{half}.{layer}.weight"] = shape
        if biased[layer]:
            shapes[f"model.layers.{index}.{half}.{layer}.bias"] = shape[:1]
    if heads:
        shapes[f"model.layers.{index}.input_layernorm.weight"] = (hidden,)
    if inner:
        shapes[f"model.layers.{index}.post_attention_layernorm.weight"] = (hidden,)
    return {name: shape for name, shape in shapes.items() if 0 not in shape}


def tensor_shapes(config: Any, blocks: Sequence[BlockWidths]) -> dict[str, Shape]:
    """Return the shapes of a model's tensors by their names on disk, no norms of removed halves."""
    family = Family.of(config)
    table = (config.vocab_size, family.hidden)
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": (family.hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = table
    for index, widths in enumerate(blocks):
        shapes |= _block_shapes(index, widths, family)
    return shapes


def check_shapes(
    stored: Mapping[str, Shape], config: Any, blocks: Sequence[BlockWidths], where: Path
) -> None:
    """Check that the stored tensors are those that the widths demand, no more and no fewer.

    Raises:
        CheckpointError: names the first tensor that is missing, misshapen or superfluous.
    """
    demanded = tensor_shapes(config, blocks)
    norms = ("input_layernorm", "post_attention_layernorm")  # a removed half may still have its own
    spare = {f"model.layers.{i}.{norm}.weight" for i in range(len(blocks)) for norm in norms}
    spare |= {"lm_head.weight"}  # some tools write it beside a tied embedding
    source = f"{FILE} and config.json ask" if (where / FILE).exists() else "config.json asks"
    for name, shape in demanded.items():
        found = stored.get(name)
        if found is None:
            raise CheckpointError(f"{where} has no tensor {name}, for which {source}.")
        if found is not None and found != shape:
            raise CheckpointError(
                f"{name} in {where} is {_by(found)}, but {source} for {_by(shape)}. Correct the "
                "widths, or prune again."
            )
    extra = sorted(n for n in stored.keys() - demanded.keys() - spare if 0 not in stored[n])
    if extra:
        raise CheckpointError(
            f"{where} holds {extra[0]}{f' and {len(extra) - 1} more' if extra[1:] else ''}, for "
            f"which the model has no place: {source} for other tensors."
        )


def _by(shape: Shape) -> str:
    return " × ".join(map(str, shape))
