import json

import pytest

from prunus.base.errors import InputError
from prunus.judge.task_files import dataset, find_file, rows

ARC = {
    "id": "A1",
    "question": {
        "stem": "What do plants need?",
        "choices": [{"text": "light", "label": "A"}, {"text": "noise", "label": "B"}],
    },
    "answerKey": "A",
}


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def test_rows_of_arc_and_openbookqa_become_those_of_the_hub(tmp_path):
    path = put(tmp_path, "a.jsonl", [ARC])
    choices = {"text": ["light", "noise"], "label": ["A", "B"]}
    for task, name in (("arc_easy", "question"), ("openbookqa", "question_stem")):
        (row,) = rows(task, "test", path)
        assert (row[name], row["choices"]) == ("What do plants need?", choices)
        assert row["answerKey"] == "A"
    hub = {"id": "A1", "question": "What?", "choices": choices, "answerKey": "A"}
    assert rows("arc_challenge", "test", put(tmp_path, "b.jsonl", [hub])) == [hub]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({"label": "true"}, 1), ({"label": "false"}, 0), ({"label": 1}, 1), ({"label": True}, 1),
        ({"answer": False}, 0),
    ],
)  # fmt: skip
def test_labels_of_boolq(label, expected, tmp_path):
    path = put(tmp_path, "val.jsonl", [{"question": "is it", "passage": "It is.", **label}])
    assert rows("boolq", "validation", path)[0]["label"] == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Polo: A man rides. He waves. the man", ("Polo", "A man rides. He waves.", "the man")),
        ("Polo: A man rides! he", ("Polo", "A man rides!", "he")),
        ("How to cook: Boil water. Add salt.", ("How to cook", "Boil water. Add salt.", "")),
        ("Polo: A man rides. Bob", ("Polo", "A man rides. Bob", "")),
        ("Polo: two: a man", ("Polo", "two: a man", "")),
    ],
)
def test_a_query_of_hellaswag_is_taken_apart(query, expected, tmp_path):
    path = put(tmp_path, "v.jsonl", [{"row": 0, "query": query, "endings": ["a"], "label": 3}])
    (row,) = rows("hellaswag", "validation", path)
    assert (row["activity_label"], row["ctx_a"], row["ctx_b"]) == expected
    assert (row["label"], row["endings"]) == ("3", ["a"])


def test_labels_of_piqa_lie_beside(tmp_path):
    asked = [{"goal": f"g{i}", "sol1": "a", "sol2": "b"} for i in range(3)]
    path = put(tmp_path, "piqa/dev.jsonl", asked)
    with pytest.raises(InputError, match=r"no dev-labels\.lst lies beside it"):
        rows("piqa", "validation", path)
    (tmp_path / "piqa" / "dev-labels.lst").write_text("0\n1\n")
    with pytest.raises(InputError, match="has 2 labels"):
        rows("piqa", "validation", path)
    (tmp_path / "piqa" / "dev-labels.lst").write_text("0\n1\n1\n")
    assert [row["label"] for row in rows("piqa", "validation", path)] == [0, 1, 1]
    found = dataset("piqa", {"validation": str(path)}, version=1.0)
    assert found["validation"].column_names == ["goal", "sol1", "sol2", "label"]


@pytest.mark.parametrize(
    ("task", "split", "name"),
    [
        ("arc_easy", "test", "arc_easy/test.jsonl"),
        ("arc_easy", "validation", "arc_easy/dev.jsonl"),
        ("arc_easy", "train", "ARC-Easy/ARC-Easy-Train.jsonl"),
        ("hellaswag", "validation", "hellaswag/val_first2000.jsonl"),
        ("lambada_openai", "test", "lambada/lambada_test.jsonl"),
        ("lambada_openai", "test", "lambada_test.jsonl"),
        ("mnli", "validation_matched", "mnli/validation_matched.jsonl"),
    ],
)
def test_files_are_found_by_task_and_split(task, split, name, tmp_path):
    path = put(tmp_path, name, [])
    put(tmp_path, "piqa/test.jsonl", [])
    assert find_file(tmp_path, task, split) == path
    with pytest.raises(InputError, match=r"reads its split 'else' from .* there is no such file"):
        find_file(tmp_path, task, "else")


def test_two_files_of_a_split_are_named(tmp_path):
    put(tmp_path, "boolq/val.jsonl", [])
    put(tmp_path, "boolq/dev.jsonl", [])
    with pytest.raises(InputError, match=r"dev\.jsonl, .*val\.jsonl are all of its split"):
        find_file(tmp_path, "boolq", "validation")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"question": "is it"}\n', r"line 1: no row of boolq .*it has the fields question"),
        ('{"question": 1, "passage": "a", "label": "maybe"}\n', "line 1: no row of boolq"),
        ("\n[1]\n", "line 2: a row is a JSON object"),
        ("{1\n", "line 1: not JSON"),
        ("\n", "holds no rows"),
    ],
)
def test_a_row_that_is_none_is_named(content, said, tmp_path):
    path = tmp_path / "val.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        rows("boolq", "validation", path)
