"""Does llama.cpp compute what transformers does? A checkpoint against its GGUF, on ten prompts.

    pip install llama-cpp-python         # builds llama.cpp from source: minutes, a C++ compiler
    python benchmarks/gguf/gguf_agreement.py shrink MODEL FOLDER --gone     # widths drawn per block
    prunus export FOLDER --to gguf --output FILE.gguf --dtype float32
    python benchmarks/gguf/gguf_agreement.py compare FOLDER FILE.gguf

``shrink`` removes key/value groups (with their query heads) and neurons at random from a Llama, and
writes ``widths.json`` where blocks differ. The torch model of such a folder is built here by hand,
module by module, so that it does not depend on what prunus loads.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "In 1969, the first human being set foot on the",
    "Water is made of hydrogen and",
    "Once upon a time, in a small village by the sea, there lived",
    "12 + 30 = 42, and 7 * 6 =",
    "To make an omelette, first break the",
    "La vie est belle, mais",
    "The opposite of hot is",
    "List three colours: red, green and",
)
MATRICES = {  # of the kept heads and neurons: which dimension they are
    **{f"self_attn.{name}_proj": ("attention", 0) for name in "qkv"},
    "self_attn.o_proj": ("attention", 1),
    "mlp.gate_proj": ("mlp", 0),
    "mlp.up_proj": ("mlp", 0),
    "mlp.down_proj": ("mlp", 1),
}


def shrink(
    source: str, folder: Path, keep: float, uneven: bool, gone: bool, biases: bool, seed: int
) -> None:
    """Write a checkpoint that keeps ``keep`` of its blocks' weights, or at least that of each."""
    from prunus.storage.checkpoint import load_model, load_tokenizer

    model, draw = load_model(source, dtype="float32"), random.Random(seed)
    config = model.config
    groups, inner = config.num_key_value_heads, config.intermediate_size
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.state_dict())
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    blocks = []
    for index in range(config.num_hidden_layers):
        kept_groups = max(1, round(groups * keep))
        kept_inner = _inner(config, kept_groups, keep)
        if uneven:
            kept_groups = draw.randint(kept_groups, groups)
            kept_inner = draw.randint(max(1, round(inner * keep)), inner)
        if gone and index % 7 in (0, 3):  # block 0 too: llama.cpp reads the size of a head there
            kept_groups = 0
        if gone and index % 7 in (3, 5):
            kept_inner = 0
        widths = _cut(tensors, config, index, kept_groups, kept_inner, generator)
        if biases:
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                bias = 0.02 * torch.randn(config.hidden_size, generator=generator)
                tensors[f"model.layers.{index}.{name}.bias"] = bias
            widths |= {"bias_o": True, "bias_down": True}
        blocks.append(widths)
    _write(folder, model, tensors, blocks, load_tokenizer(source))


