"""A model of Llama-2-7B's shapes on a CUDA device: pruning by method, and 2:4 against dense.

    python -m benchmarks.speed.cuda --log cuda.jsonl

The weights and the tokens are random, in bfloat16. Products: one layer on sparse tensor cores, as
``prunus.load(sparse="2:4")`` makes it, in turns with the dense one: the median of the ratios.
Pruning: seconds and peak memory of a block, 128 windows of 2,048 tokens. Run it on an idle device.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured
from transformers import LlamaConfig, LlamaForCausalLM

import prunus

BLOCKS = 2
METHODS: Mapping[str, Mapping[str, Any]] = {
    "Wanda": {"method": "wanda"},
    "RIA": {"method": "ria"},
    "SparseGPT": {"method": "sparsegpt"},
    "mrp-sm": {"method": "mrp-sm"},
    "mrp-sm 2:4": {"method": "mrp-sm", "pattern": "2:4"},
    "RIA 2:4, fold": {"method": "ria", "pattern": "2:4", "permutation": "fold"},
    "BESA": {"method": "besa"},
    "GOA 20 %": {"method": "goa", "sparsity": 0.2},
}
SHAPES = (4096, 4096), (11008, 4096), (4096, 11008)
TOKENS = 1, 16, 128, 2048
TURNS, CALLS = 20, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, required=True, help="JSON lines; added to")
    parser.add_argument("--windows", type=int, default=128, help="of 2,048 tokens")
    given = parser.parse_args()
    for shape in SHAPES:
        for tokens in TOKENS:
            write(given.log, product(*shape, tokens))
    for name, fields in METHODS.items():
        write(given.log, {"method": name, **pruning(fields, given.windows)})


def write(log: Path, found: Mapping[str, Any]) -> None:
    line = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, **found}
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(line, flush=True)


def product(outputs: int, inputs: int, tokens: int) -> dict[str, Any]:
    """Milliseconds of a dense and a 2:4 layer in bfloat16, and how far their outputs are apart."""
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
    weight.view(-1, 4)[:, ::2] = 0
    x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
    dense, sparse = (nn.Linear(inputs, outputs, bias=False, device="meta") for _ in range(2))
    dense.weight = nn.Parameter(weight, requires_grad=False)
    sparse.weight = nn.Parameter(to_sparse_semi_structured(weight), requires_grad=False)
    with torch.no_grad():
        first, second = dense(x).float(), sparse(x).float()
        turns = [(milliseconds(dense, x), milliseconds(sparse, x)) for _ in range(TURNS)]
    return {
        "shape": f"{outputs}x{inputs}",
        "tokens": tokens,
        "dense_ms": median(a for a, _ in turns),
        "sparse_ms": median(b for _, b in turns),
        "ratio": median(a / b for a, b in turns),
        "error": float((first - second).norm() / first.norm()),
    }


def milliseconds(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    layer(x)
    begin.record()
    for _ in range(CALLS):
        layer(x)
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / CALLS


def pruning(fields: Mapping[str, Any], windows: int) -> dict[str, Any]:
    """Seconds of a block and the device's peak memory of one method."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32000, num_hidden_layers=BLOCKS, dtype="bfloat16")
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    tokens_ST = torch.randint(0, 32000, (windows, 2048))
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    run = {"tokens_ST": tokens_ST, "device": "cuda", "observer": prunus.Silent()}
    result = prunus.prune(model, **run, **fields)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - begun) / BLOCKS
    peak = torch.cuda.max_memory_allocated()
    return {"block_s": seconds, "peak_bytes": peak, "sparsity": result.report.sparsity}


if __name__ == "__main__":
    main()
