"""Random models that read images, tiny ones of many families, and an input of each."""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

TEXT = {"vocab_size": 520, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 4}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
QWEN = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2,
        "spatial_merge_size": 2}  # fmt: skip
NEXT = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "head_dim": 16}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
IMAGE, START, END = 515, 516, 517  # beyond the tokenizer's
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 518, "vision_start_token_id": START,
            "vision_end_token_id": END}  # fmt: skip
THREE = {"deepstack_visual_indexes": [0], "out_hidden_size": 64, "num_position_embeddings": 16}

FAMILIES = {
    "gemma3": ({**TEXT, "head_dim": 16, "sliding_window": 8}, WIDE,
               {"mm_tokens_per_image": 4, "image_token_index": IMAGE}),
    "internvl": ({**TEXT, "model_type": "qwen2"}, WIDE,
                 {"image_token_id": IMAGE, "downsample_ratio": 0.5}),
    "idefics3": ({**TEXT, "model_type": "llama"}, WIDE,
                 {"image_token_id": IMAGE, "scale_factor": 2}),
    "smolvlm": ({**TEXT, "model_type": "llama"}, WIDE,
                {"image_token_id": IMAGE, "scale_factor": 2}),
    "llama4": ({**TEXT, "head_dim": 16, "num_local_experts": 4, "intermediate_size_mlp": 96},
               {**WIDE, "intermediate_size": 128, "vision_output_dim": 32,
                "projector_input_dim": 32, "projector_output_dim": 32,
                "pixel_shuffle_ratio": 0.5},
               {"image_token_index": IMAGE}),
    "llava": ({**TEXT, "model_type": "llama"}, {**WIDE, "model_type": "clip_vision_model"},
              {"image_token_index": IMAGE}),
    "mistral3": ({**TEXT, "model_type": "mistral", "head_dim": 16},
                 {**WIDE, "model_type": "pixtral", "head_dim": 16},
                 {"image_token_index": IMAGE, "spatial_merge_size": 2}),
    "qwen2_vl": ({**TEXT, **ROPE},
                 {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4,
                  "spatial_merge_size": 2}, QWEN_IDS),
    "qwen2_5_vl": ({**TEXT, **ROPE}, {**QWEN, "intermediate_size": 48, "out_hidden_size": 64,
                   "window_size": 8, "fullatt_block_indexes": [1]}, QWEN_IDS),
    "qwen3_vl": ({**TEXT, **ROPE, "head_dim": 16},
                 {**QWEN, "intermediate_size": 48, **THREE}, QWEN_IDS),
    "qwen3_vl_moe": ({**TEXT, **ROPE, **MOE},
                     {**QWEN, "intermediate_size": 48, **THREE}, QWEN_IDS),
    "qwen3_5": ({**TEXT, **NEXT},
                {**QWEN, "intermediate_size": 48, "out_hidden_size": 64,
                 "num_position_embeddings": 16}, QWEN_IDS),
}  # fmt: skip
TEXT_IDS = torch.randint(3, 100, (2, 32), generator=torch.Generator().manual_seed(0))


def build(family, dtype=torch.float32):
    """A random model."""
    torch.manual_seed(0)
    text, vision, more = FAMILIES[family]
    config = CONFIG_MAPPING[family](text_config=text, vision_config=vision, **more)
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        if not parameter.any() and parameter.ndim > 1:  # Gemma 3 begins with a projection of zeros
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def sample(family, seed=0, before=5, after=9):
    """Text, an image, and text, as the family's processor hands them to the model."""
    generator = torch.Generator().manual_seed(seed)
    count = 16 if family == "llava" else 4
    left, right = (torch.randint(3, 100, (n,), generator=generator) for n in (before, after))
    middle = torch.full((count,), IMAGE)
    start, end = (torch.tensor([x]) for x in (START, END))
    ids_BT = torch.cat([left, start, middle, end, right])[None]
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    kinds_BT = (ids_BT == IMAGE).long()
    pixels = torch.randn(1, 3, 16, 16, generator=generator)
    if family.startswith("qwen"):
        patches = torch.randn(16, 96, generator=generator)
        grid = torch.tensor([[1, 4, 4]])
        return inputs | {
            "pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds_BT,
        }  # fmt: skip
    if family == "gemma3":
        inputs["token_type_ids"] = kinds_BT
    if family == "mistral3":
        inputs["image_sizes"] = torch.tensor([[16, 16]])
    if family in ("idefics3", "smolvlm"):
        pixels = pixels[None]
    return inputs | {"pixel_values": pixels}
