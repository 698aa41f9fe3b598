"""One layer of Llama-2-7B and 13B, packed, against dense: ratios of paired runs, and a picture.

    python -m benchmarks.speed.layers --log layers.jsonl --output layers.png       # all: hours
    python -m benchmarks.speed.layers --log layers.jsonl --tokens 1 --threads 1    # decoding
    python -m benchmarks.speed.layers --log layers.jsonl --output layers.png --draw

Each cell (shape, zeros, kind of values, tokens, threads) is one line of the log, and a cell that
the log has is not measured again. In a cell all ways multiply eight copies of the layer in turn, in
an order that rotates; a ratio is the median over the turns of the other's time over the packed
layer's. The reference is the fastest dense product with as many bits a weight: torch's own in
float32 and bfloat16; in int8 and int4 torch's (dynamic int8, int8 weights, 4-bit weights) or, where
torch has no fast kernel, this library's own on a weight without zeros. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.layer_ways import BITS, Way, ways
from benchmarks.speed.picture import draw
from prunus.judge.turns import rotated
from prunus.maths.packed import FLOATS
from prunus.runtime.kernels.library import library

SHAPES = "4096x4096,11008x4096,4096x11008,5120x5120,13824x5120,5120x13824"
LEAST = 0.05  # seconds of a run: shorter ones go over the copies again
KEY = ("shape", "zeros", "kind", "inputs", "tokens", "threads")


def main() -> None:
    given = arguments()
    log = Path(given.log)
    if not given.draw:
        measure(given, log)
    cells = read(log)
    if given.output:
        draw(cells, given.output)
        print(given.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", required=True, help="JSON lines, one a cell; added to")
    parser.add_argument("--output", help="the picture")
    parser.add_argument("--draw", action="store_true", help="only draw what the log has")
    parser.add_argument("--shapes", type=_words, default=SHAPES, help="outputs x inputs")
    parser.add_argument("--zeros", type=_numbers, default="50,60,70,80", help="percent")
    parser.add_argument("--kinds", type=_words, default="float32,bfloat16,int8,int4")
    parser.add_argument("--tokens", type=_numbers, default="1,4,16,128,512")
    parser.add_argument("--threads", type=_numbers, default="1,2")
    parser.add_argument("--inputs", choices=["float32", "bfloat16"], default="float32",
                        help="dtype of the activations of int8 and int4")  # fmt: skip
    parser.add_argument("--copies", type=int, default=8, help="fewer where memory is short")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each cell")
    given = parser.parse_args()
    for kind in given.kinds:
        if kind not in BITS:
            parser.error(f"unknown kind {kind!r}; there are {', '.join(BITS)}")
    return given


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


@torch.inference_mode()
def measure(given: argparse.Namespace, log: Path) -> None:
    """Measure every cell that the log lacks, and print and log it."""
    kernels = library()
    if kernels is None:
        raise SystemExit("No kernels: run python -m prunus.runtime.kernels.build first.")
    print(f"kernels for {kernels.name}")
    done = {_key(cell) for cell in read(log)}
    print(f"{'layer':>12} zeros {'kind':>8} tokens threads    ms  ratio of bound  others")
    for shape, zeros, kind in [
        (s, z, k) for s in given.shapes for z in given.zeros for k in given.kinds
    ]:
        inputs = kind if kind in FLOATS else given.inputs
        sizes = [(t, n) for n in given.threads for t in given.tokens]
        sizes = [size for size in sizes if (shape, zeros, kind, inputs, *size) not in done]
        if not sizes:
            continue
        gc.collect()
        made = ways(*_layer(shape, zeros), kind, getattr(torch, inputs), given.copies)
        for tokens, threads in sizes:
            key = dict(zip(KEY, (shape, zeros, kind, inputs, tokens, threads), strict=True))
            torch.set_num_threads(threads)
            cell = {**key, "kernels": kernels.name, **_cell(made, key, given.repeats)}
            with log.open("a") as file:
                file.write(json.dumps(cell) + "\n")
            print(_line(cell), flush=True)
        del made


def read(log: Path) -> list[dict[str, Any]]:
    """Return the cells of a log, of which the last line may be half written."""
    cells = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            cells.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return cells


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in KEY)


def _layer(shape: str, zeros: int) -> tuple[Tensor, Tensor]:
    """Return a normal weight (O, I) with that share of zeros at random places, and without."""
    outputs, inputs = map(int, shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    dense_OI = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    kept_OI = torch.rand(outputs, inputs, generator=generator) >= zeros / 100
    return dense_OI * kept_OI, dense_OI


def _cell(made: Mapping[str, Way], key: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Measure all ways in turn, and compare them with the packed one."""
    inputs = int(key["shape"].split("x")[1])
    inputs_TI = torch.randn(key["tokens"], inputs, generator=torch.Generator().manual_seed(1))
    turns = [*_turns(made, inputs_TI, repeats)]
    ms = {name: 1e3 * median(turn[name] for turn in turns) for name in made}
    ratios = {
        name: median(turn[name] / turn["packed"] for turn in turns)
        for name in made
        if name != "packed"
    }
    dense = [name for name in ratios if made[name].dense]
    reference = min(dense, key=ms.__getitem__) if dense else "dense"
    bound = 1 / (1 - key["zeros"] / 100 + 1 / BITS[key["kind"]])
    return {
        "ms": ms,
        "ratios": ratios,
        "reference": reference,
        "ratio": ratios[reference],
        "bound": bound,
        "copies": len(made["packed"].layers),
        "runs": turns,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def _turns(made: Mapping[str, Way], inputs_TI: Tensor, repeats: int) -> Iterator[dict[str, float]]:
    """Yield the seconds that each way takes for one layer, turn by turn, after a first one."""
    names = [*made]
    fed = {name: inputs_TI.to(way.dtype) for name, way in made.items()}
    passes = {name: 1 for name in names}
    for turn in range(repeats + 1):
        found = {}
        for at in rotated(turn, len(names)):
            name = names[at]
            found[name] = _seconds(made[name], fed[name], passes[name])
            if turn == 0:
                whole = found[name] * len(made[name].layers)
                passes[name] = max(1, round(LEAST / whole))
        if turn:
            yield found


def _seconds(way: Way, inputs_TI: Tensor, passes: int) -> float:
    begun = time.perf_counter()
    for _ in range(passes):
        for layer in way.layers:
            layer(inputs_TI)
    return (time.perf_counter() - begun) / passes / len(way.layers)


def _line(cell: Mapping[str, Any]) -> str:
    others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in cell["ratios"].items())
    shown: Sequence[str] = (
        f"{cell['shape']:>12} {cell['zeros']:3d} %",
        f"{cell['kind']:>8} {cell['tokens']:6d} {cell['threads']:7d}",
        f"{cell['ms']['packed']:6.3f} {cell['ratio']:5.2f} {cell['ratio'] / cell['bound']:8.2f}",
        f" {others}",
    )
    return " ".join(shown)


if __name__ == "__main__":
    main()
