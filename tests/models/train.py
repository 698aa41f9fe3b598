"""Train the tiny language models that the tests prune.

Run ``python tests/models/train.py`` to train every family, or name some of them::

    python tests/models/train.py llama opt

Random weights are no use for testing pruning: with them every method does equally badly.
These models are small enough to commit, yet they have learnt something, so that a test can
ask the questions that matter (does perplexity survive 50 % sparsity, is one method better
than another). They use the stock classes of ``transformers`` and the prose of Python's own
documentation, so that making them needs no download.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from prunus.text import read_documents

HERE = Path(__file__).resolve().parent

SEED = 0
THREADS = 2
WARMUP = 60
# The text is short and the models small: many small batches learn more per second than the
# same number of tokens in large ones.
BATCH = 8
WINDOW = 256
LEARNING_RATE = 1e-2

VOCAB = 512
CONTEXT = 512
HIDDEN = 64
BLOCKS = 3
HEADS = 4
# transformers' usual 0.02 suits widths in the thousands; at width 64 it leaves the blocks
# almost silent for the first hundred steps.
INIT_STD = 0.08
# In large models some channels carry far larger activations than others. Small models do not
# grow such outliers in a few hundred steps, so they start with them (see ``spread_norms``).
NORM_SPREAD = 0.6

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1

# No padding token: the embedding row of a padding token never receives a gradient.
SPECIAL_IDS: dict[str, Any] = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": None}


@dataclass(frozen=True)
class Family:
    """How to make one model.

    ``adds_bos`` is whether its tokenizer puts ``<s>`` at the start of a text. Models that have
    to learn their positions need more ``steps``, and take less time for each.
    """

    config: Callable[[], PreTrainedConfig]
    adds_bos: bool = True
    steps: int = 1000


def llama() -> LlamaConfig:
    """Two query heads share each key/value head, and input and output embeddings are one."""
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=160,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=INIT_STD,
        **SPECIAL_IDS,
    )


def gemma() -> GemmaConfig:
    """Heads are wider than hidden size / heads, so ``o_proj`` is not square."""
    return GemmaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=160,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=INIT_STD,
        **SPECIAL_IDS,
    )


def phi3() -> Phi3Config:
    """Fused ``qkv_proj`` and ``gate_up_proj``; the query part is wider than the other two."""
    return Phi3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=160,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=INIT_STD,
        **SPECIAL_IDS,
    )


def opt() -> OPTConfig:
    """Biases everywhere, ReLU (hence sparse activations) and learned positions."""
    return OPTConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        ffn_dim=192,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        do_layer_norm_before=True,
        activation_function="relu",
        dropout=0.0,
        init_std=INIT_STD,
        **SPECIAL_IDS,
    )


def gpt2() -> GPT2Config:
    """``Conv1D`` layers, whose weights are stored transposed, and learned positions."""
    return GPT2Config(
        vocab_size=VOCAB,
        n_positions=CONTEXT,
        n_embd=HIDDEN,
        n_inner=192,
        n_layer=BLOCKS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=INIT_STD,
        **SPECIAL_IDS,
    )


def bloom() -> BloomConfig:
    """ALiBi instead of position embeddings; the MLP is always four times the hidden size."""
    return BloomConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        n_layer=BLOCKS,
        n_head=HEADS,
        initializer_range=INIT_STD,
        **SPECIAL_IDS,
    )


def gpt_neox() -> GPTNeoXConfig:
    """Attention and MLP read the same input, and the output embedding is separate."""
    return GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=192,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        initializer_range=INIT_STD,
        **SPECIAL_IDS,
    )


# Two tokenizers add no <s>, on purpose: nothing may rely on finding one at the start.
FAMILIES = {
    "llama": Family(llama),
    "gemma": Family(gemma),
    "phi3": Family(phi3),
    "opt": Family(opt, steps=2000),
    "gpt2": Family(gpt2, adds_bos=False, steps=2000),
    "bloom": Family(bloom, adds_bos=False),
    "gpt_neox": Family(gpt_neox),
}


def split_topics() -> tuple[list[str], list[str]]:
    """Training and held-out texts: the parts of prunus's own ``builtin`` source."""
    training = read_documents("builtin", "calibration")
    return training.texts, read_documents("builtin", "evaluation").texts


