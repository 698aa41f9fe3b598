"""What CUDA makes is what the CPU makes. Without a CUDA device all of this is skipped.

Sums have another order there, so weights that are nearly tied may change places: shares of equal
zeros are stated, and that perplexities agree. What gradients learn parts further: another draw.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from helpers.random_models import TWO_FOUR
from helpers.runs import same
from prunus.cli.main import app
from prunus.methods.table import METHODS, STRUCTURED

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor"),
]

LLAMA = MODELS / "llama"
FEW = {"calibration": "builtin", "samples": 8, "length": 128, "dtype": "float32"}
SEARCHED = {"allocation.generations": 4, "allocation.offspring": 4, "allocation.tokens": 512}
NM = ("mrp-ms", "mrp-mm")
TABLE = {name: {"method": name, **({"pattern": "2:4"} if name in NM else {})} for name in METHODS}
COMPOSED = {
    "4:8 with swaps": {"method": "mrp-sm", "pattern": "4:8", "refine": "swaps"},
    "fold": {"method": "ria", "pattern": "2:4", "permutation": "fold"},
    "gather": {"method": "wanda", "pattern": "2:4", "permutation": "gather"},
    "owl": {"method": "wanda", "allocation": "owl"},
    "slope": {"method": "wanda", "allocation": "slope"},
    "evolve": {"method": "wanda", "allocation": "evolve", "settings": SEARCHED},
    "besa, two blocks, swaps, reconstructed with norms": {
        "preset": "best", "update": "least-squares", "refine": "swaps", "sparsity": 0.6,
    },
    "half a block reconstructed": {"method": "sparsegpt", "reconstruct": "half"},
    "best, learned in bfloat16": {
        "preset": "best", "sparsity": 0.6,
        "settings": {f"{part}.precision": "bfloat16" for part in ("allocation", "reconstruct")},
    },
    "the model's own text": {"method": "wanda", "calibration": "self"},
    "a grid first": {"method": "wanda", "bits": 4, "quantize": "before"},
    "a grid after": {"method": "mrp-sm", "bits": 4},
}  # fmt: skip
LEARNS = (
    "besa", "besa, two blocks, swaps, reconstructed with norms", "half a block reconstructed",
    "best, learned in bfloat16",
)  # fmt: skip
DRAWS = ("the model's own text",)  # CUDA has random numbers of its own
UNITS = {
    **{name: {"method": name, "sparsity": 0.3} for name in STRUCTURED},
    "goa, recovered before and after": {"method": "goa", "sparsity": 0.3, "recovery": "both"},
    "goa, adaptive": {"method": "goa", "sparsity": 0.3, "allocation": "adaptive"},
}


def pruned(device, fields, **more):
    return prunus.prune(LLAMA, device=device, **{**FEW, **fields}, **more)


def perplexity(result, device="cpu"):
    model, tokenizer = result.model.to(device), load_tiny("llama")[1]
    run = {"tokenizer": tokenizer, "length": 128, "windows": 16, "device": device}
    return prunus.evaluate(model, "builtin", **run).perplexity


def zeros(result):
    names = [layer.name for layer in result.report.layers]
    return torch.cat([(result.model.get_submodule(n).weight == 0).flatten().cpu() for n in names])


@pytest.mark.parametrize("name", [*TABLE, *COMPOSED])
def test_weights(name):
    fields = {**TABLE, **COMPOSED}[name]
    here, there = pruned("cpu", fields), pruned("cuda", fields)
    equal = (zeros(here) == zeros(there)).float().mean().item()
    both = perplexity(here), perplexity(there, "cuda")
    assert here.report.sparsity == there.report.sparsity
    if name not in DRAWS:
        assert equal > (0.97 if name in LEARNS else 0.995)
        assert both[1] == pytest.approx(both[0], rel=0.08 if name in LEARNS else 0.02)


@pytest.mark.parametrize("name", UNITS)
def test_units(name):
    if name == "random":
        pytest.skip("CUDA has random numbers of its own")
    here, there = pruned("cpu", UNITS[name]), pruned("cuda", UNITS[name])
    both = perplexity(here), perplexity(there, "cuda")
    assert here.report.structured.blocks == there.report.structured.blocks
    assert both[1] == pytest.approx(both[0], rel=0.01)


@pytest.mark.parametrize("name", ["mrp-sm", "besa, two blocks, swaps, reconstructed with norms"])
def test_a_run_repeats_to_the_same_bytes(name, tmp_path):
    fields = {**TABLE, **COMPOSED}[name]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        assert pruned("cuda", fields, output=folder).verification.ok
    same(*folders)


def wide(conv1d):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4) if conv1d else TWO_FOUR
    return AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()


@pytest.mark.parametrize("permutation", ["none", "fold", "gather"])
@pytest.mark.parametrize("conv1d", [False, True])
def test_two_four_on_sparse_tensor_cores(conv1d, permutation, tmp_path):
    ids = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))
    run = {"method": "wanda", "pattern": "2:4", "tokens_ST": ids, "permutation": permutation}
    prunus.prune(wide(conv1d), output=tmp_path / "out", device="cuda", **run)
    plain = prunus.load(tmp_path / "out", dtype="bfloat16", device="cuda")
    sparse = prunus.load(tmp_path / "out", dtype="bfloat16", device="cuda", sparse="2:4")
    kinds = {type(x).__name__ for x in sparse.parameters()}
    assert any("SparseSemiStructured" in kind for kind in kinds), kinds
    for tokens in (ids, ids[:1, :1], ids[:1, :7]):  # torch pads rows to a multiple of 8
        with torch.no_grad():
            first, second = (m(input_ids=tokens.cuda()).logits.float() for m in (plain, sparse))
        assert (first - second).norm() < 0.02 * first.norm()
    answers = [
        m.generate(ids[:1, :8].cuda(), max_new_tokens=8, do_sample=False) for m in (plain, sparse)
    ]
    assert answers[1].shape == answers[0].shape


def test_bench_measures_two_four(tmp_path):
    torch.manual_seed(0)
    model = wide(False)
    model.save_pretrained(tmp_path / "dense")
    ids = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(0))
    prunus.prune(
        tmp_path / "dense", method="wanda", pattern="2:4", tokens_ST=ids, output=tmp_path / "out"
    )
    options = ["--as", "pruned,2:4", "--device", "cuda", "--dtype", "bfloat16", "--json"]
    few = ["--repeats", "2", "--new", "4", "--prompt", "64"]
    done = CliRunner().invoke(app, ["bench", str(tmp_path / "out"), *options, *few])
    assert done.exit_code == 0, done.output
    assert {row["way"] for row in json.loads(done.stdout)["rows"]} == {"dense", "pruned", "2:4"}
