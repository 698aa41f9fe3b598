"""Perplexity and accuracy of the last word, against a loop over single passages and tokens."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import CalibrationError, InputError, NumericalError
from prunus.cli.main import app
from prunus.judge.last_word import Passage, check_fit, last_words, passages_of

TEXTS = [
    "Return the value of the named attribute of object, which must be a string",
    "The statement is executed by first evaluating the object ; it must be a module",
    "A list is\nmutable, and a tuple is\nimmutable",
    "one two",
    "If there are two spaces before the  end",
    "Keyword arguments are passed by name, positional arguments in order of the call",
    "Return the value of the other attribute of object, which must be a string",
]


def literal(model, tokenizer, texts, special=True):
    """lm-evaluation-harness's lambada_openai, one passage and one token at a time, in float64."""
    losses, right, seen = [], 0, 0
    for text in texts:
        words = text.split(" ")
        context, target = " ".join(words[:-1]), " " + words[-1]
        while context[-1] == " ":  # spaces belong to what continues
            context, target = context[:-1], " " + target
        whole = tokenizer(context + target, add_special_tokens=special).input_ids
        before = tokenizer(context, add_special_tokens=special).input_ids
        loss, greedy = 0.0, True
        for place in range(len(before), len(whole)):
            with torch.no_grad():
                logits_V = model(torch.tensor([whole[:place]])).logits[0, -1].double()
            loss -= float(logits_V.log_softmax(0)[whole[place]])
            greedy = greedy and int(logits_V.argmax()) == whole[place]
        losses.append(loss)
        right, seen = right + greedy, seen + len(whole) - len(before)
    assert seen > len(texts)  # some words are of several tokens
    return math.exp(sum(losses) / len(losses)), right / len(texts)


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # with and without a first token
def test_it_is_the_harness_definition(name):
    model, tokenizer = load_tiny(name)
    perplexity, accuracy = literal(model, tokenizer, TEXTS)
    found = prunus.evaluate(model, TEXTS, tokenizer=tokenizer, last_word=True)
    assert found.perplexity == pytest.approx(perplexity, rel=1e-4)
    assert found.accuracy == pytest.approx(accuracy)
    assert (found.windows, found.reading) == (len(TEXTS), "last words")
    perplexity, _ = literal(model, tokenizer, TEXTS, special=False)
    found = prunus.evaluate(model, TEXTS, tokenizer=tokenizer, last_word=True, bos="no")
    assert found.perplexity == pytest.approx(perplexity, rel=1e-4)


def test_batched_or_not_is_equal():
    model, tokenizer = load_tiny("llama")
    passages = passages_of(
        [*TEXTS, *(f"{text} again" for text in TEXTS), *TEXTS], tokenizer, "auto"
    )
    told = []
    alone = last_words(model, passages, at_once=0, scored=lambda *at: told.append(at))
    assert [done for done, _, _ in told] == list(range(1, 22))
    together = last_words(model, passages, at_once=10_000)
    assert together.perplexity == pytest.approx(alone.perplexity, rel=1e-5)
    assert together.accuracy == alone.accuracy


class Known(torch.nn.Module):
    """Predicts the id after the last one, with a certainty that is known."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.read = []

    def forward(self, input_ids, use_cache):
        self.read.append(tuple(input_ids.shape))
        logits_BTV = torch.zeros(*input_ids.shape, 10)
        logits_BTV.scatter_(2, (input_ids + 1)[..., None] % 10, math.log(9))  # 9 / 18
        return type("Output", (), {"logits": logits_BTV})


def test_a_words_probability_is_the_product_of_its_tokens():
    """Tokens that count up have ½ each, all others 1/18; a word is right where all count up."""
    passages = [Passage((1, 2, 3), 1), Passage((1, 2, 3, 4), 2), Passage((1, 2, 3, 5), 2)]
    found = last_words(Known(), passages)
    expected = (math.log(2) + 2 * math.log(2) + math.log(2) + math.log(18)) / 3
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    assert found.accuracy == pytest.approx(2 / 3)
    assert (found.windows, found.length, found.tokens) == (3, 4, 11)


def test_passages_of_one_length_share_a_batch_and_long_ones_lose_their_beginning():
    model = Known()
    last_words(model, [Passage((1, 2, 3), 1)] * 5 + [Passage(tuple(range(9)), 1)], at_once=9)
    assert model.read == [(3, 2), (2, 2), (1, 8)]
    model = Known()
    found = last_words(model, [Passage((7, *range(9)), 1)], longest=4)
    assert (model.read, found.accuracy) == ([(1, 4)], 1.0)


def test_what_cannot_be_scored(tiny_llama):
    model, tokenizer = tiny_llama
    run = {"tokenizer": tokenizer, "last_word": True}
    with pytest.raises(
        CalibrationError, match=r"passage 2: .* is 'word'\. Give passages of several"
    ):
        prunus.evaluate(model, ["two words", "word"], **run)
    with pytest.raises(InputError, match=r"--length 64 does not apply\. Leave it out, or score"):
        prunus.evaluate(model, TEXTS, length=64, **run)
    with pytest.raises(InputError, match="last_word is for passages of text"):
        prunus.evaluate(model, torch.tensor([[1, 2, 3]]), **run)
    with pytest.raises(CalibrationError, match="At least one passage"):
        prunus.evaluate(model, TEXTS, windows=0, **run)
    with pytest.raises(CalibrationError, match=r"ends with a word of \d.* reads 4 at once\. Give"):
        check_fit(passages_of(["two wordswordswords"], tokenizer, "auto"), longest=4)
    context = model.config.max_position_embeddings
    with pytest.raises(CalibrationError, match=r"texts given .* ends with a word of .* tokens"):
        prunus.evaluate(model, [TEXTS[0], "two " + "w1d" * context], **run)
    with torch.no_grad():
        model.lm_head.weight[:] = float("nan")
    with pytest.raises(NumericalError, match="NaN or inf for a passage of texts given"):
        prunus.evaluate(model, TEXTS, **run)


def test_lambada_is_scored_by_its_last_words_and_any_file_on_request(tmp_path):
    model, tokenizer = load_tiny("llama")
    perplexity, accuracy = literal(model, tokenizer, TEXTS[:2])
    rows = [{"text": text} for text in TEXTS]
    (tmp_path / "lambada_test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "lines.txt").write_text("\n".join([*TEXTS[:2], "", ""]))

    def run(*arguments):
        done = CliRunner().invoke(app, ["eval", str(MODELS / "llama"), *map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.stdout

    few = ["--data-dir", tmp_path, "--text", "lambada", "--windows", 2]
    said = json.loads(run(*few, "--json"))
    assert said["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert said["accuracy"] == accuracy
    assert (said["windows"], said["split"], said["reading"]) == (2, "test", "last words")
    assert "tasks" not in said
    assert f"perplexity of the last word {perplexity:.2f}" in run(*few)
    lines = json.loads(run("--text", tmp_path / "lines.txt", "--last-word", "--json"))
    assert lines["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    said = CliRunner().invoke(app, ["eval", str(MODELS / "llama"), "--last-word", "--windows", "1",
                                    "--text", str(tmp_path / "lines.txt")]).output  # fmt: skip
    assert "lines.txt: each line is a passage" in " ".join(said.split())
    assert "as it lies" not in said
    plain = [
        "--data-dir",
        tmp_path,
        "--text",
        "lambada",
        "--no-last-word",
        "--length",
        16,
        "--json",
    ]
    windows = json.loads(run(*plain))
    assert (windows["accuracy"], windows["length"]) == (None, 16)
    assert windows["reading"] == "7 rows joined by blank lines"
