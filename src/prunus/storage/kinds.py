"""The kind of a checkpoint, found before it is loaded, and the Auto class that loads it.

``config.json`` names the class that was saved (``architectures``). A causal language model, or a
model that also takes images or sound and writes text, is loaded as just that class, even where
transformers maps its ``model_type`` to a text-only one. Everything else is refused with a cure: it
would load as another class, with some weights dropped or made up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto

from ..base.errors import UnsupportedModelError

if TYPE_CHECKING:
    from .checkpoint import Source

CAUSAL = "AutoModelForCausalLM"
AUTO = {  # each with the table of the classes that it makes; the first that fits is taken
    CAUSAL: "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "AutoModelForMultimodalLM": "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
}
MADE_FROM = "Give the causal language model that it was made from."
PART_OF = "Give the causal language model that it is part of."
DECODER = "Prunus prunes causal language models; give one of those."
HEADS = {  # ends of class names
    "ForSequenceClassification": ("its head scores whole texts", MADE_FROM),
    "RewardModel": ("its head puts out rewards", MADE_FROM),
    "ForTokenClassification": ("its head labels tokens", MADE_FROM),
    "ForQuestionAnswering": ("its head marks answers in a text", MADE_FROM),
    "ForMultipleChoice": ("its head chooses between texts", MADE_FROM),
    "ForNextSentencePrediction": ("its head judges pairs of sentences", MADE_FROM),
    "ForMaskedLM": ("it is a masked language model, which reads later tokens too", DECODER),
    "ForPreTraining": ("it has heads for pretraining alone", DECODER),
}
NO_WEIGHTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")


def check(source: Source) -> None:
    """Reject what is no language model that prunus can prune.

    Raises:
        UnsupportedModelError: an adapter, a pipeline, another head, an encoder(-decoder).
    """
    auto_class(source)


def auto_class(source: Source) -> Any:
    """Return the Auto class that loads the checkpoint as the class it was saved from.

    Raises:
        UnsupportedModelError: as ``check``.
    """
    return transformers.AutoModelForCausalLM if source.gguf_file else class_at(source.location)


def class_at(location: str | Path) -> Any:
    """Return that Auto class for a folder or a hub id."""
    return getattr(transformers, auto_name(location))


def auto_name(location: str | Path) -> str:
    """Return the name of that class, for a folder or a hub id.

    Raises:
        UnsupportedModelError: as ``check``.
    """
    _refuse_parts(location)
    config = _read(location, "config.json") or {}
    declared, kind = _strings(config.get("architectures")), str(config.get("model_type"))
    auto, made = _makes(declared, kind)
    if auto is not None:
        if auto != CAUSAL or not declared:
            _refuse_encoder(location, config, made)
        return auto
    for name in declared:
        _refuse_declared(location, name)
    if not declared:
        _refuse_encoder(location, config, kind)
    own = config.get("auto_map")
    return next((auto for auto in AUTO if isinstance(own, Mapping) and auto in own), CAUSAL)


def auto_of(model: PreTrainedModel) -> str:
    """Return the name of the Auto class that makes such a model again."""
    auto, _ = _makes([type(model).__name__], str(model.config.model_type))
    return auto or CAUSAL


def check_model(model: PreTrainedModel) -> None:
    """Reject a model in memory that cannot be pruned as what it is.

    Raises:
        UnsupportedModelError: adapters, no language-model head, an encoder-decoder, no forward.
    """
    name = type(model).__name__
    if getattr(model, "peft_config", None):
        raise UnsupportedModelError(
            f"This {name} has adapters. Merge them first (merge_and_unload() of peft)."
        )
    if model.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language-model head. {PART_OF}")
    if _encodes(model.config):
        raise _encoder_decoder("This model", name)
    if type(model).forward is torch.nn.Module.forward:
        raise UnsupportedModelError(f"{name} has parts that run one by one. {PART_OF}")


def _makes(declared: Sequence[str], kind: str) -> tuple[str | None, str]:
    """Return the Auto class that makes a declared class of this model type, and its name."""
    for auto, table in AUTO.items():
        made = str(_names(table).get(kind, ""))
        if made in declared or (made and not declared):
            return auto, made
    return None, ""


def _refuse_parts(location: str | Path) -> None:
    """Reject an adapter, or a pipeline of several models."""
    adapter = _read(location, "adapter_config.json")
    if adapter is not None:
        base = adapter.get("base_model_name_or_path") or "the model that it was trained on"
        kind = str(adapter.get("peft_type") or "LORA")
        cure = (
            f"Merge it into {base} first (merge_and_unload() of peft, then save_pretrained), and "
            "give the folder of that."
        )
        if kind in NO_WEIGHTS:
            cure = f"It has no weights that could be merged; prune {base}."
        raise UnsupportedModelError(f"{location} holds an adapter ({kind} of {base}). {cure}")
    if _read(location, "model_index.json") is not None:
        raise UnsupportedModelError(
            f"{location} is a pipeline of several models (model_index.json), such as for "
            "diffusion. "
            f"{DECODER}"
        )


def _refuse_declared(location: str | Path, name: str) -> None:
    """Reject a class that neither causal nor multimodal language models have."""
    for end, (what, cure) in HEADS.items():
        if name.endswith(end):
            raise _not_causal(location, name, f": {what}. {cure}")
    for table in ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_SPEECH_SEQ_2_SEQ"):
        if name in _names(f"{table}_MAPPING_NAMES").values():
            raise _encoder_decoder(location, name)
    if name in _flat(_names("MODEL_MAPPING_NAMES").values()):
        what = "a base model without a language-model head"
        if _is_embedder(location):
            what = "an embedding model without a language-model head"
        raise UnsupportedModelError(f"{location} is {what} ({name}). {PART_OF}")
    causal = name.endswith(("ForCausalLM", "LMHeadModel"))  # of a model_type that is not known
    if hasattr(transformers, name) and not causal:
        raise _not_causal(location, name, f". {DECODER}")


def _refuse_encoder(location: str | Path, config: Mapping[str, Any], name: str) -> None:
    """Reject a model whose text passes through an encoder, whatever the Auto class is."""
    try:
        whole = CONFIG_MAPPING[str(config.get("model_type"))].from_dict(dict(config))
    except Exception:  # of any kind: transformers will say what is wrong with it
        return
    if _encodes(whole):
        raise _encoder_decoder(location, name)


def _encodes(config: Any) -> bool:
    """Return whether text passes through an encoder."""
    parts = (getattr(config, part, None) for part in getattr(config, "sub_configs", ()))
    return any(getattr(part, "is_encoder_decoder", False) for part in (config, *parts))


def _not_causal(location: str | Path, name: str, rest: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{location} holds {name}, which is not a causal language model{rest}"
    )


def _encoder_decoder(location: str | Path, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{location} is an encoder-decoder ({name}). {DECODER}")


def _is_embedder(location: str | Path) -> bool:
    """Return whether sentence-transformers wrote it."""
    return _read(location, "config_sentence_transformers.json") is not None


def _read(location: str | Path, name: str) -> dict[str, Any] | None:
    """Read a JSON object beside the weights; None if there is none that can be read."""
    path = Path(location).expanduser() / name
    try:
        if not path.parent.is_dir():
            path = Path(hf_hub_download(str(location), name))
        content = json.loads(path.read_text(encoding="utf-8"))
    except Exception:  # of many kinds, out of reach among them: loading will say what is wrong
        return None
    return content if isinstance(content, dict) else None


def _names(table: str) -> Mapping[str, Any]:
    """Return classes by model type; nothing if this transformers has no such table."""
    return getattr(modeling_auto, table, {})


def _strings(value: Any) -> list[str]:
    return [x for x in value if isinstance(x, str)] if isinstance(value, list) else []


def _flat(values: Iterable[Any]) -> set[str]:
    return {name for value in values for name in ([value] if isinstance(value, str) else value)}
