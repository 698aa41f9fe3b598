"""Bytes of a model's weights: what it holds, and what one decoded token reads of them.

At batch 1 a step of decoding reads every weight once and computes little with it, so the bytes that
it reads bound its speed. Of the dense model, let p be the share of these bytes in layers that are
stored smaller, and S how many times smaller they are: no run is faster than ``1/((1−p) + p/S)``
times the dense one. The cache of keys and values comes on top, for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.blocks import find_beside
from ..model.experts import find_stacks


@dataclass(frozen=True)
class Bound:
    """What the traffic of weights allows a way to run to gain.

    Attributes:
        share: p, of the bytes that a token reads of the dense model, in layers of another size.
        saving: S, dense bytes of these layers over their own; None where there are none.
        ratio: ``1/((1−p) + p/S)``.
    """

    share: float
    saving: float | None
    ratio: float

    @classmethod
    def of(cls, dense: Mapping[str, int], own: Mapping[str, int]) -> Bound:
        """Compare the bytes that a token reads, by module.

        >>> Bound.of({"head": 20, "layer": 80}, {"head": 20, "layer": 40})
        Bound(share=0.8, saving=2.0, ratio=1.6666666666666667)
        """
        other = {name for name in {*dense, *own} if dense.get(name) != own.get(name)}
        before = sum(dense.get(name, 0) for name in other)
        after = sum(own.get(name, 0) for name in other)
        share = before / sum(dense.values())
        if not before or not after:
            return cls(share, None, sum(dense.values()) / sum(own.values()))
        saving = before / after
        return cls(share, saving, 1 / (1 - share + share / saving))


def parameters(model: nn.Module) -> int:
    """Count the weights of a model, tied ones once, also where a layer stores them its own way."""
    counted = sum(p.numel() for p in model.parameters())
    for module in model.modules():
        own = {name for name, _ in module.named_parameters(recurse=False)}
        if hasattr(module, "in_features") and "weight" not in own:
            counted += int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
    return counted


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, tied ones once."""
    seen: set[int] = set()
    return sum(_bytes(module, seen) for module in model.modules())


def read_bytes(model: PreTrainedModel) -> dict[str, int] | None:
    """Return the bytes that one token reads of each module's own weights; None with experts.

    Of an embedding that is one row, and of the head all of it, also where the two are tied. Towers
    for images and sound are not read. Which experts are read depends on the token.
    """
    if any(find_stacks("", module) for module in model.modules()):
        return None
    if getattr(model.config.get_text_config(), "num_experts_per_tok", None):
        return None
    beside = tuple(f"{name}." for name in find_beside(model))
    seen: set[int] = set()
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if beside and f"{name}.".startswith(beside):
            continue
        if isinstance(module, nn.Embedding):
            found[name] = module.weight[:1].nbytes
        else:
            found[name] = _bytes(module, seen)
    return {name: size for name, size in found.items() if size}


def _bytes(module: nn.Module, seen: set[int]) -> int:
    """Return the bytes of a module's own tensors that are not in ``seen``, and add them to it."""
    if callable(getattr(type(module), "weight", None)):  # torch's quantised layers: a copy
        copies = module.weight(), module.bias()  # type: ignore[operator]
        return sum(tensor.nbytes for tensor in copies if tensor is not None)
    total = 0
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        for part in _parts(tensor):
            if part.numel() and part.data_ptr() not in seen:
                seen.add(part.data_ptr())
                total += part.nbytes
    return total


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that a tensor consists of."""
    if tensor.layout == torch.sparse_csr:
        return [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    if hasattr(tensor, "__tensor_flatten__"):  # 2:4 is one that wraps others
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor]
