"""Chats as text: the spellings that data sets have for them, and the tokenizer's template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .bos import adds_bos

Message = dict[str, Any]

KEYS = (("role", "content"), ("from", "value"))  # OpenAI's and ShareGPT's
ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
}
TURNS = ("user", "assistant")


def messages_of(value: Any) -> list[Message] | None:
    """Return the messages of a chat, each with role and content; None if it is no chat.

    Known are OpenAI's ``role`` and ``content``, ShareGPT's ``from`` and ``value``, pairs of
    ``input`` and ``output``, UltraChat's list of strings (the user speaks first), the same as a
    mapping of lists, and any of them as a string of JSON.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, Mapping):
        value = _turned(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        return None
    if all(isinstance(turn, str) for turn in value):
        return [{"role": TURNS[i % 2], "content": turn} for i, turn in enumerate(value)]
    if not all(isinstance(turn, Mapping) for turn in value):
        return None
    if all("input" in turn and "output" in turn for turn in value):
        pairs = ((turn["input"], turn["output"]) for turn in value)
        return [
            {"role": r, "content": c} for pair in pairs for r, c in zip(TURNS, pair, strict=True)
        ]
    for role, content in KEYS:
        if all(role in turn for turn in value) and any(content in turn for turn in value):
            return [_message(turn, role, content) for turn in value]
    return None


def is_blank(messages: Sequence[Message]) -> bool:
    """Return whether all messages are empty."""
    return not any(str(message["content"]).strip() for message in messages)


def chat_text(messages: Sequence[Message], tokenizer: Any) -> tuple[str, bool]:
    """Return a chat as one text, and whether the tokenizer's template refused it.

    Through the chat template where there is one. A beginning-of-text token that the template writes
    is left out where the tokenizer adds its own, so that no document has two. Without a template,
    and where it refuses these messages (two turns of the same speaker, a role that it does not
    know), the contents stand below each other, a blank line between them.
    """
    plain = "\n\n".join(text for m in messages if (text := str(m["content"])).strip())
    if not getattr(tokenizer, "chat_template", None):
        return plain, False
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False)
    except Exception:  # templates are programs: whatever they raise, they do not take this chat
        return plain, True
    if adds_bos(tokenizer):
        text = text.removeprefix(tokenizer.bos_token)
    return text, False


def _turned(value: Mapping[str, Any]) -> Any:
    """Turn a mapping of lists, as ``datasets`` stores it, into a list of mappings."""
    for role, content in KEYS:
        names, texts = value.get(role), value.get(content)
        if isinstance(names, list) and isinstance(texts, list) and len(names) == len(texts):
            return [{role: n, content: t} for n, t in zip(names, texts, strict=True)]
    return None


def _message(turn: Mapping[str, Any], role: str, content: str) -> Message:
    """Drop keys that hold nothing: parquet adds them to every message, and templates read them."""
    name = str(turn[role])
    others = {k: v for k, v in turn.items() if k not in (role, content) and v is not None}
    said = {"role": ROLES.get(name.lower(), name.lower()), "content": _said(turn.get(content))}
    return {**others, **said}


def _said(content: Any) -> str:
    """Return the text of a message, or of its text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        return "".join(text for text in texts if isinstance(text, str))
    return json.dumps(content, ensure_ascii=False)
