"""A pruned model against its dense model, token by token on the same text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import InputError, NumericalError
from .greedy import greedy_prefixes, prompts, to_write
from .perplexity import CHUNK, Agreement, Evaluation, exp, mean_loss, perplexity
from .sanity import worse_than_counts

BEST = 5  # likeliest tokens that are compared


@dataclass
class Beside:
    """Sums over the windows that both models have read.

    Attributes:
        dense: the model that the other one was made from.
        loss: the dense model's mean loss, summed over windows.
        kl: Σ_t KL_t.
        top: tokens at which both models have the same likeliest next token.
        best: Σ_t |A_t ∩ B_t| / 5, of the sets of the five likeliest.
        tokens: predicted tokens so far.
        windows: so far.
    """

    dense: nn.Module
    loss: float = 0.0
    kl: float = 0.0
    top: int = 0
    best: float = 0.0
    tokens: int = 0
    windows: int = 0

    def window(self, ids_BT: Tensor, logits_TV: Tensor) -> None:
        """Run the dense model on a window, and compare it with the other one's logits.

        Raises:
            NumericalError: the dense model puts out NaN or inf.
        """
        dense_TV = self.dense(input_ids=ids_BT, use_cache=False).logits[0]
        loss = mean_loss(dense_TV, ids_BT[0])
        if not loss < float("inf"):
            raise NumericalError(
                f"The dense model puts out NaN or inf in window {self.windows}; compare in a wider "
                "dtype (--dtype float32)."
            )
        pairs = zip(dense_TV[:-1].split(CHUNK), logits_TV[:-1].split(CHUNK), strict=True)
        for dense_CV, pruned_CV in pairs:
            self.kl += float(divergence(dense_CV, pruned_CV).double().sum())
            top, best = agreement(dense_CV, pruned_CV)
            self.top += int(top.sum())
            self.best += float(best.double().sum())
        self.loss += loss
        self.tokens += len(logits_TV) - 1
        self.windows += 1


def divergence(dense_TV: Tensor, pruned_TV: Tensor) -> Tensor:
    """Return KL_t(dense ‖ pruned) = Σ_v P[t, v] (log P[t, v] − log Q[t, v]), in nats, shape (T,).

    P and Q are the softmax of the logits (T, V), in float32. What P rules out adds nothing.
    """
    log_p_TV = dense_TV.float().log_softmax(-1)
    log_q_TV = pruned_TV.float().log_softmax(-1)
    p_TV = log_p_TV.exp()
    return torch.where(p_TV > 0, p_TV * (log_p_TV - log_q_TV), 0.0).sum(-1)


def agreement(dense_TV: Tensor, pruned_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the likeliest tokens are the same, and |A ∩ B| / 5 of the five likeliest, (T,).

    Of a vocabulary below five tokens, all are among the likeliest.
    """
    most = min(BEST, dense_TV.shape[-1])
    first_TK, second_TK = (x.float().topk(most).indices for x in (dense_TV, pruned_TV))
    shared_T = (first_TK[:, :, None] == second_TK[:, None]).any(-1).sum(-1)
    return dense_TV.argmax(-1) == pruned_TV.argmax(-1), shared_T / most


@torch.no_grad()
def score_windows(
    model: nn.Module,
    ids_T: Tensor,
    *,
    dense: nn.Module | None = None,
    name: str = "",
    sound: bool = False,
    **settings: Any,
) -> Evaluation:
    """Score a text as ``perplexity`` does, and compare with the dense model in the same pass.

    Each window goes through one model, then through the other; only its logits are held.

    Args:
        model: as for ``perplexity``.
        ids_T: the whole text.
        dense: the dense model; None: there is none to compare with.
        name: of the dense model.
        sound: whether ``model`` is dense itself, so that its perplexity must make sense.
        **settings: of ``perplexity``.

    Raises:
        InputError: vocabularies of two sizes.
    """
    if dense is None:
        found = perplexity(model, ids_T, **settings)
        return _judged(found, found.perplexity, model, ids_T) if sound else found
    sizes = _vocabulary(model), _vocabulary(dense)
    if sizes[0] != sizes[1]:
        raise InputError(
            f"The model has {sizes[0]} embeddings and {name or 'the dense one'} {sizes[1]}, so "
            "their tokens are not the same. Give the model that it was pruned from."
        )
    sums = Beside(dense)
    found = perplexity(model, ids_T, seen=sums.window, **settings)
    prompts_NP = prompts(ids_T, found.length, found.windows)
    new = to_write(model, prompts_NP.shape[1])
    lengths = greedy_prefixes(model, dense, prompts_NP, new)
    against = Agreement(
        model=name,
        perplexity=exp(sums.loss / sums.windows),
        kl=sums.kl / sums.tokens,
        top_token=sums.top / sums.tokens,
        best_five=sums.best / sums.tokens,
        prefix_mean=fmean(lengths),
        prefix_median=float(median(lengths)),
        prefix_most=new,
        prompts=len(prompts_NP),
        prompt_tokens=prompts_NP.shape[1],
    )
    return _judged(replace(found, against=against), against.perplexity, dense, ids_T)


def _judged(found: Evaluation, value: float, dense: nn.Module, ids_T: Tensor) -> Evaluation:
    """Add a warning if a dense model's perplexity makes no sense."""
    windows_NL = ids_T[: found.windows * found.length].view(-1, found.length)
    return replace(found, warning=worse_than_counts(value, windows_NL, _vocabulary(dense)))


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])
