"""Random models whose channels can be told apart, and orders of their channels."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from helpers.roles import WIDE
from prunus.maths.orders.orders import Orders
from prunus.model.channels import Channels
from prunus.model.inspect import inspect
from prunus.model.weights import InMemory

IDS = torch.randint(0, 500, (4, 48), generator=torch.Generator().manual_seed(7))
SUBNORMS = {**WIDE, "intermediate_size": 48, "num_key_value_heads": 2}


def built(name, config):
    """A random model whose norms and biases all differ, so that an order shows."""
    torch.manual_seed(0)
    kind = CONFIG_MAPPING[name](vocab_size=512, **config)
    model = AutoModelForCausalLM.from_config(kind).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def channels_of(model, fold_residual=True):
    blocks, traced = inspect(model, IDS)
    return Channels.of(InMemory(model), blocks, traced, IDS[:1], fold_residual)


def shuffled(channels):
    generator = torch.Generator().manual_seed(5)
    return Orders(
        torch.randperm(channels.residual.channels, generator=generator),
        {site: x.shuffled(generator) for site, x in channels.interiors.items()},
    )
