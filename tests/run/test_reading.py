"""Calibration on answers and on several sources, from the options to the checkpoint."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import prunus
from helpers.models import MODELS
from helpers.runs import tensors
from prunus.base.errors import CalibrationError, CheckpointError, InputError
from prunus.maths.stats import ColumnNorm, Statistics, TokenSample
from prunus.run.observer import Silent

WORDS = ("cat", "dog", "tree", "king", "boat", "frog")
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Then {% endif %}"
)
RUN = {
    "method": "sparsegpt", "answers": True, "answer_length": 8, "samples": 4, "length": 48,
    "skip_blocks": "1:3",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny Llama, with a chat template."""
    made = tmp_path_factory.mktemp("chat") / "llama"
    shutil.copytree(MODELS / "llama", made)
    config = json.loads((made / "tokenizer_config.json").read_text())
    (made / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return made


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "a,b:1.jsonl"
    rows = [{"prompt": f"Once there was a {word}."} for word in WORDS]
    rows.append({"messages": [{"role": "user", "content": "Who?"},
                              {"role": "assistant", "content": "a given answer"}]})  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def whole(folder, prompts, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    return prunus.prune(folder, output=output, calibration=prompts, **RUN)


class Ends(Silent):
    """Ends a run before a prompt is answered, or when a block is recorded."""

    def __init__(self, at=None):
        self.at, self.said, self.steps = at, [], []

    def say(self, message):
        self.said.append(message)

    def block(self, index, total, name, step):
        self.steps.append((index, step))
        if (index, step) == self.at:
            raise KeyboardInterrupt


def test_answers_are_calibrated_on_recorded_and_written(whole, prompts):
    protocol = whole.report.protocol
    found = protocol.answers
    assert (protocol.samples, protocol.documents, found.prompts, found.longest) == (4, 7, 4, 8)
    assert found.tokens <= 4 * 8
    assert protocol.source == prompts
    rows = [json.loads(row) for row in (whole.output / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert sum(row["answer_tokens"] for row in rows) == found.tokens
    assert sum(row["prompt_tokens"] for row in rows) == found.prompt_tokens
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    assert "a given answer" not in (whole.output / "answers.jsonl").read_text()
    card = (whole.output / "README.md").read_text()
    assert "4 of 7 prompts, answered by the model (temperature 0.7)" in card


def test_the_time_of_a_run_is_also_that_of_its_answers(folder, prompts, monkeypatch):
    record = prunus.run.reading._record
    monkeypatch.setattr(
        "prunus.run.reading._record", lambda *args: replace(record(*args), seconds=1e6)
    )
    report = prunus.prune(folder, calibration=prompts, **{**RUN, "method": "wanda"}).report
    assert 1e6 < report.seconds < 1e6 + 1000


def test_the_hash_repeats_and_the_temperature_seed_and_length_change_it(whole, folder, prompts):
    def hashed(**changed):
        run = {**RUN, "calibration": prompts, "method": "wanda", **changed}
        return prunus.prune(folder, **run).report.protocol.sha256

    own = whole.report.protocol.sha256
    assert hashed() == own
    assert len({own, hashed(settings={"answers.temperature": 0}), hashed(answer_length=5)}) == 3


@pytest.mark.parametrize("at", [(2, "answer"), (0, "record")])
def test_a_run_that_ends_among_answers_goes_on_at_the_first_unanswered(
    at, folder, prompts, whole, tmp_path, monkeypatch
):
    run = {**RUN, "calibration": prompts, "output": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(folder, observer=Ends(at), **run)
    with pytest.raises(CheckpointError, match="Continue with --resume"):
        prunus.prune(folder, **run)
    with pytest.raises(InputError, match="its answer length was 8, now it is 9"):
        prunus.prune(folder, resume=True, **{**run, "answer_length": 9})
    asked = []
    answer = prunus.run.reading.answer
    monkeypatch.setattr(
        "prunus.run.reading.answer",
        lambda *args, **kwargs: asked.append(kwargs["number"]) or answer(*args, **kwargs),
    )
    watcher = Ends()
    result = prunus.prune(folder, resume=True, observer=watcher, **run)
    done = 2 if at[1] == "answer" else 4
    assert asked == list(range(done, 4))
    assert f"resuming: {done} answers from before" in watcher.said
    first, second = tensors(whole.output), tensors(result.output)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole.output / "answers.jsonl").read_bytes() == (
        result.output / "answers.jsonl"
    ).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_end_before_the_first_answer_leaves_nothing(folder, prompts, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(
            folder,
            output=tmp_path / "out",
            calibration=prompts,
            observer=Ends((0, "answer")),
            **RUN,
        )
    assert list(tmp_path.iterdir()) == []


def test_answers_have_the_weight_that_was_asked_for(folder, prompts, monkeypatch):
    """The statistics of the first block's first layer, by a loop over weighed tokens."""
    seen = {}
    update = Statistics.update

    def noted(self, inputs, weights_T=None):
        seen.setdefault(id(self), []).append((self, inputs.clone(), weights_T))
        update(self, inputs, weights_T)

    monkeypatch.setattr(Statistics, "update", noted)
    run = {**RUN, "method": "wanda", "settings": {"calibration.answers": 0.75}}
    report = prunus.prune(folder, calibration=prompts, **run).report
    assert report.protocol.share == 0.75
    found = report.protocol.answers
    parts = next(iter(seen.values()))
    assert len(parts) == 4
    sums, total = 0, 0.0
    for _, inputs_TI, weights_T in parts:
        for row_I, weight in zip(inputs_TI.double(), weights_T.tolist(), strict=True):
            sums, total = sums + weight * row_I.square(), total + weight
    stats = parts[0][0]
    assert total == pytest.approx(found.tokens + found.prompt_tokens)
    assert torch.allclose(stats[ColumnNorm].rms_I.double(), (sums / total).sqrt(), rtol=1e-5)
    assert stats[TokenSample].tokens == found.tokens + found.prompt_tokens
    high = max(max(weights_T.tolist()) for *_, weights_T in parts)
    assert high * found.tokens == pytest.approx(0.75 * total)


def test_several_sources_have_their_shares(folder, prompts, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little boat. " * 40, encoding="utf-8")
    source = f"{text}:3,{prompts}:1"
    run = {**RUN, "method": "wanda", "calibration": source, "samples": 8}
    protocol = prunus.prune(folder, **run).report.protocol
    assert [part.samples for part in protocol.parts] == [6, 2]
    assert [part.answers is None for part in protocol.parts] == [True, False]
    assert protocol.source == source
    assert prunus.prune(folder, **run).report.protocol.sha256 == protocol.sha256
    plan = prunus.plan(folder, **run)
    assert plan.rehearsed["answer"] > 0


def test_several_texts_without_answers_are_windows_of_one_length(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little boat. " * 40, encoding="utf-8")
    run = {"method": "wanda", "samples": 4, "length": 32, "skip_blocks": "1:3"}
    one = prunus.prune(folder, calibration=str(text), **run).report.protocol
    two = prunus.prune(folder, calibration=f"{text}:1,builtin:1", **run).report.protocol
    assert (two.samples, two.length, len(two.parts)) == (4, 32, 2)
    assert two.answered == ()
    assert two.sha256 != one.sha256
    assert "4 samples of 2 sources" in str(two)


def test_a_plan_counts_the_answers(folder, prompts):
    run = {**RUN, "method": "wanda", "calibration": prompts}
    plan = prunus.plan(folder, **run)
    longer = prunus.plan(folder, **{**run, "samples": 128})  # of which there are 7
    assert plan.seconds > 4 * plan.rehearsed["answer"]
    assert longer.seconds > 7 * longer.rehearsed["answer"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"calibration": "builtin"}, InputError, "builtin is text, not prompts"),
        ({"calibration": "none", "method": "magnitude"}, InputError, "needs prompts"),
        ({"answers": False}, InputError, "--answer-length is for a run with --answers"),
        ({"answer_length": 48}, InputError, "leaves no room for a prompt"),
        ({"settings": {"answers.temperature": -1}}, InputError, r"expected 0 \(the likeliest"),
        ({"settings": {"answers.top_p": 0}}, InputError, "above 0, at most 1"),
        ({"settings": {"calibration.answers": 2}}, InputError, "expected a share"),
        ({"settings": {"answers.heat": 1}}, InputError, "has no field 'heat'"),
        (
            {"method": "flap", "skip_blocks": None, "settings": {"calibration.answers": 0.5}},
            InputError,
            "flap removes heads and neurons",
        ),
    ],
)
def test_what_cannot_be_is_said_before_the_work(change, error, message, folder, prompts):
    with pytest.raises(error, match=message):
        prunus.prune(folder, **{"calibration": prompts, **RUN, **change})


def test_a_model_without_a_chat_template_is_refused_before_it_is_loaded(prompts, monkeypatch):
    monkeypatch.setattr("prunus.run.inputs.load_weights", None)
    with pytest.raises(CalibrationError, match="this tokenizer has none"):
        prunus.prune(MODELS / "llama", calibration=prompts, **RUN)


def test_experts_do_not_weigh_tokens(folder, prompts, monkeypatch):
    from prunus.model.blocks import Layer

    monkeypatch.setattr(Layer, "expert", 0, raising=False)
    run = {**RUN, "method": "magnitude", "settings": {"calibration.answers": 0.5}}
    with pytest.raises(InputError, match="is an expert"):
        prunus.prune(folder, calibration=prompts, **run)


def test_windows_begin_with_bos_where_that_is_asked_for(folder, monkeypatch):
    """The papers' windows are the default: a window begins anywhere in a document."""
    seen = []
    of = prunus.run.job.Job.of.__func__

    def noted(cls, weights, name, recipe, tokens, *rest):
        seen.append(tokens[0])
        return of(cls, weights, name, recipe, tokens, *rest)

    monkeypatch.setattr(prunus.run.job.Job, "of", classmethod(noted))
    run = {"method": "wanda", "samples": 3, "length": 16, "skip_blocks": "1:3"}
    for bos in ("auto", "yes"):
        prunus.prune(folder, bos=bos, **run)
    papers_ST, first_ST = seen
    bos = prunus.run.inputs.load_tokenizer(folder).bos_token_id
    assert bos not in papers_ST
    assert first_ST[:, 0].tolist() == [bos] * 3
    assert bos not in first_ST[:, 1:]
