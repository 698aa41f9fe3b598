"""The runs of ``digests.py``: which models, which fields of the recipe, and what is done."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from prunus.maths.patterns import NM
from prunus.maths.pruners import Compose
from prunus.maths.scores import Wanda

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "tests" / "models").is_dir())
TRAINED = ROOT / "tests" / "models"

GQA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
       "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
VISION = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48,
          "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
          "patch_size": 4}  # fmt: skip
RANDOM = {  # families that are not in tests/models
    "qwen2": GQA,  # biases on q, k and v alone
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},  # all fused
    "mamba": {"hidden_size": 256, "num_hidden_layers": 2, "state_size": 8},
    "mixtral": {**GQA, **EXPERTS},  # experts in 3-D, on disk one by one
    # Experts in 3-D, inputs first, with biases.
    "gpt_oss": {**GQA, **EXPERTS, "head_dim": 16, "num_hidden_layers": 3},
    "deepseek_v3": {**GQA, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 32,
                    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
                    "n_routed_experts": 4, "moe_intermediate_size": 32, "n_shared_experts": 1,
                    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                    "first_k_dense_replace": 1},
    "llava": {"text_config": {**GQA, "vocab_size": 520, "model_type": "llama"},
              "vision_config": VISION, "image_token_index": 515},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run: of which model, with which fields of the recipe, and which function does it."""

    model: str
    fields: Mapping[str, Any]
    do: str = "written"


TEXT = {"samples": 4, "length": 64}
STEPS = {"allocation.steps": 8}
WEIGHTS = ("magnitude", "ri", "wanda", "ria", "dass", "obs", "sparsegpt", "mrp-ss", "mrp-sm",
           "mrp-ms", "mrp-mm", "besa")  # fmt: skip
