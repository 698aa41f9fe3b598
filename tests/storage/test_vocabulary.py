"""Tokenizers as llama.cpp reads them from a GGUF."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.gguf_files import LLAMA, SMALL, UNEVEN, cut, read, saved
from prunus.base.errors import InputError
from prunus.storage.gguf import write_gguf


def tokenizer(folder, model, normalizer=None, pre=None, decoder=None):
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = normalizer, pre
    backend.decoder = decoder or decoders.ByteLevel()
    known = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    known.chat_template = "{{ messages }}"
    known.save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)


def test_sentencepiece_scores_are_ranks_of_merges(tmp_path):
    words = ["<unk>", "<0x41>", "▁", "a", "b", "▁a", "ab", "▁ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b"), ("▁", "ab")]
    bpe = models.BPE({w: i for i, w in enumerate(words)}, merges, byte_fallback=True)
    bpe.unk_token = "<unk>"
    steps = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer(tmp_path / "t", bpe, steps)
    saved(tmp_path / "m", LlamaConfig(**{**SMALL, "vocab_size": 10}))
    made = write_gguf(tmp_path / "m", tmp_path / "m.gguf", tokenizer=tmp_path / "t")
    keys = read(made.output)[0]
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.tokens"] == [*words, "[PAD8]", "[PAD9]"]
    assert keys["tokenizer.ggml.token_type"] == [2, 6, 1, 1, 1, 1, 1, 1, 5, 5]
    assert keys["tokenizer.ggml.scores"][5:8] == [0.0, -1.0, -2.0]
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert keys["tokenizer.chat_template"] == "{{ messages }}"


def test_byte_pre_tokenizers_have_llama_cpps_names(tmp_path):
    saved(tmp_path / "m", LlamaConfig(**SMALL))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    for name, pre in (("gpt-2", plain), ("smollm", digits)):
        tokenizer(tmp_path / name, models.BPE({"a": 0, "<unk>": 1}, []), pre=pre)
        file = tmp_path / f"{name}.gguf"
        write_gguf(tmp_path / "m", file, tokenizer=tmp_path / name)
        assert read(file)[0]["tokenizer.ggml.pre"] == name
        assert read(file)[0]["tokenizer.ggml.add_bos_token"] is False
    for number, (pre, normalizer) in enumerate(
        [(pre_tokenizers.ByteLevel(), None), (None, None), (plain, normalizers.NFC())]
    ):
        other = tmp_path / f"other{number}"
        tokenizer(other, models.BPE({"a": 0, "<unk>": 1}, []), normalizer, pre)
        with pytest.raises(InputError, match=r"no name for here .* --tokenizer"):
            write_gguf(tmp_path / "m", tmp_path / "no.gguf", tokenizer=other)
    tokenizer(tmp_path / "w", models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))
    with pytest.raises(InputError, match="of kind WordLevel"):
        write_gguf(tmp_path / "m", tmp_path / "no.gguf", tokenizer=tmp_path / "w")


def test_the_tokenizer_of_another_gguf(tmp_path):
    write_gguf(LLAMA, tmp_path / "a.gguf")
    cut(tmp_path / "m", UNEVEN)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "m" / file).unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        write_gguf(tmp_path / "m", tmp_path / "b.gguf")
    write_gguf(tmp_path / "m", tmp_path / "b.gguf", tokenizer=tmp_path / "a.gguf")
    a, b = (
        {k: v for k, v in read(tmp_path / f"{x}.gguf")[0].items() if k.startswith("tokenizer.")}
        for x in "ab"
    )
    assert a == b
    assert len(a) > 7
    saved(tmp_path / "c", LlamaConfig(**{**SMALL, "vocab_size": 600}))
    with pytest.raises(InputError, match="has 512 tokens, but the embedding has 600 rows"):
        write_gguf(tmp_path / "c", tmp_path / "c.gguf", tokenizer=tmp_path / "a.gguf")
