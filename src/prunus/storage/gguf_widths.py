"""The widths of a Llama-like checkpoint, block by block, and the tensors that they demand.

A stock ``config.json`` gives one width for all blocks. Where they differ, ``widths.json`` lies
beside it: ``{"format": 1, "blocks": [{"heads", "kv_heads", "intermediate", "bias_o", "bias_down"},
…]}``; ``head_dim`` is the config's. A half of a block that is gone has 0 heads or an intermediate
width of 0, and its tensors are left out or have no rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from ..base.errors import CheckpointError
from . import widths as structured
from .widths import FILE

Shape = tuple[int, ...]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class Widths(BaseModel):
    """The widths of one block.

    Attributes:
        heads: of the queries.
        kv_heads: of the keys and values; a divisor of ``heads``.
        intermediate: neurons of the MLP.
        bias_o: whether the attention's output has a bias.
        bias_down: whether the MLP's output has one.
    """

    model_config = ConfigDict(frozen=True, strict=True)  # other keys speak to other readers

    heads: NonNegativeInt
    kv_heads: NonNegativeInt
    intermediate: NonNegativeInt
    bias_o: bool = False
    bias_down: bool = False


@dataclass(frozen=True)
class Family:
    """The part of a config that holds for all blocks.

    Attributes:
        hidden: width of the residual stream.
        head_dim: of every head.
        qkv_bias: whether queries, keys and values have biases.
        gate_bias: whether gate and up have.
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


def read_widths(folder: Path, config: Any) -> list[Widths]:
    """Read each block's widths from ``widths.json`` if there is one, else from the config.

    Raises:
        CheckpointError: a file that cannot be read, of another number of blocks than the config, or
            with query heads that the key/value heads do not divide.
    """
    path, written = folder / FILE, structured.read_widths(folder)
    if written is not None:
        try:
            blocks = [Widths.model_validate(block) for block in written]
        except ValidationError as error:
            said = " ".join(str(error).splitlines()[1:3])
            raise CheckpointError(f"{path} cannot be exported: {said}.") from None
    else:
        common = Widths(
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
        groups = block.kv_heads or block.heads + 1  # 0 divides 0 alone
        if block.heads % groups or (block.kv_heads > 0) != (block.heads > 0):
            raise CheckpointError(
                f"Block {index} of {folder} has {block.heads} query heads and {block.kv_heads} "
                "key/value heads; the first must be a multiple of the second."
            )
    return blocks


def _block_shapes(index: int, widths: Widths, family: Family) -> dict[str, Shape]:
    q, kv = widths.heads * family.head_dim, widths.kv_heads * family.head_dim
    hidden, inner = family.hidden, widths.intermediate
    sizes = (q, kv, kv, inner, inner)
    into = dict(zip((*ATTENTION[:3], *MLP[:2]), ((n, hidden) for n in sizes), strict=True))
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
    if widths.heads:
        shapes[f"model.layers.{index}.input_layernorm.weight"] = (hidden,)
    if widths.intermediate:
        shapes[f"model.layers.{index}.post_attention_layernorm.weight"] = (hidden,)
    return {name: shape for name, shape in shapes.items() if 0 not in shape}


def tensor_shapes(config: Any, blocks: Sequence[Widths]) -> dict[str, Shape]:
    """Return all tensors by name on disk; a half that is gone has no norm either."""
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
    stored: Mapping[str, Shape], config: Any, blocks: Sequence[Widths], where: Path
) -> None:
    """Check that the stored tensors are those that the widths demand, no more and no fewer.

    Raises:
        CheckpointError: with the first tensor that is missing, has another shape or has no place.
    """
    demanded = tensor_shapes(config, blocks)
    norms = ("input_layernorm", "post_attention_layernorm")  # of a half that is gone: may be there
    spare = {f"model.layers.{i}.{norm}.weight" for i in range(len(blocks)) for norm in norms}
    spare |= {"lm_head.weight"}  # written for a tied embedding by some
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