UNITS = ("goa", "random", "l1", "l2", "wanda-sp", "flap", "llm-pruner")
# Each line: the method, then the other fields as YAML would have them.
OF_LLAMA = """
wanda pattern=layer
wanda pattern=column
wanda pattern=2:4
wanda pattern=4:8
wanda pattern=1:4
wanda pattern=2:4:output
magnitude pattern=row
magnitude pattern=2:4
ri pattern=column
ria pattern=row sparsity=0.7
ria pattern=2:4
dass pattern=2:4
dass mlp_only=true
sparsegpt pattern=row
sparsegpt pattern=column
sparsegpt pattern=2:4
mrp-ss pattern=4:8
mrp-sm pattern=row
mrp-sm pattern=column
mrp-sm pattern=2:4
mrp-ms pattern=4:8
mrp-mm pattern=1:4
wanda pattern=2:4 permutation=fold
wanda pattern=2:4 permutation=gather
wanda pattern=2:4 permutation=free
ria pattern=4:8 permutation=fold search=heuristic
magnitude pattern=2:4 permutation=gather search=greedy settings.permutation.escapes=5
sparsegpt pattern=2:4 permutation=gather
mrp-mm permutation=fold
mrp-sm pattern=2:4 permutation=free settings.permutation.sweeps=2
wanda pattern=2:4 permutation=fold settings.permutation.rows=32
wanda refine=swaps
wanda pattern=2:4 refine=swaps
sparsegpt pattern=2:4 refine=swaps
mrp-sm pattern=column refine=swaps settings.refinement.rounds=2
ria update=least-squares refine=swaps
mrp-sm pattern=2:4 refine=swaps permutation=fold
ria update=least-squares
ria update=least-squares settings.update.method=direct
magnitude update=sparsegpt
dass update=sparsegpt
wanda pattern=2:4 update=least-squares permutation=gather
wanda allocation=owl
sparsegpt pattern=row allocation=owl settings.allocation.reach=0.05
wanda allocation=owl pattern=1:4,2:4,3:4 sparsity=0.5
besa update=least-squares STEPS
besa pattern=layer STEPS settings.allocation.granularity=two-blocks
besa STEPS settings.allocation.granularity=attention-mlp
besa pattern=1:4,2:4,3:4 sparsity=0.5 STEPS
besa STEPS settings.allocation.reference=dense settings.allocation.norm=channel
besa STEPS bits=4 group=32 quantize=before
sparsegpt allocation=besa STEPS
wanda true_sequential=true
sparsegpt true_sequential=true
mrp-sm pattern=2:4 permutation=gather true_sequential=true
wanda mlp_only=true
sparsegpt skip_blocks=1:2
wanda bits=4 group=32
wanda bits=4 group=32 pack=true
sparsegpt bits=3 group=0
magnitude bits=8 group=16 quantize=before
wanda pattern=2:4 bits=4 group=32 permutation=fold pack=true
wanda settings.pattern.group=layer
ria settings.score.power=0.4 settings.score.terms=in
sparsegpt settings.block_size=16 settings.damp=0.1
mrp-sm settings.block_size=32 settings.diagonal=trailing
dass settings.gate_up.score.power=0.25
wanda dtype=bfloat16
mrp-sm dtype=bfloat16 pattern=2:4
wanda dtype=float16
besa dtype=bfloat16 STEPS
goa dtype=bfloat16
wanda seed=1
ria bos=yes
wanda calibration=self
wanda calibration=TEXTS.jsonl
sparsegpt calibration=TEXTS.jsonl field=answer
wanda calibration=TEXTS.txt.gz
goa calibration=self
goa calibration=none
goa allocation=adaptive
goa recovery=before
goa recovery=after
goa recovery=both blocks=1:3
goa mlp_only=true
goa parameters=20000
goa settings.heads.threshold=0.2 settings.heads.distance=authors settings.heads.goes=first
goa settings.neurons.moment=gaussian settings.neurons.centred=true
goa settings.target=heads sparsity=0.5
flap allocation=uniform
flap settings.heads.squared_attention=true
flap settings.compensation=false recovery=after
wanda-sp allocation=adaptive blocks=0:2
l1 recovery=after
l2 sparsity=0.4 allocation=adaptive
random seed=3 mlp_only=true
llm-pruner settings.heads.by=vector settings.neurons.by=vector
llm-pruner allocation=adaptive recovery=both
""".strip().splitlines()
OF_OTHERS = """
gpt2 wanda
gpt2 sparsegpt pattern=2:4
gpt2 mrp-mm permutation=fold
gpt2 ria update=least-squares pattern=column
gpt2 besa STEPS
gpt2 goa recovery=after
gpt2 flap
gpt2 llm-pruner
bloom wanda pattern=2:4 permutation=gather
bloom sparsegpt
gemma wanda pattern=2:4 permutation=fold
gemma goa
gpt_neox mrp-sm
gpt_neox l2
opt wanda pattern=2:4 permutation=fold
opt sparsegpt true_sequential=true
opt wanda-sp
phi3 dass
phi3 ria pattern=2:4 permutation=fold
phi3 goa recovery=both mlp_only=true
qwen2 mrp-sm
qwen2 flap
falcon wanda
falcon goa
mamba wanda
mamba sparsegpt
mamba wanda pattern=2:4 permutation=fold
mixtral wanda min_tokens=20
mixtral mrp-sm pattern=2:4 min_tokens=20
mixtral besa STEPS min_tokens=20
mixtral wanda pattern=2:4 permutation=fold min_tokens=20
gpt_oss sparsegpt min_tokens=20
gpt_oss dass min_tokens=20
gpt_oss ria pattern=2:4 update=least-squares min_tokens=20
gpt_oss wanda min_tokens=20 allocation=owl
deepseek_v3 wanda min_tokens=20
deepseek_v3 mrp-sm min_tokens=20 true_sequential=true
llava magnitude
""".strip().splitlines()
OTHERWISE = {
    "interrupted": [
        *("llama sparsegpt true_sequential=true", "llama mrp-mm permutation=fold"),
        *("llama wanda pattern=2:4 permutation=gather", "llama besa STEPS"),
        *("llama goa recovery=after", "llama wanda-sp", "gpt_oss wanda min_tokens=20"),
    ],
    "spilled": [
        "llama sparsegpt true_sequential=true",
        "llama besa STEPS",
        "llama goa",
        "llama flap",
    ],
    "in_memory": [
        *("llama wanda", "llama mrp-sm pattern=2:4 permutation=gather", "llama besa STEPS"),
        *("llama mrp-mm permutation=fold", "llama goa recovery=after", "llama flap", "gpt2 goa"),
        *("mixtral wanda min_tokens=20", "mamba magnitude"),
    ],
    "in_memory_written": ["llama ria", "llama goa allocation=adaptive", "gpt2 sparsegpt"],
    "planned": [
        *("llama wanda", "llama mrp-sm pattern=2:4 permutation=fold", "llama besa STEPS"),
        *("llama sparsegpt true_sequential=true allocation=owl", "llama magnitude bits=4 group=32"),
        *(
            "llama goa recovery=after",
            "llama flap",
            "llama llm-pruner",
            "llama l1 parameters=20000",
        ),
        *("gpt2 mrp-sm", "gpt2 goa", "gpt_oss wanda min_tokens=20", "llama quantize bits=4"),
    ],
    "then_quantized": ["llama wanda pattern=2:4", "llama magnitude", "gpt2 sparsegpt pattern=row"],
    "again_by_recipe": ["llama wanda pattern=2:4 permutation=gather", "llama goa recovery=after"],
    "judged": [
        *("llama wanda", "llama wanda pattern=2:4 permutation=gather", "llama mrp-mm"),
        *("llama goa allocation=adaptive", "llama flap", "gpt2 wanda pattern=2:4"),
    ],
    "exported": ["llama goa allocation=adaptive"],
    "through_gguf": ["llama wanda"],
}


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """Return the model, and the fields of the recipe."""
    model, method, *rest = line.split()
    fields: dict[str, Any] = {"method": method, **TEXT}
    settings: dict[str, Any] = {}
    for word in rest:
        if word == "STEPS":
            settings |= STEPS
            continue
        name, _, value = word.partition("=")
        simple = value if ":" in value or name == "bos" else yaml.safe_load(value)
        into = settings if name.startswith("settings.") else fields
        into[name.removeprefix("settings.")] = simple
    return model, {**fields, **({"settings": settings} if settings else {})}