def _inner(config: Any, kept_groups: int, keep: float) -> int:
    """Neurons to keep so that ``keep`` of a block's weights stay, the groups' among them."""
    hidden = config.hidden_size
    per_group = (
        2
        * hidden
        * config.head_dim
        * (1 + config.num_attention_heads // config.num_key_value_heads)
    )
    total = config.num_key_value_heads * per_group + 3 * hidden * config.intermediate_size
    return round((keep * total - kept_groups * per_group) / (3 * hidden))


def _cut(
    tensors: dict[str, Tensor],
    config: Any,
    index: int,
    groups: int,
    inner: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Keep these many groups and neurons of a block, in their order."""
    all_groups, d = config.num_key_value_heads, config.head_dim
    ratio = config.num_attention_heads // all_groups
    kept = torch.randperm(all_groups, generator=generator)[:groups].sort().values
    neurons = torch.randperm(config.intermediate_size, generator=generator)[:inner].sort().values
    rows = {
        size: (kept[:, None] * size * d + torch.arange(size * d)).flatten() for size in (1, ratio)
    }
    for name, (half, dimension) in MATRICES.items():
        key = f"model.layers.{index}.{name}.weight"
        wide = name.endswith(("q_proj", "o_proj"))
        where = neurons if half == "mlp" else rows[ratio if wide else 1]
        tensors[key] = tensors[key].index_select(dimension, where).contiguous()
        if not tensors[key].numel():
            del tensors[key]
    widths = {"heads": groups * ratio, "kv_heads": groups, "intermediate": inner}
    return {**widths, "bias_o": False, "bias_down": False}


def _write(
    folder: Path,
    model: Any,
    tensors: dict[str, Tensor],
    blocks: list[dict[str, Any]],
    tokenizer: Any,
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    if all(block == blocks[0] for block in blocks) and not blocks[0]["bias_o"]:
        model.config.num_attention_heads = blocks[0]["heads"]
        model.config.num_key_value_heads = blocks[0]["kv_heads"]
        model.config.intermediate_size = blocks[0]["intermediate"]
    else:
        (folder / "widths.json").write_text(json.dumps({"format": 1, "blocks": blocks}))
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class Constant(nn.Module):
    """What is left of a half without heads or neurons: its bias."""

    def __init__(self, hidden: int, pair: bool) -> None:
        super().__init__()
        self.bias, self.pair = nn.Parameter(torch.zeros(hidden)), pair

    def forward(self, *args: Tensor, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        out = self.bias.expand(*x.shape[:-1], -1)
        return (out, None) if self.pair else out


def torch_model(folder: Path) -> nn.Module:
    """Load the checkpoint in float32; build uneven ones by hand."""
    if not (folder / "widths.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    for index, widths in enumerate(json.loads((folder / "widths.json").read_text())["blocks"]):
        _rebuild(model.model.layers[index], widths, config, tensors, f"model.layers.{index}.")
    tensors = {name: tensor.float() for name, tensor in tensors.items() if tensor.numel()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    spare = ("lm_head.weight", "layernorm.weight", "self_attn.bias", "mlp.bias")
    if unexpected or any(not name.endswith(spare) for name in missing):
        sys.exit(f"{folder}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def _rebuild(
    layer: nn.Module, widths: dict[str, Any], config: Any, tensors: dict[str, Tensor], name: str
) -> None:
    hidden, d = config.hidden_size, config.head_dim
    heads, kv, inner = widths["heads"], widths["kv_heads"], widths["intermediate"]
    attention, mlp = layer.self_attn, layer.mlp
    if heads:
        attention.q_proj = nn.Linear(hidden, heads * d, bias=config.attention_bias)
        attention.k_proj = nn.Linear(hidden, kv * d, bias=config.attention_bias)
        attention.v_proj = nn.Linear(hidden, kv * d, bias=config.attention_bias)
        attention.o_proj = nn.Linear(heads * d, hidden, bias=widths["bias_o"])
        attention.num_key_value_groups = heads // kv
    else:
        layer.self_attn = Constant(hidden, pair=True)
        if widths["bias_o"]:
            tensors[f"{name}self_attn.bias"] = tensors.pop(f"{name}self_attn.o_proj.bias")
    if inner:
        mlp.gate_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        mlp.up_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        mlp.down_proj = nn.Linear(inner, hidden, bias=widths["bias_down"])
    else:
        layer.mlp = Constant(hidden, pair=False)
        if widths["bias_down"]:
            tensors[f"{name}mlp.bias"] = tensors.pop(f"{name}mlp.down_proj.bias")


@torch.no_grad()
def compare(folder: Path, file: Path) -> bool:
    """Print a row for each prompt; whether the top token is the same for all."""
    from llama_cpp import GGML_TYPE_F32, Llama

    model, tokenizer = torch_model(folder), AutoTokenizer.from_pretrained(folder)
    other = Llama(
        str(file), n_ctx=512, logits_all=True, verbose=False,
        type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32,
    )  # fmt: skip
    same_top = same_ids = 0
    positions = agreeing = 0
    print("| prompt | transformers | llama.cpp | largest logit difference | KL (nats) |")
    print("|---|---|---|---:|---:|")
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        same_ids += other.tokenize(prompt.encode(), special=False) == ids
        logits_TV = model(torch.tensor([ids])).logits[0]
        other.reset()
        other.eval(ids)
        found_TV = torch.from_numpy(other.scores[: len(ids)].copy())
        top, found = int(logits_TV[-1].argmax()), int(found_TV[-1].argmax())
        agreeing += int((logits_TV.argmax(-1) == found_TV.argmax(-1)).sum())
        positions += len(ids)
        same_top += top == found
        log_TV = logits_TV.double().log_softmax(-1)
        found_log_TV = found_TV.double().log_softmax(-1)
        divergence = float((log_TV.exp() * (log_TV - found_log_TV)).sum(-1).mean())
        words = [repr(tokenizer.decode([token])) for token in (top, found)]
        far = float((logits_TV - found_TV).abs().max())
        print(f"| {prompt[:30]!r} | {words[0]} | {words[1]} | {far:.1e} | {divergence:.1e} |")
    print(f"same top token on {same_top} of {len(PROMPTS)} prompts")
    print(f"same top token at {agreeing} of {positions} positions")
    print(f"same tokens from text on {same_ids} of {len(PROMPTS)} prompts")
    return same_top == len(PROMPTS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("shrink")
    make.add_argument("model")
    make.add_argument("folder", type=Path)
    make.add_argument("--even", action="store_true", help="one width for all: a stock checkpoint")
    make.add_argument("--keep", type=float, default=0.6, help="of the weights of blocks")
    make.add_argument("--gone", action="store_true", help="some halves go as a whole")
    make.add_argument("--biases", action="store_true", help="random biases behind both halves")
    make.add_argument("--seed", type=int, default=0)
    against = commands.add_parser("compare")
    against.add_argument("folder", type=Path)
    against.add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "compare":
        sys.exit(not compare(given.folder, given.file))
    uneven = not given.even
    shrink(given.model, given.folder, given.keep, uneven, given.gone, given.biases, given.seed)


if __name__ == "__main__":
    main()
