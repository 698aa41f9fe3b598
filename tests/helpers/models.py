"""The tiny trained models in ``tests/models``."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = Path(__file__).parent.parent / "models"
FAMILIES = ("bloom", "gemma", "gpt2", "gpt_neox", "llama", "opt", "phi3")
GATED = ("gemma", "llama", "phi3")


def load_tiny(family: str):
    folder = MODELS / family
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )
