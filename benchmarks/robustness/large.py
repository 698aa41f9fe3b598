"""A model as large as Llama-2-7B, with random weights: peak memory and time of a run.

    python benchmarks/robustness/large.py FOLDER --blocks 32 16

Writes bfloat16 checkpoints of these numbers of blocks below FOLDER, a shard at a time (13.5 GB for
32 blocks), prunes each by Wanda to 2:4 with 8 samples of 128 tokens in a process of its own, and
prints that process's highest resident memory and its time, beside what `prunus plan` said of them.
`--method goa`, or another that removes heads and neurons, removes a fifth of those.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

WIDTH, INNER, WORDS = 4096, 11008, 32000
SQUARE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", nargs="*", type=int, default=[32, 16])
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    given = parser.parse_args()
    print("| blocks | GB | peak GiB | planned | minutes | planned | sparsity |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for blocks in given.blocks:
        model, output = given.folder / f"dense-{blocks}", given.folder / f"pruned-{blocks}"
        if not model.exists():
            write(model, blocks)
        size = sum(x.stat().st_size for x in model.glob("*.safetensors"))
        plan, found = (
            alone(what, str(model), str(output), given.method) for what in ("--plan", "--one")
        )
        print(
            f"| {blocks} | {size / 1e9:.1f} | {found['peak'] / 2**30:.2f} "
            f"| {plan['peak'] / 2**30:.2f} | {found['seconds'] / 60:.1f} "
            f"| {plan['seconds'] / 60:.1f} | {found['sparsity']:.4f} |",
            flush=True,
        )
        shutil.rmtree(output)
        if not given.keep:
            shutil.rmtree(model)


def alone(*arguments: str) -> dict[str, float]:
    """In a process of its own, whose highest resident memory is nobody else's."""
    run = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def one(what: str, model: str, output: str, method: str) -> None:
    """Make a run or its plan, in this process."""
    import prunus
    from prunus.methods.table import STRUCTURED

    ids_ST = torch.randint(0, WORDS, (8, 128), generator=torch.Generator().manual_seed(0))
    given = {"method": method, "tokens_ST": ids_ST, "output": output}
    if method not in STRUCTURED:
        given["pattern"] = "2:4"
    begun = time.perf_counter()
    if what == "--plan":
        plan = prunus.plan(model, **given)
        print(json.dumps({"peak": plan.peak_bytes, "seconds": plan.seconds}))
        return
    sparsity = prunus.prune(model, **given).report.sparsity
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "seconds": seconds, "sparsity": sparsity}))


def write(folder: Path, blocks: int) -> None:
    """Write a shard for each block, and one for the rest."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=blocks,
        num_attention_heads=32, max_position_embeddings=4096, dtype="bfloat16",
        architectures=["LlamaForCausalLM"], tie_word_embeddings=False,
    )  # fmt: skip
    config.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(WORDS)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}

    def shard(number: int, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{number:05d}-of-{blocks + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (0.02 * torch.randn(rows, columns, generator=generator)).bfloat16()

    ones = torch.ones(WIDTH, dtype=torch.bfloat16)
    for index in range(blocks):
        tensors = {f"{name}.weight": matrix(WIDTH, WIDTH) for name in SQUARE}
        tensors["mlp.gate_proj.weight"] = matrix(INNER, WIDTH)
        tensors["mlp.up_proj.weight"] = matrix(INNER, WIDTH)
        tensors["mlp.down_proj.weight"] = matrix(WIDTH, INNER)
        tensors["input_layernorm.weight"] = ones.clone()
        tensors["post_attention_layernorm.weight"] = ones.clone()
        shard(index + 1, {f"model.layers.{index}.{name}": t for name, t in tensors.items()})
    outside = {"model.embed_tokens.weight": matrix(WORDS, WIDTH), "model.norm.weight": ones.clone()}
    shard(blocks + 1, {**outside, "lm_head.weight": matrix(WORDS, WIDTH)})
    index_json = json.dumps({"metadata": {}, "weight_map": where})
    (folder / "model.safetensors.index.json").write_text(index_json)


if __name__ == "__main__":
    if sys.argv[1:2] in (["--one"], ["--plan"]):
        one(*sys.argv[1:])
    else:
        main()