def train_bpe(texts: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE; the full byte alphabet means that no text is unknown to it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap(bpe: Tokenizer, adds_bos: bool) -> PreTrainedTokenizerFast:
    """Give a copy of the BPE its special tokens, in the form that transformers saves."""
    bpe = Tokenizer.from_str(bpe.to_str())
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A",
            pair=f"{BOS} $A {BOS}:1 $B:1",
            special_tokens=[(BOS, BOS_ID)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize without the warning about texts longer than the context: they get cut later."""
    return tokenizer(text, verbose=False)["input_ids"]


def training_stream(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Return all the training tokens in one row, each text closed by ``</s>``."""
    ids = [token for text in texts for token in [*encode(tokenizer, text), EOS_ID]]
    return torch.tensor(ids)


def batches(stream: Tensor, adds_bos: bool) -> Iterator[Tensor]:
    """Yield batches of windows taken from random places of the stream, without end.

    If the tokenizer adds ``<s>`` then half of the windows start with it, so that the model is
    at home both at the start of a text and in windows cut from the middle of one.
    """
    generator = torch.Generator().manual_seed(SEED)
    steps = torch.arange(WINDOW)
    while True:
        starts = torch.randint(len(stream) - WINDOW + 1, (BATCH, 1), generator=generator)
        batch = stream[starts + steps]
        if adds_bos:
            batch[: BATCH // 2, 0] = BOS_ID
        yield batch


def next_token_loss(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it, the same for every family."""
    logits = model(input_ids=batch, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


def train(model: PreTrainedModel, data: Iterator[Tensor], steps: int) -> None:
    """Train in place.

    There is no weight decay: it would even out the scales of the channels, and unequal scales
    are what makes methods that look at activations differ from those that do not.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    model.train()
    for _ in range(steps):
        loss = next_token_loss(model, next(data))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> float:
    """Perplexity per token of the texts joined and cut into windows; the rest is dropped."""
    model.eval()
    ids = torch.tensor(encode(tokenizer, "\n\n".join(texts)))
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    losses = [next_token_loss(model, batch) * len(batch) for batch in windows.split(BATCH)]
    return math.exp(torch.stack(losses).sum().item() / len(windows))


@torch.no_grad()
def spread_norms(model: PreTrainedModel) -> None:
    """Give the channels of every norm unequal gains, log-normally spread around one.

    Adding ``gain - 1`` is right both for norms that multiply by ``weight`` (initially 1) and
    for Gemma's, which multiply by ``1 + weight`` (initially 0).
    """
    for module in model.modules():
        if type(module).__name__.endswith("Norm"):
            module.weight.add_(torch.randn_like(module.weight).mul(NORM_SPREAD).exp() - 1)


def untrained(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model as it is before training, the same one every time."""
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    spread_norms(model)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save both, and make sure that the tokenizer comes back as it was.

    ``AutoTokenizer`` chooses a class by the type of the model, and some of those classes
    rebuild the tokenizer their own way, which would silently change the tokens.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reloaded = AutoTokenizer.from_pretrained(folder)
    text = 'def f(x):\n    return "naïve  →  café"  # it \'s done .\n'
    ids = tokenizer(text)["input_ids"]
    if reloaded(text)["input_ids"] != ids:
        raise RuntimeError(f"{folder.name}: the tokenizer changed when it was saved")
    if reloaded.decode(ids, skip_special_tokens=True) != text:
        raise RuntimeError(f"{folder.name}: the tokenizer does not give the text back")


def make(name: str, bpe: Tokenizer, texts: Sequence[str]) -> float:
    """Train and save one family; return how many seconds the training took."""
    family = FAMILIES[name]
    tokenizer = wrap(bpe, family.adds_bos)
    model = untrained(family.config())
    started = time.perf_counter()
    train(model, batches(training_stream(tokenizer, texts), family.adds_bos), family.steps)
    seconds = time.perf_counter() - started
    save(model, tokenizer, HERE / name)
    return seconds


def measure(name: str, texts: Sequence[str]) -> tuple[int, float, float]:
    """Return the parameters, random perplexity and held-out perplexity of a saved family."""
    tokenizer = AutoTokenizer.from_pretrained(HERE / name)
    model = AutoModelForCausalLM.from_pretrained(HERE / name)
    random = perplexity(untrained(model.config), tokenizer, texts)
    return model.num_parameters(), random, perplexity(model, tokenizer, texts)


README = """\
# Tiny language models for the tests

One small causal language model per family, in the stock format of `transformers`, each with
its tokenizer. They are trained, not random, so that the tests can tell whether a pruned model
still works and whether one pruning method does better than another.

Made by `python tests/models/train.py` with Python {python}, torch {torch},
transformers {transformers} and tokenizers {tokenizers}; seed {seed}, batches of {batch}
windows of {window} tokens. Before training, the gains of the norms are spread log-normally
(see `spread_norms`), so that the channels differ in scale as they do in large models.

The text is the prose of Python's own documentation (`pydoc_data.topics`). Every fifth topic
is held out (the split of prunus's `builtin` source, so tests may evaluate on it), and the
tokenizer (byte-level BPE, {vocab} tokens) and the models are trained on the others. The
weights are committed because that prose differs between Python versions: training elsewhere
gives other models, and the held-out perplexities below move a little too.

The perplexities are per token, over the held-out topics joined by blank lines and cut into
windows of {window} tokens.

| family | parameters | leading `<s>` | steps | random | held out |
| --- | ---: | :---: | ---: | ---: | ---: |
{rows}

"Leading `<s>`" is whether the tokenizer puts one at the start of a text. The context is
{context} positions, but training saw only the first {window}: in `opt` and `gpt2`, where
positions are learned, the later ones are still random.
"""


def write_readme(texts: Sequence[str]) -> None:
    """Describe the models in the folder, including those that this run did not train."""
    rows = []
    for name, family in FAMILIES.items():
        if (HERE / name / "config.json").exists():
            parameters, random, trained = measure(name, texts)
            bos = "yes" if family.adds_bos else "no"
            sizes = f"{parameters:,} | {bos} | {family.steps}"
            rows.append(f"| `{name}` | {sizes} | {random:.0f} | {trained:.2f} |")
    text = README.format(
        python=platform.python_version(),
        torch=torch.__version__.partition("+")[0],
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
        seed=SEED,
        batch=BATCH,
        window=WINDOW,
        vocab=VOCAB,
        context=CONTEXT,
        rows="\n".join(rows),
    )
    (HERE / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Train the families named on the command line (all by default) and describe them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("families", nargs="*", metavar="family", help=", ".join(FAMILIES))
    names = parser.parse_args().families or list(FAMILIES)
    if unknown := sorted(set(names) - set(FAMILIES)):
        parser.error(f"unknown family: {', '.join(unknown)}")
    torch.set_num_threads(THREADS)
    transformers.logging.disable_progress_bar()
    training, held_out = split_topics()
    bpe = train_bpe(training)
    print(f"{'family':<10}{'parameters':>12}{'random':>10}{'held out':>10}{'seconds':>9}")
    for name in names:
        seconds = make(name, bpe, training)
        parameters, random, trained = measure(name, held_out)
        row = f"{name:<10}{parameters:>12,}{random:>10.1f}{trained:>10.2f}{seconds:>9.1f}"
        print(row, flush=True)
    write_readme(held_out)


if __name__ == "__main__":
    main()
