"""The model's own answers to prompts, as calibration text that looks like its use.

Each prompt goes through the tokenizer's chat template, and the dense model answers. A sample is one
conversation, as long as it is: the prompt's tokens, then those of the answer. Prompts are answered
one by one, each with random numbers of its own, so that an answer does not depend on the others.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ..base.errors import CalibrationError
from .chats import Message
from .prompts import Prompts
from .self_generated import own_generation_config


@dataclass(frozen=True)
class Asked:
    """A prompt as the model reads it.

    Attributes:
        messages: of the prompt.
        ids: through the chat template, up to where the answer begins.
    """

    messages: list[Message]
    ids: list[int]


@dataclass(frozen=True)
class Answer:
    """What the model wrote.

    Attributes:
        ids: the token that ended it included.
        ended: whether it came to an end by itself.
        seconds: that it took.
    """

    ids: list[int]
    ended: bool
    seconds: float


@dataclass(frozen=True)
class Questioning:
    """Prompts that are to be answered.

    Attributes:
        asked: in the order in which they are drawn.
        longer: how many were left out because they leave no room for an answer.
        refused: how many the chat template does not take.
        sha256: of the prompts' token ids.
    """

    asked: list[Asked]
    longer: int
    refused: int

    @property
    def sha256(self) -> str:
        """Hash the prompts' token ids."""
        return hash_of(asked.ids for asked in self.asked)


def check_template(tokenizer: Any) -> None:
    """Raise CalibrationError if prompts cannot be put to the model."""
    if not getattr(tokenizer, "chat_template", None):
        raise CalibrationError(
            "--answers puts prompts through the tokenizer's chat template, and this tokenizer has "
            "none. Use a model that was trained on chats, put its chat_template.jinja beside the "
            "tokenizer, or leave --answers out."
        )


def asked_of(
    prompts: Prompts, tokenizer: Any, *, samples: int, longest: int, seed: int
) -> Questioning:
    """Draw prompts without replacement, and put them through the chat template.

    Args:
        prompts: fewer than ``samples`` are all used, each once.
        tokenizer: with a chat template.
        samples: how many are wanted.
        longest: tokens that a prompt has at most; longer ones are left out, never cut.
        seed: of the draw.

    Raises:
        CalibrationError: none can be used.
    """
    order = list(range(len(prompts.chats)))
    random.Random(seed).shuffle(order)
    asked: list[Asked] = []
    longer = refused = 0
    why = ""
    for index in order:
        messages = prompts.chats[index]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs: whatever they raise is a refusal
            refused, why = refused + 1, f" (the chat template: {error})"
            continue
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if len(ids) > longest:
            longer += 1
            continue
        asked.append(Asked(messages, list(ids)))
        if len(asked) == samples:
            break
    if not asked:
        raise CalibrationError(
            f"{prompts.name} has no prompt that can be answered: {longer} have more than {longest} "
            f"tokens, and {refused} are refused{why}. Give other prompts, or a greater --length."
        )
    return Questioning(asked, longer, refused)


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: Any,
    asked: Asked,
    *,
    most: int,
    temperature: float,
    top_p: float,
    seed: int,
    number: int,
) -> list[int]:
    """Return the token ids of the dense model's answer, with the token that ends it.

    The global random state is left as it was.

    Args:
        model: whole, in eval mode.
        tokenizer: of the model.
        asked: the prompt.
        most: tokens of an answer.
        temperature: of the sampling; 0: the likeliest token each time.
        top_p: sample from the likeliest tokens with this probability in all.
        seed: of the run.
        number: of the prompt; both together seed its random numbers.
    """
    ids_BT = torch.tensor([asked.ids], device=model.device)
    ends = ends_of(model, tokenizer)
    sampled = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    config = GenerationConfig(
        do_sample=temperature > 0,
        max_new_tokens=most,
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id if not ends else ends[0],
        **sampled,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), own_generation_config(model):
        torch.manual_seed(_seed_of(seed, number))
        written_BT = model.generate(  # type: ignore[operator]
            ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=config
        )
    written: list[int] = written_BT[0, len(asked.ids) :].tolist()
    return written


def ends_of(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and those that the model names."""
    named = getattr(model.generation_config, "eos_token_id", None)
    own = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return sorted({int(token) for token in own if token is not None})


def chat_line(asked: Asked, answer: Answer, tokenizer: Any) -> str:
    """Return the conversation as a line of JSON, in OpenAI's spelling."""
    said = tokenizer.decode(answer.ids, skip_special_tokens=True)
    messages = [*asked.messages, {"role": "assistant", "content": said}]
    tokens = {"prompt_tokens": len(asked.ids), "answer_tokens": len(answer.ids)}
    return json.dumps({"messages": messages, **tokens}, ensure_ascii=False)


def hash_of(samples: Iterable[Sequence[int]]) -> str:
    """Compute the SHA-256 of token ids of different lengths, each behind its length."""
    found = hashlib.sha256()
    for ids in samples:
        found.update(torch.tensor([len(ids), *ids]).numpy().astype("<i8").tobytes())
    return found.hexdigest()


def token_weights(answered: Sequence[Tensor], share: float) -> tuple[Tensor, ...]:
    """Weigh tokens so that those of answers have this share of all weight.

    ``w = share · T / T_a`` for each of the ``T_a`` tokens of answers, and
    ``w = (1 − share) · T / T_p`` for each of the ``T_p`` others, with ``T = T_a + T_p``: the sum of
    all weights is the number of tokens.

    Args:
        answered: of each sample, which of its tokens are the answer's (T,).
        share: above 0, at most 1.
    """
    total = sum(len(own_T) for own_T in answered)
    answers = sum(int(own_T.sum()) for own_T in answered)
    high = share * total / max(answers, 1)
    low = (1 - share) * total / max(total - answers, 1)
    return tuple(torch.where(own_T, high, low).float() for own_T in answered)


def _seed_of(seed: int, number: int) -> int:
    """Return 63 bits that differ for each prompt of each run."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
