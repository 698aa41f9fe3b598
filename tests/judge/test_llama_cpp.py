"""A GGUF in llama.cpp: the same tokens as transformers; only where llama-cpp-python is there."""

import pytest
import torch

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError
from prunus.judge.bench import bench
from prunus.judge.llama_cpp import LlamaCpp
from prunus.storage.checkpoint import load_model

pytest.importorskip("llama_cpp")
# its log decodes pieces of characters, in a callback from C
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

IDS = [[5, 10, 20, 30], [7, 8, 9, 11]]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    prunus.write_gguf(MODELS / "llama", file, dtype="float32")
    return file


def steps(model, ids, new):
    """What ``run`` computes, with its tokens."""
    context = model._context(len(ids), len(ids[0]), new)
    batch = model._api.llama_batch_init(len(ids) * len(ids[0]), 0, 1)
    found = [model._step(context, batch, ids, 0)]
    for place in range(len(ids[0]), len(ids[0]) + new - 1):
        found.append(model._step(context, batch, [[token] for token in found[-1]], place))
    return torch.tensor(found).T


def test_every_row_continues_as_in_transformers(gguf):
    dense = load_model(MODELS / "llama")
    whole = dense.generate(
        torch.tensor(IDS), attention_mask=torch.ones(2, 4), max_new_tokens=6, min_new_tokens=6,
        do_sample=False,
    )  # fmt: skip
    model = LlamaCpp(str(gguf), 1)
    assert torch.equal(steps(model, IDS, 6), whole[:, 4:])
    assert torch.equal(steps(model, IDS[1:], 6), whole[1:, 4:])
    assert min(model.run(IDS, 3).values()) > 0


def test_a_gguf_takes_its_turns(gguf, tmp_path):
    prunus.prune(MODELS / "llama", method="magnitude", output=tmp_path / "out")
    way = f"llama.cpp={gguf}"
    found = bench(tmp_path / "out", ways=way, batch=[1, 2], prompt=8, new=3, repeats=1, threads=1)
    model = found.model(way)
    assert (model.dtype, model.parameters, model.against) == ("all F32", 162240, "dense")
    assert model.disk_bytes == gguf.stat().st_size > model.weight_bytes >= 4 * 162240
    assert model.bound is None
    assert all(row.of_bound is None for row in found.rows)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"as llama.cpp=.*: llama.cpp cannot load this file"):
        bench(tmp_path / "out", ways=f"llama.cpp={broken}", prompt=8, new=2, repeats=1)
