"""Tiny Llamas to write as GGUF, and a GGUF as the gguf library reads it."""

import json
import shutil

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from helpers.models import MODELS

LLAMA = MODELS / "llama"
HIDDEN, HEAD, INNER = 64, 16, 160
SMALL = {
    "vocab_size": 512, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HEAD,
    "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
# heads, key/value heads, neurons, bias of o, bias of down
UNEVEN = [(4, 2, 33, False, True), (2, 1, 0, True, True), (0, 0, 7, False, False)]


def saved(folder, config, kind=LlamaForCausalLM):
    torch.manual_seed(0)
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(LLAMA / file, folder / file)
    return model


def cut(folder, widths, change=lambda blocks: None):
    """The tiny Llama with its blocks cut to these widths, the first heads and neurons kept."""
    shutil.copytree(LLAMA, folder)
    tensors = load_file(folder / "model.safetensors")
    blocks = []
    for i, (heads, groups, inner, bias_o, bias_down) in enumerate(widths):
        layer = f"model.layers.{i}."
        q, kv = heads * HEAD, groups * HEAD
        for name, rows, columns in [
            ("self_attn.q_proj", q, HIDDEN),
            ("self_attn.k_proj", kv, HIDDEN),
            ("self_attn.v_proj", kv, HIDDEN),
            ("self_attn.o_proj", HIDDEN, q),
            ("mlp.gate_proj", inner, HIDDEN),
            ("mlp.up_proj", inner, HIDDEN),
            ("mlp.down_proj", HIDDEN, inner),
        ]:
            key = f"{layer}{name}.weight"
            tensors[key] = tensors[key][:rows, :columns].contiguous()
        for name, there in (("self_attn.o_proj", bias_o), ("mlp.down_proj", bias_down)):
            if there:
                tensors[f"{layer}{name}.bias"] = torch.randn(HIDDEN)
        names = ("heads", "kv_heads", "intermediate", "bias_o", "bias_down")
        block = dict(zip(names, (heads, groups, inner, bias_o, bias_down), strict=True))
        blocks.append({**block, "numbers": {"mlp.intermediate_size": inner}})
    change(blocks)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "widths.json").write_text(json.dumps({"format": 1, "blocks": blocks}))
    return tensors


def read(path):
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for t in reader.tensors:
        values = gguf.quants.dequantize(np.array(t.data), t.tensor_type).astype(np.float32)
        tensors[t.name] = torch.from_numpy(values).reshape(tuple(reversed(t.shape.tolist())))
    return keys, tensors, {t.name: t.tensor_type.name for t in reader.tensors}
