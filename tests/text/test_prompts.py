"""What rows ask: every spelling, without the answers that they hold."""

import json

import pytest

from prunus.base.errors import CalibrationError
from prunus.text.prompts import given_prompts, read_prompts

USER = {"role": "user", "content": "Why?"}


def asked(row):
    return given_prompts("rows", [row]).chats[0]


@pytest.mark.parametrize(
    "row",
    [
        "Why?",
        {"prompt": "Why?"},
        {"prompt": [USER], "chosen": "So."},
        {"text": "Why?"},
        {"question": "Why?"},
        {"question": "Why?", "answer": "So."},
        {"instruction": "Why?", "input": "", "output": "So.", "text": "Below is …"},
        {"messages": [USER]},
        {"messages": [USER, {"role": "assistant", "content": "So."}]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"data": ["Why?", "So."]},
        [USER],
    ],
    ids=str,
)
def test_a_row_asks_the_same_in_every_spelling(row):
    assert asked(row) == [USER]


def test_what_stands_beside_the_question_stays():
    assert asked({"instruction": "Sum up.", "input": "A text."})[0]["content"] == (
        "Sum up.\n\nA text."
    )
    row = {"question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}}
    assert asked({**row, "answerKey": "2"})[0]["content"] == "Which?\n\n1. x\n2. y"
    row = {"question": "Which?", "choices": ["x", "y"], "answer": 1, "passage": "Once."}
    assert asked(row)[0]["content"] == "Once.\n\nWhich?\n\nA. x\nB. y"
    chat = asked({"system": "Be brief.", "question": "Why?"})
    assert chat == [{"role": "system", "content": "Be brief."}, USER]
    turns = [USER, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
    assert asked({"messages": turns}) == turns


def test_files_are_read_line_by_line_and_what_asks_nothing_is_counted(tmp_path):
    plain = tmp_path / "a.txt"
    plain.write_text("Why?\n\nHow?\n", encoding="utf-8")
    found = read_prompts(str(plain))
    assert [chat[0]["content"] for chat in found.chats] == ["Why?", "How?"]
    assert (found.plain, found.skipped, found.field) == (True, 1, None)
    rows = tmp_path / "b.jsonl"
    silent = {"messages": [{"role": "assistant", "content": "So."}]}
    rows.write_text("\n".join(map(json.dumps, [{"prompt": "Why?"}, silent])), encoding="utf-8")
    found = read_prompts(str(rows))
    assert (len(found.chats), found.plain, found.skipped) == (1, False, 1)
    assert "1 row without a question skipped" in found.line()


def test_a_field_can_be_named(tmp_path):
    rows = tmp_path / "b.jsonl"
    rows.write_text(json.dumps({"ask": "Why?", "text": "Once."}), encoding="utf-8")
    assert read_prompts(str(rows), "ask").chats == [[USER]]
    with pytest.raises(CalibrationError, match="has no field 'nothing'; it has ask, text"):
        read_prompts(str(rows), "nothing")


def test_a_source_that_asks_nothing_says_so(tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"prompt": ""}\n', encoding="utf-8")
    with pytest.raises(CalibrationError, match="asks nothing"):
        read_prompts(str(tmp_path / "empty.jsonl"))
    with pytest.raises(CalibrationError, match="does not exist"):
        read_prompts(str(tmp_path / "none.jsonl"))
    (tmp_path / "odd.jsonl").write_text('{"foo": "x"}\n', encoding="utf-8")
    with pytest.raises(CalibrationError, match="--field NAME"):
        read_prompts(str(tmp_path / "odd.jsonl"))
