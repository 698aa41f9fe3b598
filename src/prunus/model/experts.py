"""Experts as layers: each matrix of a 3-D parameter is called like a linear layer.

transformers keeps the experts of a block in parameters (E, O, I) or (E, I, O) and multiplies with
one matrix after the other, each with the tokens that were routed to that expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel


@dataclass(eq=False)
class Stack:
    """A parameter that holds a matrix for each expert.

    Attributes:
        name: of the parameter in its block.
        owner: the module that has it.
        leaf: its name there.
        transposed: whether it is (E, I, O); None until one of its matrices has been multiplied,
            which is what tells.
    """

    name: str
    owner: nn.Module
    leaf: str
    transposed: bool | None = None

    @property
    def tensor(self) -> nn.Parameter:
        """The tensor that the module holds now: a streamed weight comes and goes."""
        return self.owner.get_parameter(self.leaf)

    @property
    def bias(self) -> nn.Parameter | None:
        """The biases (E, O), if there are any under the name that transformers gives them."""
        return dict(self.owner.named_parameters(recurse=False)).get(f"{self.leaf}_bias")


class Expert(nn.Module):
    """One matrix of a stack, as a linear layer that hooks can watch: see ``products``."""

    def __init__(self, stack: Stack, index: int) -> None:
        super().__init__()
        self.stack, self.index = stack, index

    @property
    def weight(self) -> Tensor:
        """A view of the matrix as it is stored."""
        return self.stack.tensor.detach()[self.index]

    @property
    def bias(self) -> Tensor | None:
        """A view of its row of the biases."""
        bias = self.stack.bias
        return None if bias is None else bias.detach()[self.index]

    @property
    def transposed(self) -> bool:
        """Whether it is stored as (I, O)."""
        return bool(self.stack.transposed)

    def forward(self, inputs_TI: Tensor) -> Tensor:
        """Return the product alone: a block that multiplies by hand adds the bias by hand."""
        return linear(inputs_TI, self.weight.T if self.transposed else self.weight)


def find_stacks(path: str, module: nn.Module) -> list[Stack]:
    """Find the module's own 3-D parameters that may hold experts, not convolution kernels."""
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        return []
    return [
        Stack(f"{path}.{leaf}" if path else leaf, module, leaf)
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and min(parameter.shape[1:]) > 1
    ]


@contextmanager
def one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """Multiply one expert after the other, by transformers' own switch."""
    if not model._can_set_experts_implementation():
        yield
        return
    before = _implementations(model)
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _implementations(model: PreTrainedModel) -> dict[str, str | None]:
    """Return how the experts of the model and of its parts are multiplied now."""
    if hasattr(model, "get_experts_implementation"):
        return model.get_experts_implementation()
    # transformers 5.0 has the setter alone.
    parts = {"": model.config}
    parts |= {name: getattr(model.config, name, None) for name in model.config.sub_configs}
    return {name: c._experts_implementation for name, c in parts.items() if c is not None}
