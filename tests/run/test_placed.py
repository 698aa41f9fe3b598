"""Models in memory of which a part is elsewhere: a sentence before any work."""

import pytest
import torch
from accelerate import cpu_offload, init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import InputError
from prunus.run.inputs import check_place

IDS = torch.randint(0, 500, (2, 16), generator=torch.Generator().manual_seed(0))
CALLS = {
    "prune": lambda model, _: prunus.prune(model, method="wanda", tokens_ST=IDS),
    "smaller": lambda model, _: prunus.prune(model, method="goa", tokens_ST=IDS),
    "plan": lambda model, _: prunus.plan(model, method="wanda", tokens_ST=IDS),
    "quantize": lambda model, _: prunus.quantize(model, bits=4, group=32, tokens_ST=IDS),
    "evaluate": lambda model, tokenizer: prunus.evaluate(model, tokenizer=tokenizer),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_accelerate_keeps_on_disk_is_named(call, tmp_path):
    _, tokenizer = load_tiny("llama")
    device_map = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu",
                  "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        MODELS / "llama", device_map=device_map, offload_folder=str(tmp_path)
    )
    name = r"model\.layers\.0\.self_attn\.q_proj\.weight"
    with pytest.raises(InputError, match=rf"{name} is on the meta .* on disk .*Give the folder"):
        CALLS[call](model, tokenizer)


@pytest.mark.parametrize("call", CALLS)
def test_a_model_without_values_is_named(call):
    _, tokenizer = load_tiny("llama")
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODELS / "llama"))
    with pytest.raises(InputError, match=r"embed_tokens\.weight is on the meta device: it has no"):
        CALLS[call](model, tokenizer)


def test_what_accelerate_keeps_in_memory_beside_a_device_is_named():
    model, _ = load_tiny("llama")
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(InputError, match="is on the meta device"):
        prunus.prune(model, method="wanda", tokens_ST=IDS)


@pytest.mark.parametrize(("home", "said"), [("cpu", "in the CPU's memory"), ("disk", "on disk")])
def test_the_longest_name_of_the_map_counts(home, said):
    devices = {"a.b.weight": torch.device("cpu"), "a.c.weight": torch.device("meta")}
    with pytest.raises(InputError, match=rf"a\.c\.weight is on the meta device.*{said}"):
        check_place(devices, {"": 0, "a": 0, "a.c": home})


def test_two_devices_are_named():
    devices = {"a": torch.device("cuda:0"), "b": torch.device("cuda:1")}
    with pytest.raises(InputError, match=r"b is on cuda:1, a on cuda:0: prunus works on one"):
        check_place(devices, {"a": 0, "b": 1})
    check_place({"a": torch.device("cuda:0"), "b": torch.device("cuda:0")}, {})


def test_a_device_map_of_one_device_is_no_hindrance():
    model = AutoModelForCausalLM.from_pretrained(MODELS / "llama", device_map={"": "cpu"})
    assert prunus.prune(model, method="wanda", tokens_ST=IDS).report.sparsity == 0.5
