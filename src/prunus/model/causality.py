"""The proof that a model is causal: no token's output depends on a later token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.errors import UnsupportedModelError
from .replay import Call


@torch.enable_grad()
def check_causal(name: str, block: nn.Module, call: Call, hidden: Tensor) -> None:
    """Check that the block's output for all tokens but the last does not depend on the last.

    By the gradient, which is exactly zero where nothing depends, in any dtype: the effect of a
    changed token could be smaller than the rounding of half precision.

    Args:
        name: of the block, for the message.
        block: with its weights at hand.
        call: a recorded call of it.
        hidden: the hidden states of that call, (1, T, d).

    Raises:
        UnsupportedModelError: it does depend.
    """
    last = hidden[..., -1:, :].detach().clone().requires_grad_()
    output = call.apart({})(block, torch.cat([hidden[..., :-1, :].detach(), last], -2))
    earlier = output[..., :-1, :]
    if earlier.grad_fn is None:  # a block that mixes no tokens, and has nothing to train
        return
    direction = torch.randn(earlier.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(earlier, last, direction.to(earlier), allow_unused=True)
    if gradient is not None and bool(gradient.any()):
        raise UnsupportedModelError(
            f"{name} lets earlier tokens read the last one, so this is not a causal language model "
            "but a bidirectional one (like BERT, or with a bidirectional prefix). Prunus prunes "
            "causal language models; give one of those."
        )
