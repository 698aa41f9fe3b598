"""Against lm-eval itself, called on the same checkpoint with rows as they are on the hub."""

import json
import random
import socket
import sys
from pathlib import Path

import pytest
import torch

import prunus
from helpers.models import MODELS
from prunus.base.errors import InputError
from prunus.judge.tasks import Tasks

LM_EVAL = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks"
LLAMA = MODELS / "llama"
LETTERS = ["A", "B", "C"]
WORDS = ["the dog", "a small bird", "one day", "her mother"]
COUNT = 5
YAML = {
    "arc_easy": "arc/arc_easy.yaml", "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml", "boolq": "super_glue/boolq/default.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
}  # fmt: skip


def texts(seed):
    """A question, a longer text and three endings."""
    draw = random.Random(seed)
    story = " ".join(draw.choice(WORDS) for _ in range(8))
    return f"Who saw {draw.choice(WORDS)}?", f"{story.capitalize()}.", draw.sample(WORDS, 3)


def written(folder):
    """Write the files that people have; return the same rows as the hub has them."""
    made = {name: [] for name in ("arc_easy", "piqa", "hellaswag", "boolq", "lambada_openai")}
    files = {name: [] for name in made}
    labels = []
    for seed in range(COUNT):
        question, story, ends = texts(seed)
        key = LETTERS[seed % 3]
        files["arc_easy"].append({
            "id": str(seed), "answerKey": key,
            "question": {
                "stem": question,
                "choices": [{"text": t, "label": x} for t, x in zip(ends, LETTERS, strict=True)],
            },
        })  # fmt: skip
        made["arc_easy"].append({
            "id": str(seed), "question": question, "answerKey": key,
            "choices": {"text": ends, "label": LETTERS},
        })  # fmt: skip
        both = {"goal": question, "sol1": ends[0], "sol2": ends[1]}
        files["piqa"].append({"id": str(seed), **both})
        labels.append(seed % 2)
        made["piqa"].append({**both, "label": seed % 2})
        files["hellaswag"].append(
            {"query": f"Going home: {story} the boy", "endings": ends, "label": seed % 3, "row": 0}
        )
        made["hellaswag"].append({
            "activity_label": "Going home", "ctx_a": story, "ctx_b": "the boy",
            "endings": ends, "label": str(seed % 3),
        })  # fmt: skip
        asked = {"question": question.lower().strip("?"), "passage": story}
        files["boolq"].append({**asked, "label": "true" if seed % 2 else "false", "idx": seed})
        made["boolq"].append({**asked, "label": seed % 2})
        files["lambada_openai"].append({"text": f"{story} {ends[0]}"})
        made["lambada_openai"] = list(files["lambada_openai"])
    places = {
        "arc_easy": "arc_easy/test.jsonl", "piqa": "piqa/dev.jsonl",
        "hellaswag": "hellaswag/val_first5.jsonl", "boolq": "boolq/val.jsonl",
        "lambada_openai": "lambada/lambada_test.jsonl",
    }  # fmt: skip
    for task, place in places.items():
        (folder / place).parent.mkdir()
        (folder / place).write_text("".join(json.dumps(row) + "\n" for row in files[task]))
    (folder / "piqa" / "dev-labels.lst").write_text("".join(f"{x}\n" for x in labels))
    (folder / "arc_easy" / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in files["arc_easy"][::-1])
    )
    return made


@pytest.fixture
def quick(monkeypatch):
    """No network, no forks, and no description of the machine, which takes lm-eval seconds."""

    def refused(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # a fork beside threads may hang


def direct(rows, shots=None, **settings):
    """lm-eval's own result for tasks whose splits are given, as the hub has them."""
    from datasets import Dataset, DatasetDict
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = []
    for name, splits in rows.items():
        made = DatasetDict({split: Dataset.from_list(own) for split, own in splits.items()})
        config = load_yaml(LM_EVAL / YAML[name])
        for key in ("training_split", "validation_split", "test_split"):
            config[key] = config.get(key) if config.get(key) in splits else None
        config["custom_dataset"] = lambda made=made, **_: made
        tasks.append(ConfigurableTask(config=config))
    found = simple_evaluate(
        model="hf", model_args={"pretrained": str(LLAMA)}, device="cpu", tasks=tasks,
        num_fewshot=shots, task_manager=TaskManager(include_defaults=False), **settings,
    )  # fmt: skip
    return {
        task: {k.removesuffix(",none"): v for k, v in values.items() if "," in k}
        for task, values in found["results"].items()
    }


def test_the_numbers_are_lm_evals_own_digit_for_digit(tmp_path, quick):
    hub = written(tmp_path)
    scored = {"arc_easy": "test", "lambada_openai": "test"}
    splits = {task: {scored.get(task, "validation"): rows} for task, rows in hub.items()}
    expected = direct(splits, limit=4, batch_size=3)
    found = prunus.evaluate_all(
        LLAMA, tasks=",".join(hub), data_dir=tmp_path, limit=4, batch_size=3
    ).tasks  # fmt: skip
    assert {task.task: task.values for task in found} == expected
    assert [task.task for task in found] == list(hub)
    assert {(task.samples, task.total, task.shots) for task in found} == {(4, COUNT, 0)}
    assert set(expected["boolq"]) == {"acc", "acc_stderr"}
    assert set(expected["lambada_openai"]) == {
        "perplexity", "perplexity_stderr", "acc", "acc_stderr",
    }  # fmt: skip


def test_examples_come_from_the_training_split(tmp_path, quick):
    hub = written(tmp_path)["arc_easy"]
    expected = direct({"arc_easy": {"test": hub, "train": hub[::-1]}}, shots=2)
    before = random.getstate(), torch.get_rng_state()
    (found,) = prunus.evaluate_all(LLAMA, tasks="arc_easy", data_dir=tmp_path, shots=2).tasks
    assert (found.values, found.shots) == (expected["arc_easy"], 2)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    with pytest.raises(InputError, match=r"boolq reads its split 'train' from .*boolq/\*\.jsonl"):
        prunus.evaluate_all(LLAMA, tasks="boolq", data_dir=tmp_path, shots=2)


def test_what_cannot_be_run_is_said_before_the_work(tmp_path, quick):
    def refused(match, **asked):
        with pytest.raises(InputError, match=match):
            prunus.evaluate_all(LLAMA, **asked)

    refused("no single task 'arc_esy'. Did you mean 'arc_easy'", tasks="arc_esy", data_dir=tmp_path)
    refused("has no groups", tasks="ai2_arc", data_dir=tmp_path)
    refused("'test' from .*arc_easy.* there is no such file", tasks="arc_easy", data_dir=tmp_path)
    refused("--limit is 0", tasks="arc_easy", limit=0)
    refused("--shots is -1", tasks="arc_easy", shots=-1)
    refused("named twice", tasks=["piqa", "piqa"])
    refused("Nothing is to be evaluated")
    refused("Unknown argument 'shot'", tasks="piqa", shot=1)
    refused("texts is a list of texts; got 'builtin'", texts="builtin")
    assert Tasks.of(["a,b", "c"], None, None, 1).names == ("a", "b", "c")


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    from prunus.judge import tasks

    tasks._homes.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'prunus\[eval\]'"):
        prunus.evaluate_all(LLAMA, tasks="piqa")
