"""What a checkpoint is: loaded as just that, or refused with a cure before any work."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PaliGemmaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import prunus
from prunus.base.errors import UnsupportedModelError
from prunus.model.blocks import find_blocks
from prunus.model.causality import check_causal
from prunus.model.replay import trace
from prunus.storage.checkpoint import find, load_model, load_tokenizer
from prunus.storage.kinds import auto_class, class_at

SMALL = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4}  # fmt: skip
HEADS = {
    ("LlamaForSequenceClassification", "llama"): "scores whole texts. Give the causal",
    ("Qwen2ForRewardModel", "qwen2"): "puts out rewards. Give the causal",
    ("Qwen2ForTokenClassification", "qwen2"): "labels tokens. Give the causal",
    ("BertForMaskedLM", "bert"): "masked language model",
    ("XLMRobertaForMaskedLM", "xlm-roberta"): "masked language model",
    ("BertForPreTraining", "bert"): "heads for pretraining",
    ("T5ForConditionalGeneration", "t5"): "an encoder-decoder",
    ("BartForConditionalGeneration", "bart"): "an encoder-decoder",
    ("WhisperForConditionalGeneration", "whisper"): "an encoder-decoder",
    ("Florence2ForConditionalGeneration", "florence2"): "an encoder-decoder",
    ("LlamaModel", "llama"): "a base model without a language-model head.* that it is part of",
    ("BertModel", "bert"): "a base model without a language-model head",
    ("ViTForImageClassification", "vit"): "ViTForImageClassification, which is not a causal",
    (None, "bart"): "an encoder-decoder",
    (None, "t5"): "an encoder-decoder",
}


def folder(path, name, content):
    path.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(content))
    return path


def config(path, architecture, kind, **more):
    declared = {} if architecture is None else {"architectures": [architecture]}
    return folder(path, "config.json", {"model_type": kind, **declared, **more})


@pytest.mark.parametrize(("kind", "said"), HEADS.items(), ids=lambda kind: str(kind)[:40])
def test_no_causal_language_model_is_refused_before_any_work(kind, said, tmp_path):
    path = config(tmp_path / "m", *kind)  # no weights, no tokenizer: it is not asked for them
    for look in (find, load_model, load_tokenizer):
        with pytest.raises(UnsupportedModelError, match=said):
            look(path)
    with pytest.raises(UnsupportedModelError, match=said):
        prunus.prune(path, method="wanda", output=tmp_path / "out")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_to_be_merged_into_its_base(whole, tmp_path):
    if whole:
        config(tmp_path, "LlamaForCausalLM", "llama")
    content = {"peft_type": "LORA", "base_model_name_or_path": "org/base-7b"}
    folder(tmp_path, "adapter_config.json", content)
    with pytest.raises(UnsupportedModelError, match="Merge it into org/base-7b first"):
        load_model(tmp_path)
    folder(tmp_path, "adapter_config.json", content | {"peft_type": "PREFIX_TUNING"})
    with pytest.raises(UnsupportedModelError, match=r"no weights that could be merged; prune org"):
        load_model(tmp_path)


def test_pipelines_and_embedding_models_say_what_they_are(tmp_path):
    with pytest.raises(UnsupportedModelError, match="pipeline of several models"):
        load_model(folder(tmp_path / "a", "model_index.json", {"unet": []}))
    path = config(tmp_path / "b", "Qwen3Model", "qwen3")
    folder(path, "config_sentence_transformers.json", {})
    with pytest.raises(UnsupportedModelError, match="an embedding model"):
        load_model(path)


AUTO = {
    ("LlamaForCausalLM", "llama"): "CausalLM",
    ("LLaMAForCausalLM", "llama"): "CausalLM",  # as the first Llama checkpoints spell it
    ("BartForCausalLM", "bart"): "CausalLM",  # its decoder alone
    ("Qwen3_5ForConditionalGeneration", "qwen3_5"): "ImageTextToText",
    ("Qwen3_5ForCausalLM", "qwen3_5"): "CausalLM",
    ("Qwen3_5ForCausalLM", "qwen3_5_text"): "CausalLM",
    ("Llama4ForConditionalGeneration", "llama4"): "ImageTextToText",
    ("Gemma3ForConditionalGeneration", "gemma3"): "CausalLM",  # which makes that class of it
    ("LlavaForConditionalGeneration", "llava"): "ImageTextToText",
    ("Qwen2AudioForConditionalGeneration", "qwen2_audio"): "MultimodalLM",
    (None, "llama"): "CausalLM",
    (None, "llava"): "ImageTextToText",
    (None, "qwen3_5"): "CausalLM",  # as transformers decides
}


@pytest.mark.parametrize(("kind", "auto"), AUTO.items(), ids=lambda kind: str(kind)[:40])
def test_the_auto_class_is_that_of_the_declared_class(kind, auto, tmp_path):
    assert class_at(config(tmp_path, *kind)).__name__ == f"AutoModelFor{auto}"


def test_code_that_a_checkpoint_brings_says_which_auto_class_it_is_for(tmp_path):
    own = {"AutoModel": "own.Own", "AutoModelForCausalLM": "own.Own"}
    path = config(tmp_path / "a", "ChatGLMModel", "chatglm", auto_map=own)
    assert class_at(path) is AutoModelForCausalLM
    own = {"AutoModelForImageTextToText": "own.Own"}
    path = config(tmp_path / "b", "OwnForVision", "own", auto_map=own)
    assert class_at(path) is AutoModelForImageTextToText


def test_a_config_that_cannot_be_read_is_left_to_transformers(tmp_path):
    for content in ("{", "[]", '{"architectures": 3}'):
        (tmp_path / "config.json").write_text(content)
        assert class_at(tmp_path) is AutoModelForCausalLM


def test_a_gguf_is_a_causal_language_model(smollm2):
    assert auto_class(find(smollm2)) is AutoModelForCausalLM


def test_a_model_in_memory_is_refused_by_what_it_is():
    tiny = {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    with pytest.raises(UnsupportedModelError, match="an encoder-decoder"):
        prunus.prune(T5ForConditionalGeneration(T5Config(**tiny, num_heads=4)), method="magnitude")
    config = LlamaConfig(**SMALL, num_labels=1)
    with pytest.raises(UnsupportedModelError, match="no language-model head"):
        prunus.prune(LlamaForSequenceClassification(config), method="magnitude")
    model = LlamaForCausalLM(config)
    model.peft_config = {"default": object()}  # as peft leaves it
    with pytest.raises(UnsupportedModelError, match="Merge them first"):
        prunus.prune(model, method="magnitude")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [BertLMHeadModel, BertForMaskedLM])
def test_a_bidirectional_model_is_refused(kind, dtype):
    model = kind(BertConfig(**SMALL)).eval().to(dtype)
    with pytest.raises(UnsupportedModelError, match="earlier tokens read the last one"):
        prunus.prune(model, method="magnitude")
    decoder = BertLMHeadModel(BertConfig(**SMALL, is_decoder=True)).eval().to(dtype)
    assert prunus.prune(decoder, method="magnitude").report.sparsity == 0.5


@torch.no_grad()
def test_the_proof_agrees_with_changing_a_token():
    """A causal mask, none, and one that leaves a prefix open."""
    ids_BT = torch.arange(3, 23)[None]
    other_BT = ids_BT.clone()
    other_BT[0, -1] = 99
    for open_prefix, causal in ((0, True), (20, False), (12, True)):
        model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
        mask = torch.full((20, 20), -torch.inf).triu(1)
        mask[:open_prefix, :open_prefix] = 0
        inputs = {"attention_mask": mask[None, None]}
        logits, changed = (model(input_ids=x, **inputs).logits for x in (ids_BT, other_BT))
        assert torch.equal(logits[:, :-1], changed[:, :-1]) is causal
        blocks = find_blocks(model)
        traced = trace(model, blocks, {"input_ids": ids_BT, **inputs})
        for index, (name, block) in enumerate(blocks.items()):
            look = (name, block, traced.calls[index], traced.inputs[index])
            if causal:
                check_causal(*look)
            else:
                with pytest.raises(UnsupportedModelError, match=f"^{name} lets earlier"):
                    check_causal(*look)


def test_a_prefix_that_reads_itself_is_not_causal():
    text = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "model_type": "gemma"}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
              "projection_dim": 32}  # fmt: skip
    config = PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=32,
                             image_token_index=100, hidden_size=32)  # fmt: skip
    model = AutoModelForImageTextToText.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="bidirectional prefix"):
        prunus.prune(model, method="magnitude")
