"""Where a model's weights are: in memory, or elsewhere until a block is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Axes = Sequence[tuple[str, int]]
"""Names of parameters, each with the axis that its channels lie on."""


class Weights(Protocol):
    """A model, and the means to have the weights of a part of it at hand."""

    @property
    def model(self) -> PreTrainedModel:
        """The whole structure; parameters that are not at hand are on the meta device."""
        ...

    @property
    def origin(self) -> object | None:
        """The source of the model, for those who write it: a ``storage.origin.Origin``."""
        ...

    @contextmanager
    def at_hand(self, name: str) -> Iterator[nn.Module]:
        """Return the block of that name with its weights; changes may last only until the end."""
        ...

    @contextmanager
    def passing(self, blocks: Sequence[str]) -> Iterator[None]:
        """Return a context for forwards of the whole model that loads each block as it runs."""
        ...

    def fold(self, axes: Axes, order_I: Tensor) -> None:
        """Reorder axes of parameters, now or when they are loaded."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A model whose weights are all in memory."""

    model: PreTrainedModel
    origin: object | None = None

    @contextmanager
    def at_hand(self, name: str) -> Iterator[nn.Module]:
        """Return the block; changes last."""
        yield self.model.get_submodule(name)

    @contextmanager
    def passing(self, blocks: Sequence[str]) -> Iterator[None]:
        """Do nothing."""
        yield

    @torch.no_grad()
    def fold(self, axes: Axes, order_I: Tensor) -> None:
        """Reorder the parameters in place."""
        for name, axis in axes:
            tensor = self.model.get_parameter(name)
            tensor.copy_(tensor.index_select(axis, order_I.to(tensor.device)))
