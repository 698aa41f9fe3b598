"""Does llama.cpp split text as the tokenizer in the folder does? Every kind that prunus writes.

    pip install llama-cpp-python         # builds llama.cpp from source: minutes, a C++ compiler
    python benchmarks/gguf/gguf_tokenizers.py TEXT

Trains a small tokenizer of each kind on TEXT, writes it beside a random Llama as GGUF, and counts
the texts (awkward ones and lines of TEXT) of which both give the same tokens, special tokens read
and added. ``metaspace`` differs on text that begins with a space,
see ``prunus.storage.vocabulary``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from llama_cpp import Llama
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prunus.storage.gguf import write_gguf
from prunus.storage.vocabulary import MERGES_WHOLE_WORDS, PATTERNS

AWKWARD = (
    "",
    "Hello world",
    "The year 1969, 12345 apples;  two  spaces",
    "def f(x):\n    return x+1\n\n\n",
    "Ünïcödé – naïve café 你好 мир 🙂 e\u0301",
    "I'm you're WE'LL don't",
    "\ttabs\tand \n newlines \r\n end  ",
    "a<b>c</b> <s> </s> [INST]",
    "x=3.14159e10; 1 22 333 4444",
    " leading",
    "trailing ",
    "HTTPServer camelCase ABCdef",
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
SIZE = 1200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    lines = parser.parse_args().text.read_text(encoding="utf-8")[:120_000].splitlines()
    texts = [*AWKWARD, *[line for line in lines if len(line) > 200][:40]]
    kinds = {
        "gpt-2": of_bytes(lines, BYTES, False),
        "smollm": of_bytes(lines, pre_tokenizers.Sequence([DIGITS, BYTES]), False),
        **{name: of_bytes(lines, split(name), name in MERGES_WHOLE_WORDS) for name in PATTERNS},
        "prepend": sentencepiece(lines, metaspace=False),
        "metaspace": sentencepiece(lines, metaspace=True),
    }
    print("| kind | same | of |\n|---|---:|---:|")
    for name, backend in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | {same(backend, texts, Path(folder))} | {len(texts)} |", flush=True)


def same(backend: Tokenizer, texts: list[str], folder: Path) -> int:
    """How many of the texts give the same tokens."""
    unknown = {"unk_token": "<unk>"} if backend.token_to_id("<unk>") is not None else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **unknown
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_gguf(folder / "model", folder / "model.gguf")
    other = Llama(str(folder / "model.gguf"), vocab_only=True, verbose=False)
    return sum(
        other.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text).input_ids
        for text in texts
    )


def split(name: str) -> pre_tokenizers.PreTokenizer:
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    return pre_tokenizers.Sequence([words, bytes_alone])


def of_bytes(
    lines: list[str], pre: pre_tokenizers.PreTokenizer, whole_words_first: bool
) -> Tokenizer:
    backend = Tokenizer(models.BPE(ignore_merges=whole_words_first))
    backend.pre_tokenizer, backend.decoder = pre, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(lines, trainer)
    return backend


def sentencepiece(lines: list[str], metaspace: bool) -> Tokenizer:
    """Llama 2's kind: merges over words that begin with ▁, other characters as bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)]]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False)
    trained.train_from_iterator(lines, trainer)
    content = json.loads(trained.to_str())
    content["model"] |= {"byte_fallback": True, "fuse_unk": True}
    content["added_tokens"] = content["added_tokens"][:3]
    backend = Tokenizer.from_str(json.dumps(content))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.pre_tokenizer = None
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return backend


if __name__ == "__main__":
    main()
