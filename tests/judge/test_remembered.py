"""A dense model that remembers what it made of a window."""

import pytest
import torch

from helpers.models import load_tiny
from helpers.random_models import FAMILIES, build
from prunus.judge.remembered import Remembered


@pytest.mark.parametrize("name", ["llama", "mamba", "gemma2", "cohere", "bloom", "falcon_h1"])
def test_the_second_reading_starts_behind_the_blocks(name):
    model = build(name, FAMILIES[name])
    ids_BT = torch.arange(24)[None]
    runs = []
    block = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
    block.register_forward_pre_hook(lambda *args: runs.append(1))
    read = {"use_cache": False}
    remembered = Remembered()
    with torch.no_grad():
        plain = model(input_ids=ids_BT, **read).logits
        with remembered.of(model):
            first = model(input_ids=ids_BT, **read).logits
        with remembered.of(model):  # as when it is loaded anew
            second = model(input_ids=ids_BT, **read).logits
            assert len(runs) == 2
            other = model(input_ids=ids_BT + 1, **read).logits
            both = model(input_ids=torch.cat([ids_BT, ids_BT + 1]), **read).logits
        after = model(input_ids=ids_BT, **read).logits
    assert all(torch.equal(plain, logits) for logits in (first, second, after))
    assert not torch.equal(plain, other)
    assert both.shape[0] == 2
    assert len(runs) == 5


def test_a_model_without_a_head_of_its_own_just_runs():
    model = load_tiny("llama")[0].model
    with Remembered().of(model), torch.no_grad():
        assert model(input_ids=torch.arange(8)[None]).last_hidden_state.shape[1] == 8
    assert "forward" not in vars(model)


def test_windows_beyond_the_room_are_read_each_time():
    model = load_tiny("llama")[0]
    runs = []
    model.model.layers[0].register_forward_pre_hook(lambda *args: runs.append(1))
    remembered = Remembered(room=24 * model.config.hidden_size * 4)
    with remembered.of(model), torch.no_grad():
        for start in (0, 1, 0, 1):
            model(input_ids=torch.arange(start, start + 24)[None], use_cache=False)
    assert len(runs) == 3  # the first window once, the second twice
