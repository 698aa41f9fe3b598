"""Small random models of the causal families of transformers."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig

TWO_FOUR = LlamaConfig(  # with sides that torch's 2:4 takes
    vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip

WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MLP = {**WIDE, "intermediate_size": 96}
GQA = {**MLP, "num_key_value_heads": 2}
HEAD = {**GQA, "head_dim": 16}
PAD = {**GQA, "pad_token_id": 0}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4}
STATE = {"hidden_size": 256, "num_hidden_layers": 2, "state_size": 8}
LATENT = {"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
SHARED = {**HEAD, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "global_head_dim": 16,
          "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16,
          "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128}  # fmt: skip
LLAMAS = ("llama", "mistral", "qwen2", "olmo", "olmo2", "olmo3", "cohere", "cohere2", "granite",
          "stablelm", "starcoder2", "exaone4", "arcee", "apertus", "diffllama", "bitnet",
          "lfm2")  # fmt: skip
HEADS = ("qwen3", "gemma", "gemma2", "gemma3_text", "vaultgemma", "nemotron", "helium", "ernie4_5",
         "seed_oss", "hunyuan_v1_dense")  # fmt: skip
FAMILIES = {
    **dict.fromkeys(LLAMAS, GQA),
    **dict.fromkeys(HEADS, HEAD),
    **dict.fromkeys(("phi3", "smollm3"), PAD),
    "glm": {**PAD, "head_dim": 16},
    "glm4": {**PAD, "head_dim": 16},
    **dict.fromkeys(("phi", "gpt_neox", "gpt_neox_japanese", "persimmon", "biogpt"), MLP),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "openai-gpt", "ctrl"), GPT),
    "gptj": {**GPT, "rotary_dim": 8},
    "codegen": {**GPT, "rotary_dim": 8},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "falcon": WIDE,
    "falcon_h1": {**GQA, "mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_state": 16,
                  "mamba_chunk_size": 16},
    "gemma4_text": SHARED,
    "gpt_neo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4,
                "attention_types": [[["global", "local"], 1]]},
    "mamba": STATE,
    "mamba2": {**STATE, "num_heads": 8, "head_dim": 64, "n_groups": 1},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4},
    "opt": {**WIDE, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 2},
    "xglm": {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96},
}  # fmt: skip
TWO = {"num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4, **TWO}
SPARSE = {"num_experts": 4, "moe_intermediate_size": 32, **TWO}
ROUTED = {"n_routed_experts": 4, "moe_intermediate_size": 32, "n_shared_experts": 1, **TWO,
          "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}  # fmt: skip
DEEPSEEK = {**MLP, **LATENT, **ROUTED, "num_key_value_heads": 4, "q_lora_rank": 32}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
GROUPED, OLMOE = {**GQA, **LOCAL}, {**GQA, "num_experts": 4, **TWO}
QWEN, GLM = {**HEAD, **SPARSE}, {**HEAD, **ROUTED}
NEXT = {**QWEN, **HYBRID, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16}  # fmt: skip
MIXTURES = {
    **dict.fromkeys(("mixtral", "phimoe", "granitemoe"), GROUPED),
    **dict.fromkeys(("qwen3_moe", "exaone_moe"), QWEN),
    **dict.fromkeys(("olmoe", "cohere2_moe"), OLMOE),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe_lite"), DEEPSEEK),
    **dict.fromkeys(("dots1", "glm4_moe", "solar_open"), GLM),
    "afmoe": {**QWEN, "num_dense_layers": 1},
    "ernie4_5_moe": {**GQA, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32,
                     "moe_layer_start_index": 1},
    "flex_olmo": {**OLMOE, "pad_token_id": 0},
    "gpt_oss": {**HEAD, **LOCAL},
    "granitemoehybrid": {**GQA, **LOCAL, "shared_intermediate_size": 32,
                         "layer_types": ["attention", "attention"]},
    "granitemoeshared": {**GQA, **LOCAL, "shared_intermediate_size": 32},
    "hunyuan_v1_moe": {**HEAD, "num_experts": 4, "moe_topk": 2, "moe_intermediate_size": [32, 32]},
    "jamba": {**GQA, "num_experts": 4, "num_hidden_layers": 4, "attn_layer_period": 2,
              "attn_layer_offset": 1, "use_mamba_kernels": False},
    "jetmoe": {"hidden_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2,
               "kv_channels": 16, "intermediate_size": 96, **LOCAL},
    "lfm2_moe": {**GQA, **SPARSE, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "llama4_text": {**HEAD, "num_local_experts": 4, "intermediate_size_mlp": 96},
    "longcat_flash": {"hidden_size": 64, "ffn_hidden_size": 96, "num_layers": 2,
                      "num_attention_heads": 4, **LATENT, "q_lora_rank": 32, "head_dim": 8,
                      "n_routed_experts": 4, "zero_expert_num": 2, "expert_ffn_hidden_size": 32,
                      "moe_topk": 2},
    "minimax": {**HEAD, **LOCAL, **HYBRID},
    "minimax_m2": {**HEAD, **LOCAL, "rotary_dim": 8},
    "nemotron_h": {**GLM, "hybrid_override_pattern": "*E",
                   "moe_shared_expert_intermediate_size": 32},
    "qwen2_moe": {**GQA, **SPARSE, "shared_expert_intermediate_size": 32},
    **dict.fromkeys(("qwen3_next", "qwen3_5_moe_text"), NEXT),
}  # fmt: skip
IDS = torch.randint(0, 128, (2, 32), generator=torch.Generator().manual_seed(0))


def build(family, settings):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=128, **settings)
    return AutoModelForCausalLM.from_config(config).eval()
