"""A tokenizer as ``tokenizer.*`` keys of a GGUF.

llama.cpp knows two kinds of BPE: of bytes ("gpt2": GPT-2, SmolLM2, Llama 3), split by a pattern
that it knows by name, and SentencePiece's ("llama": Llama 2, Mistral), which merges the pair of
highest score. Whether text gets a bos or eos is taken from what the tokenizer does, not from what
its files say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.errors import CheckpointError
from .checkpoint import find, load_tokenizer
from .gguf_parts import parts

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
SPLIT = {**BYTES, "use_regex": False}
WORDS = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BLANK = r"\s*[\r\n]+|\s+(?!\S)|\s+"
OTHER = r" ?[^\s\p{L}\p{N}]+"
PATTERNS = {  # regular expressions before the bytes, by llama.cpp's name
    "llama-bpe": rf"{SHORT}|{WORDS}\p{{L}}+|\p{{N}}{{1,3}}|{OTHER}[\r\n]*|{BLANK}",
    "qwen2": rf"{SHORT}|{WORDS}\p{{L}}+|\p{{N}}|{OTHER}[\r\n]*|{BLANK}",
    "tekken": (
        rf"{WORDS}[{UPPER}]*[{LOWER}]+|{WORDS}[{UPPER}]+[{LOWER}]*|\p{{N}}|{OTHER}[\r\n/]*|{BLANK}"
    ),
}
PRE_TOKENIZERS: dict[str, list[Mapping[str, Any]]] = {
    "gpt-2": [BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTES],
    **{
        name: [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}, SPLIT]
        for name, regex in PATTERNS.items()
    },
}
MERGES_WHOLE_WORDS = {"llama-bpe", "tekken"}  # llama.cpp looks a whole word up first in these
CURE = "Take the tokenizer of a GGUF of the same model with --tokenizer FILE.gguf."


def add_vocabulary(writer: Any, source: str | Path, tokens: int) -> None:
    """Write the tokenizer of a folder, or copy that of a GGUF.

    Args:
        writer: a ``gguf.GGUFWriter``.
        source: a folder with a tokenizer, or a GGUF file.
        tokens: rows of the embedding; rows without a token get a name that no text gives.

    Raises:
        CheckpointError: no tokenizer, one that llama.cpp does not have, or of more tokens.
    """
    found = find(source) if Path(source).suffix == ".gguf" else None
    if found is not None and found.gguf_file:
        _copy(writer, Path(found.location) / found.gguf_file, tokens)
        return
    tokenizer = load_tokenizer(source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(f"The tokenizer of {source} has no tokenizer.json. {CURE}")
    content = json.loads(backend.to_str())
    model = content["model"]
    names, kinds = _tokens(tokenizer, tokens, source)
    if model["type"] == "BPE" and model.get("byte_fallback"):
        _add_sentencepiece(writer, content, names, kinds, source)
    elif model["type"] == "BPE":
        _add_bytes(writer, content, names, kinds, source)
    else:
        raise CheckpointError(
            f"The tokenizer of {source} is of kind {model['type']}; llama.cpp's Llama reads BPE. "
            f"{CURE}"
        )
    _add_special(writer, tokenizer)


def _tokens(tokenizer: Any, rows: int, source: str | Path) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(by_id) >= rows:
        raise CheckpointError(
            f"The tokenizer of {source} has {max(by_id) + 1} tokens, but the embedding has {rows} "
            "rows: they belong to different models."
        )
    added = tokenizer.added_tokens_decoder
    names, kinds = [], []
    for number in range(rows):
        kind = TokenType.NORMAL if number in by_id else TokenType.UNUSED
        if number in added:
            kind = TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED
        names.append(by_id.get(number, f"[PAD{number}]"))
        kinds.append(int(kind))
    return names, kinds


def _add_bytes(
    writer: Any, content: Any, names: list[str], kinds: list[int], source: str | Path
) -> None:
    pre = _pre_tokenizer(content)
    model = content["model"]
    if pre is None or content["normalizer"] is not None:
        said = content["normalizer"] or content["pre_tokenizer"]
        raise CheckpointError(
            f"The tokenizer of {source} prepares text in a way that llama.cpp has no name for "
            f"here ({json.dumps(said)[:160]}). {CURE}"
        )
    if bool(model.get("ignore_merges")) != (pre in MERGES_WHOLE_WORDS):
        raise CheckpointError(
            f"The tokenizer of {source} has ignore_merges={bool(model.get('ignore_merges'))}, "
            f"llama.cpp's {pre} the opposite. {CURE}"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([_merge(pair) for pair in model["merges"]])
    writer.add_add_space_prefix(False)


def _pre_tokenizer(content: Any) -> str | None:
    """Return llama.cpp's name for how the text is split."""
    found = content["pre_tokenizer"] or {}
    steps = found.get("pretokenizers", [found])
    for name, wanted in PRE_TOKENIZERS.items():
        if len(steps) == len(wanted) and all(
            step.get(key) == value
            for step, expected in zip(steps, wanted, strict=True)
            for key, value in expected.items()
        ):
            return name
    return None


