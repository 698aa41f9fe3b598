"""Answers of the dense model: which prompts, which tokens, how much they weigh."""

import pytest
import torch

from helpers.models import load_tiny
from prunus.base.errors import CalibrationError
from prunus.text.answers import (
    Asked,
    answer,
    asked_of,
    check_template,
    hash_of,
    token_weights,
)
from prunus.text.prompts import given_prompts

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<s>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}Then {% endif %}"
)
ROWS = [f"Once there was a {word}." for word in ("cat", "dog", "tree", "king", "boat")]


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = load_tiny("llama")
    tokenizer.chat_template = TEMPLATE
    return model, tokenizer


def test_prompts_are_drawn_once_each_and_end_where_the_answer_begins(tiny):
    _, tokenizer = tiny
    found = asked_of(given_prompts("p", ROWS), tokenizer, samples=9, longest=99, seed=0)
    texts = [tokenizer.decode(asked.ids) for asked in found.asked]
    assert sorted(texts) == sorted(f"<s>{row}\nThen " for row in ROWS)
    again = asked_of(given_prompts("p", ROWS), tokenizer, samples=2, longest=99, seed=0)
    assert again.asked == found.asked[:2]
    other = asked_of(given_prompts("p", ROWS), tokenizer, samples=9, longest=99, seed=1)
    assert other.asked != found.asked
    assert other.sha256 != found.sha256


def test_what_is_too_long_or_refused_is_left_out_and_counted(tiny):
    _, tokenizer = tiny
    system = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    rows = [*ROWS, "word " * 200, system]
    found = asked_of(given_prompts("p", rows), tokenizer, samples=99, longest=50, seed=0)
    assert (len(found.asked), found.longer, found.refused) == (5, 1, 1)
    with pytest.raises(CalibrationError, match=r"1 are refused .*no system"):
        asked_of(given_prompts("p", [system]), tokenizer, samples=9, longest=50, seed=0)


def test_without_a_template_one_sentence_says_what_to_do(tiny):
    _, bare = load_tiny("llama")
    with pytest.raises(CalibrationError, match=r"this tokenizer has none\. Use a model that was"):
        check_template(bare)
    check_template(tiny[1])


def test_a_greedy_answer_is_the_likeliest_token_each_time(tiny):
    model, tokenizer = tiny
    ids = tokenizer("Once there was", add_special_tokens=False).input_ids
    found = answer(model, tokenizer, Asked([], ids), most=12, temperature=0, top_p=1, seed=0,
                   number=0)  # fmt: skip
    expected = list(ids)
    while len(expected) < len(ids) + 12 and expected[-1] != tokenizer.eos_token_id:
        logits_TV = model(torch.tensor([expected])).logits[0]
        expected.append(int(logits_TV[-1].argmax()))
    assert found == expected[len(ids) :]


def test_a_sampled_answer_depends_on_the_seed_and_the_prompts_number_alone(tiny):
    model, tokenizer = tiny
    asked = Asked([], tokenizer("Once", add_special_tokens=False).input_ids)

    def sampled(seed, number, top_p=1.0):
        return answer(model, tokenizer, asked, most=10, temperature=1.0, top_p=top_p, seed=seed,
                      number=number)  # fmt: skip

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sampled(0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert sampled(0, 0) == first
    assert len({tuple(sampled(*pair)) for pair in [(0, 0), (0, 1), (1, 0)]}) == 3
    greedy = answer(model, tokenizer, asked, most=10, temperature=0, top_p=1, seed=0, number=0)
    assert sampled(0, 0, top_p=1e-6) == greedy


def test_answers_have_their_share_of_the_weight():
    answered = [torch.tensor([False, False, True]), torch.tensor([False, True, True, True])]
    for share in (0.25, 0.5, 1.0):
        weights = token_weights(answered, share)
        assert [len(own_T) for own_T in weights] == [3, 4]
        total = sum(float(own_T.sum()) for own_T in weights)
        of_answers = sum(float(w[a].sum()) for w, a in zip(weights, answered, strict=True))
        assert total == pytest.approx(7)
        assert of_answers == pytest.approx(7 * share)
        assert (
            len({float(w) for own, a in zip(weights, answered, strict=True) for w in own[a]}) == 1
        )


def test_the_hash_knows_where_conversations_end():
    assert hash_of([[1, 2], [3]]) != hash_of([[1], [2, 3]])
    assert hash_of([[1, 2], [3]]) == hash_of([[1, 2], [3]])