def all_cases() -> dict[str, Case]:
    lines = [f"llama {line}" for line in (*WEIGHTS, *UNITS, *OF_LLAMA)] + OF_OTHERS
    cases = {line: Case(*parsed(line)) for line in lines}
    for do, names in OTHERWISE.items():
        cases |= {f"{do}: {name}": Case(*parsed(name), do) for name in names}
    for model in ("llama", "gpt2"):
        cases[f"quantize {model}"] = Case(model, {"bits": 4, "group": 32, **TEXT}, "quantized")
    for fields in ({"pack": True}, {"scales": False, "clip": False}, {"group": None, "bits": 3}):
        name = " ".join(f"{key}={value}" for key, value in fields.items())
        given = {"bits": 4, "group": 32, **TEXT, **fields}
        cases[f"quantize llama {name}"] = Case("llama", given, "quantized")
    ids_ST = torch.randint(0, 500, (4, 64), generator=torch.Generator().manual_seed(0))
    for method in ("wanda", "goa"):
        cases[f"{method} of ids"] = Case("llama", {"method": method, "tokens_ST": ids_ST})
    own = Compose(Wanda(), NM(2, 4))
    cases["a method of one's own"] = Case("llama", {"method": own, **TEXT})
    spoken = [" ".join(words(300, seed)) for seed in range(8)]
    cases["wanda of strings"] = Case("llama", {"method": "wanda", "calibration": spoken, **TEXT})
    for method in ("wanda", "sparsegpt"):
        cases[f"{method} of images"] = Case("llava", {"method": method, "inputs": seen()})
    cases["the table of methods"] = Case("llama", {}, "table")
    return cases


def words(count: int, seed: int) -> Iterator[str]:
    """Something like a language, the same everywhere."""
    chance = random.Random(seed)
    known = ["".join(chance.choices("aeiounrstlm", k=chance.randint(2, 7))) for _ in range(60)]
    return (known[int(60 * chance.random() ** 2)] for _ in range(count))


def seen() -> list[dict[str, Tensor]]:
    """Text, an image, text, as a processor hands them to Llava."""
    found = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        ids_T = torch.randint(3, 100, (30,), generator=generator)
        ids_T[5:21] = 515
        pixels = torch.randn(1, 3, 16, 16, generator=generator)
        mask_BT = torch.ones(1, 30, dtype=torch.int64)
        found.append({"input_ids": ids_T[None], "attention_mask": mask_BT, "pixel_values": pixels})
    return found


CASES = all_cases()


def models(work: Path, wanted: set[str]) -> None:
    """Make the models and the texts of all runs, in a folder."""
    for name in wanted - set(RANDOM):
        shutil.copytree(TRAINED / name, work / name)
    for name in wanted & set(RANDOM):
        torch.manual_seed(0)
        kind = AutoModelForImageTextToText if name == "llava" else AutoModelForCausalLM
        size = {} if name == "llava" else {"vocab_size": 512}
        model = kind.from_config(CONFIG_MAPPING[name](**size, **RANDOM[name])).eval()
        with torch.no_grad():
            for label, parameter in model.named_parameters():
                if label.endswith("bias"):
                    parameter.normal_(std=0.3)  # a bias of zeros hides what becomes of it
        model.save_pretrained(work / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TRAINED / "llama" / file, work / name)
    rows = [
        {"text": " ".join(words(300, seed)), "answer": " ".join(words(300, 100 + seed))}
        for seed in range(8)
    ]
    (work / "TEXTS.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = "\n\n".join(row["text"] for row in rows).encode()
    (work / "TEXTS.txt.gz").write_bytes(gzip.compress(text, mtime=0))