def _merge(pair: Any) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _add_sentencepiece(
    writer: Any, content: Any, names: list[str], kinds: list[int], source: str | Path
) -> None:
    """Score a token by minus the rank of the first merge that makes it.

    Where a Metaspace step adds the leading ▁, llama.cpp differs in two places: text that begins
    with a space gets a second one, and so does text after a special token.
    """
    from gguf import TokenType

    steps = [content["normalizer"] or {}, content["pre_tokenizer"] or {}]
    parts = [p for s in steps for p in s.get("normalizers", s.get("pretokenizers", [s])) if p]
    known = {"Prepend": "▁", "Replace": "▁", "Metaspace": "▁"}
    for part in parts:
        mark = part.get("prepend") or part.get("content") or part.get("replacement")
        if known.get(part["type"]) != mark:
            raise CheckpointError(
                f"The tokenizer of {source} prepares text by {json.dumps(part)[:120]}, which "
                f"llama.cpp's SentencePiece does not. {CURE}"
            )
    prefixed = any(
        part["type"] == "Prepend" or part.get("prepend_scheme") in ("first", "always")
        for part in parts
    )
    model = content["model"]
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault(_merge(pair).replace(" ", ""), rank)
    for number, name in enumerate(names):
        if name == model.get("unk_token"):
            kinds[number] = int(TokenType.UNKNOWN)
        elif len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            kinds[number] = int(TokenType.BYTE)
    last = len(ranks)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores([-float(ranks.get(name, last)) for name in names])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(prefixed)


def _add_special(writer: Any, tokenizer: Any) -> None:
    """Write ids of the special tokens, whether text gets them, and the chat template."""
    for kind in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is not None:
            getattr(writer, f"add_{kind}_token_id")(number)
    ids = tokenizer("a").input_ids
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    writer.add_add_bos_token(bos is not None and ids[0] == bos)
    writer.add_add_eos_token(eos is not None and len(ids) > 1 and ids[-1] == eos)
    if tokenizer.chat_template is not None:
        template = tokenizer.chat_template
        named = isinstance(template, Mapping)
        writer.add_chat_template(
            [{"name": k, "template": v} for k, v in template.items()] if named else template
        )


def _copy(writer: Any, path: Path, tokens: int) -> None:
    """Copy every ``tokenizer.*`` key of a GGUF."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(parts(path)[0]).fields
        content = {name: field for name, field in fields.items() if name.startswith("tokenizer.")}
        count = len(content["tokenizer.ggml.tokens"].data)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} has no tokenizer that can be read: {error}.") from None
    if count != tokens:
        raise CheckpointError(
            f"The tokenizer of {path} has {count} tokens, but the embedding has {tokens} rows: "
            "they belong to different models."
        )
    for name, field in content.items():
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
