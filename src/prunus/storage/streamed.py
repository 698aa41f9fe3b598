"""A model whose weights stay in their files until a block is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import CheckpointError, other_shape
from ..model.weights import Axes, InMemory
from .origin import Origin
from .scratch import Scratch


@dataclass
class Streamed:
    """A model whose weights stay in files; a block's are read when needed and dropped after.

    What lies outside of the blocks (embeddings, last norm, head) is read once and stays.

    Attributes:
        model: on the meta device but for what is at hand.
        files: every tensor by its name in the model, read anew at each look-up. Names and layouts
            are transformers' own: this is what it would put into the model.
    """

    model: PreTrainedModel
    files: Mapping[str, Tensor]
    keep: Scratch | None = None
    origin: Origin | None = None
    _orders: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        blocks: Sequence[str],
        keep: Scratch | None = None,
        origin: Origin | None = None,
    ) -> Streamed:
        """Make one of a model that transformers loaded with ``device_map={"": "disk"}``.

        Args:
            model: with hooks that would load each module for each forward; they are taken off.
            blocks: names of the modules that come and go.
            keep: the folder of what transformers converted, such as experts stored one by one.
            origin: the files that it comes from.
        """
        hook: Any = next(
            m._hf_hook
            for m in model.modules()
            if getattr(getattr(m, "_hf_hook", None), "weights_map", None) is not None
        )
        files = hook.weights_map.dataset
        remove_hook_from_submodules(model)
        streamed = cls(model, files, keep, origin)
        for name, entry in files.index.items():
            if entry.get("safetensors_file") and streamed._is_wide(name):
                entry["dtype"] = "float32"  # what the file holds, not rounded on the way
        inside = tuple(f"{name}." for name in blocks)
        for name, tensor in list(model.state_dict(keep_vars=True).items()):
            if name in model.all_tied_weights_keys and name not in files:
                continue  # in transformers 5.0 a tied tensor has no entry of its own: see below
            rounded = not tensor.is_meta and name in files and streamed._is_wide(name)
            if rounded or (tensor.is_meta and not name.startswith(inside)):
                found = streamed.read(name)
                if found.shape != tensor.shape:
                    raise CheckpointError(other_shape(name, found.shape, tensor.shape))
                _put(model, name, found)
        for target, source in list(model.all_tied_weights_keys.items()):
            own = streamed.read(target) if target in files and source in files else None
            if own is None or torch.equal(own, model.get_parameter(source)):
                _put(model, target, model.get_parameter(source))
            else:  # what transformers does not see while both are on disk
                _put(model, target, own)
                del model.all_tied_weights_keys[target]
        note_untied(model)
        return streamed

    @property
    def converted_bytes(self) -> int:
        """Bytes of the copies that transformers made of what it keeps in another layout."""
        return sum(x.stat().st_size for x in self.keep.path.iterdir()) if self.keep else 0

    def read(self, name: str) -> Tensor:
        """Read a tensor of the model from its file, in the current order of its channels."""
        tensor = self.files[name].clone()  # a copy: what is mapped is the file
        for axis in range(tensor.ndim):
            if (name, axis) in self._orders:
                tensor = tensor.index_select(axis, self._orders[name, axis])
        return tensor.float() if self._is_wide(name) else tensor

    def _is_wide(self, name: str) -> bool:
        return any(part in name for part in self._wide)

    @cached_property
    def _wide(self) -> set[str]:
        """Parts of names that are float32 in half precision; from disk, transformers forgets it."""
        half, found = self.model.dtype, set[str]()
        if half in (torch.float16, torch.bfloat16):
            found |= set(self.model._keep_in_fp32_modules_strict or ())
        if half == torch.float16:
            found |= set(self.model._keep_in_fp32_modules or ())
        return found

    @contextmanager
    def at_hand(self, name: str) -> Iterator[nn.Module]:
        """Return the block with its weights; in the end changes are lost, except for shapes."""
        module = self.model.get_submodule(name)
        absent = {
            key: tensor
            for key, tensor in module.state_dict(keep_vars=True).items()
            if tensor.is_meta
        }
        for key, tensor in absent.items():
            found = self.read(f"{name}.{key}")
            if found.shape != tensor.shape:
                raise CheckpointError(other_shape(f"{name}.{key}", found.shape, tensor.shape))
            _put(module, key, found)
        try:
            yield module
        finally:
            for key, now in module.state_dict(keep_vars=True).items():
                if key in absent:
                    like = absent[key]
                    _put(module, key, like if like.shape == now.shape else now.detach().to("meta"))

    @contextmanager
    def passing(self, blocks: Sequence[str], device: torch.device | None = None) -> Iterator[None]:
        """Load each block while it runs, on the device; None: where it is read to."""
        own = {name: self.model.get_submodule(name).forward for name in blocks}

        def coming(name: str) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                with self.at_hand(name) as module:
                    if device is not None:
                        module.to(device)
                    return own[name](*args, **kwargs)

            return forward

        with ExitStack() as stack:
            for name in blocks:
                module = self.model.get_submodule(name)
                module.forward = coming(name)
                stack.callback(module.__dict__.pop, "forward")
            yield

    def fold(self, axes: Axes, order_I: Tensor) -> None:
        """Reorder what is in memory now, and the rest when it is read."""
        order_I = order_I.cpu()
        here = [(n, a) for n, a in axes if not self.model.get_parameter(n).is_meta]
        InMemory(self.model).fold(here, order_I)
        for key in axes:
            order = self._orders.pop(key, torch.arange(len(order_I)))[order_I]
            if not torch.equal(order, torch.arange(len(order))):
                self._orders[key] = order


def note_untied(model: PreTrainedModel) -> None:
    """Make the config say what the files say: a stored head that differs from embeddings stays.

    transformers does not tie tensors that are both stored and differ, whatever the config declares.
    Other programs go by the config.
    """
    declared = model.get_expanded_tied_weights_keys(all_submodels=True)
    if set(declared) - set(model.all_tied_weights_keys):
        for config in {id(x): x for x in (model.config, model.config.get_text_config())}.values():
            if getattr(config, "tie_word_embeddings", None):
                config.tie_word_embeddings = False


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Set the parameter or buffer of that name to ``tensor``."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        if not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor
