"""Families by what their code says of roles and sites, as narrow configs."""

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GQA = {**WIDE, "intermediate_size": 48, "num_key_value_heads": 2}
LLAMA = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}
NEOX = {
    "query_key_value": "qkv",
    "attention.dense": "o",
    "dense_h_to_4h": "up",
    "dense_4h_to_h": "down",
}
OPT = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o", "fc1": "up", "fc2": "down"}
# family: (config, role by the end of the layer's name, layers that read the same input)
FAMILIES = {
    "llama": (GQA, LLAMA, ["q k v", "gate up"]),
    "mistral": ({**GQA, "sliding_window": 8}, LLAMA, ["q k v", "gate up"]),
    "qwen2": (GQA, LLAMA, ["q k v", "gate up"]),
    "qwen3": ({**GQA, "head_dim": 8}, LLAMA, ["q k v", "gate up"]),
    "gemma": ({**GQA, "head_dim": 8}, LLAMA, ["q k v", "gate up"]),
    "gemma2": ({**GQA, "head_dim": 8, "sliding_window": 8}, LLAMA, ["q k v", "gate up"]),
    "phi3": (
        {**GQA, "pad_token_id": 0},
        {"qkv_proj": "qkv", "o_proj": "o", "gate_up_proj": "gate_up", "down_proj": "down"},
        [],
    ),
    "opt": ({**WIDE, "ffn_dim": 48, "word_embed_proj_dim": 32}, OPT, ["q k v"]),
    "gpt2": (
        {"n_embd": 32, "n_layer": 2, "n_head": 4},
        {"c_attn": "qkv", "attn.c_proj": "o", "c_fc": "up", "mlp.c_proj": "down"},
        [],
    ),
    "bloom": (
        {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        {**NEOX, "self_attention.dense": "o"},
        [],
    ),
    "gpt_neox": ({**WIDE, "intermediate_size": 48}, NEOX, []),
    "falcon": (WIDE, {**NEOX, "self_attention.dense": "o"}, ["qkv up"]),
    "cohere": ({**WIDE, "intermediate_size": 48}, LLAMA, ["q k v gate up"]),
}
