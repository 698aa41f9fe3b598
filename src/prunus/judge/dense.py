"""The dense model beside a pruned one: in memory as far as it fits, the rest block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..base.device import Dtype
from ..base.memory import available_on
from ..model.blocks import find_blocks
from ..runtime.packed_model import load_to_run
from ..storage.checkpoint import find, folder_of, load_weights
from ..storage.packed import is_packed
from ..storage.sizes import loaded_bytes
from ..storage.streamed import Streamed
from ..storage.widths import read_widths

SHARE = 0.7  # of what is free may be weights; the rest is for activations and logits


@contextmanager
def dense_model(
    model: str | Path,
    device: torch.device,
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Iterator[PreTrainedModel]:
    """Load a model to run beside another one; in the end its weights are gone.

    Where it does not fit on the device, as many blocks as fit stay there, and each of the others is
    read from its file whenever it runs, a whole forward at a time: nothing is stored between, and
    the logits are the same.

    Args:
        model: a folder, hub id or GGUF; a GGUF, a packed checkpoint and blocks of different widths
            are read as a whole.
        device: where it runs.
        dtype: of its weights.
        trust_remote_code: run code that the checkpoint brings.
        say: told if it does not fit.
    """
    source, room = find(model, packed=True), int(SHARE * available_on(device))
    folder = folder_of(model)
    whole = not source.is_folder or is_packed(folder) or read_widths(source.location) is not None
    if whole or loaded_bytes(source, dtype) <= room:
        yield load_to_run(model, dtype, trust_remote_code).to(device)  # type: ignore[arg-type]
        return
    weights = load_weights(model, dtype=dtype, trust_remote_code=trust_remote_code, stream=True)
    assert isinstance(weights, Streamed)
    with ExitStack() as stack:
        kept, total = _hold(weights, device, room, stack)
        say(
            f"{model} does not fit beside it: {total - kept} of {total} blocks are read as they run"
        )
        yield weights.model


def _hold(weights: Streamed, device: torch.device, room: int, stack: ExitStack) -> tuple[int, int]:
    """Load what fits for as long as the stack is open, and the other blocks as they run.

    Returns:
        How many blocks stay, and how many there are.
    """
    blocks = find_blocks(weights.model)
    outside = [*weights.model.parameters(), *weights.model.buffers()]
    for tensor in outside:
        if not tensor.is_meta:
            tensor.data = tensor.data.to(device)
            room -= tensor.numel() * tensor.itemsize
    sizes = {n: sum(p.numel() * p.itemsize for p in b.parameters()) for n, b in blocks.items()}
    room -= max(sizes.values())  # for the one that runs
    coming = list(blocks)
    while coming and sizes[coming[0]] <= room:
        room -= sizes[coming[0]]
        stack.enter_context(weights.at_hand(coming.pop(0))).to(device)
    stack.enter_context(weights.passing(coming, device))
    return len(blocks) - len(coming), len(blocks)
