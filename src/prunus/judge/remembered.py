"""What the dense model made of a text, kept while many models are compared with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..base.memory import available_memory


class Remembered:
    """States behind the last block, of windows that a model has read: bytes T · d · itemsize each.

    Later readings of the same window start from them, so that only the head runs; logits are the
    same bits. Several rows at once are not remembered: those are texts that the other model wrote.
    Windows that come when the room is used up are read anew each time.

    Args:
        room: bytes of memory for the states; None: a quarter of what is free.
    """

    def __init__(self, room: int | None = None) -> None:
        self._room = available_memory() // 4 if room is None else room
        self._states: dict[bytes, tuple[type[Any], Tensor]] = {}

    @contextmanager
    def of(self, model: PreTrainedModel) -> Iterator[None]:
        """Have the model remember. One whose head and blocks are not apart just runs."""
        body: Any = model.base_model
        if body is model:
            yield
            return
        forward, named = body.forward, signature(body.forward)

        def remembering(*args: Any, **kwargs: Any) -> Any:
            inputs = named.bind(*args, **kwargs).arguments
            ids_BT = inputs.get("input_ids")
            if ids_BT is None or len(ids_BT) > 1 or inputs.get("use_cache"):
                return forward(*args, **kwargs)
            known = self._states.get(window := ids_BT.cpu().numpy().tobytes())
            if known is not None:
                return known[0](last_hidden_state=known[1].to(ids_BT.device))
            out = forward(*args, **kwargs)
            states_BTD = getattr(out, "last_hidden_state", None)
            if states_BTD is not None and states_BTD.nbytes <= self._room:
                self._room -= states_BTD.nbytes
                self._states[window] = type(out), states_BTD.cpu()
            return out

        body.forward = remembering
        try:
            yield
        finally:
            del body.forward
