"""Random models of many families, for the tests of structured pruning."""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

WIDE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
MLP = {**WIDE, "intermediate_size": 96}
GQA = {**MLP, "num_key_value_heads": 2}
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4}
FAMILIES = {
    "llama": GQA,
    "mistral": GQA,
    "qwen2": GQA,  # biases on q, k and v alone
    "qwen3": {**GQA, "head_dim": 16},  # a norm within each head
    "gemma": {**MLP, "num_key_value_heads": 1, "head_dim": 16},  # multi-query
    "gpt2": GPT,  # one Conv1D for q, k, v, with a bias
    "opt": {**WIDE, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "gpt_neox": MLP,  # q, k and v of each head one after the other
    "falcon": WIDE,  # multi-query in one fused layer
    "gptj": {**GPT, "rotary_dim": 8},  # parallel attention and MLP
}
IDS = torch.randint(0, 128, (4, 32), generator=torch.Generator().manual_seed(0))
RUN = {"tokens_ST": IDS, "sparsity": 0.5}


def build(family, settings=None):
    """A random model whose heads differ, biases and all."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=128, **(settings or FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name and "wte" not in name:
                parameter.mul_(5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits
