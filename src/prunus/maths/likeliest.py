"""The likeliest next tokens of a dense model, and how far another model is from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 256  # tokens whose logits are widened at once
LIKELIEST = 512  # tokens that are told apart
LEAST = 1e-6  # probability of all other tokens together, at least: their log is finite


@dataclass(frozen=True)
class Likeliest:
    """The dense model's distribution at T tokens, as its K likeliest and all others together.

    Attributes:
        ids_TK: the likeliest tokens, int32.
        log_p_TK: log-probabilities among the whole vocabulary, float32.
    """

    ids_TK: Tensor
    log_p_TK: Tensor

    @classmethod
    def of(cls, logits_TV: Tensor, k: int = LIKELIEST) -> Likeliest:
        """Take them from logits; of a vocabulary below k, all."""
        ids, logs = [], []
        for logits_CV in logits_TV.split(CHUNK):
            best_CK, ids_CK = logits_CV.float().topk(min(k, logits_CV.shape[-1]))
            ids.append(ids_CK.int())
            logs.append(best_CK - logits_CV.float().logsumexp(-1, keepdim=True))
        return cls(torch.cat(ids), torch.cat(logs))

    def divergence(self, logits_TV: Tensor) -> float:
        """Return Σ_t Σ_k p log(p / q), with all other tokens as one more k, in nats.

        This is the Kullback-Leibler divergence KL(dense ‖ other) after tokens are merged, so it is
        no larger than that of the whole vocabulary, and close to it where the K likeliest hold
        nearly all of p. (EvoPress instead normalises p and q among the K.)
        """
        total = 0.0
        for at, logits_CV in enumerate(logits_TV.split(CHUNK)):
            here = slice(at * CHUNK, at * CHUNK + len(logits_CV))
            log_p_CK, ids_CK = self.log_p_TK[here], self.ids_TK[here].long()
            logits_CV = logits_CV.float()
            log_q_CK = logits_CV.gather(-1, ids_CK) - logits_CV.logsumexp(-1, keepdim=True)
            rest_p_C, rest_q_C = _rest(log_p_CK), _rest(log_q_CK)
            loss_C = (log_p_CK.exp() * (log_p_CK - log_q_CK)).sum(-1)
            loss_C += rest_p_C * (rest_p_C / rest_q_C).log()
            total += float(loss_C.sum(dtype=torch.float64))
        return total


def _rest(log_p_CK: Tensor) -> Tensor:
    return (1 - log_p_CK.exp().sum(-1)).clamp_min(LEAST)
