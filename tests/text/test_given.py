"""Calibration and evaluation text that is given in Python."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import CalibrationError, InputError
from prunus.text.given import Texts, collect

IDS = torch.randint(2, 500, (4, 32), generator=torch.Generator().manual_seed(0))
STORIES = [f"Once upon a time there were {n} mills by the river. " * 9 for n in range(7)]
CHATS = [
    [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": story}]
    for story in STORIES
]
FAST = {"method": "wanda", "samples": 3, "length": 24}


class Endless(IterableDataset):
    """A stream of samples without an end."""

    def __init__(self, item):
        self.item = item

    def __iter__(self):
        while True:
            yield self.item


def loader(**columns):
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return DataLoader(rows, batch_size=3)


IDS_IN_ALL_FORMS = {
    "torch": IDS,
    "int32": IDS.int(),
    "numpy": IDS.numpy(),
    "uint16": IDS.numpy().astype(np.uint16),
    "rows of torch": list(IDS),
    "rows of numpy": list(IDS.numpy()),
    "rows of one sample": [row[None] for row in IDS],  # GPTQ's way
    "lists": IDS.tolist(),
    "inputs and targets": [(row[None], row[None] * 0) for row in IDS],  # SparseGPT's way
    "a tokenizer's output": {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)},
    "list of dicts": [{"input_ids": row.tolist(), "attention_mask": [1] * 32} for row in IDS],
    "DataLoader of dicts": loader(input_ids=IDS, attention_mask=torch.ones_like(IDS)),
    "DataLoader of tensors": DataLoader(list(IDS), batch_size=3),
    "DataLoader of a TensorDataset": DataLoader(TensorDataset(IDS), batch_size=3),
}


@pytest.mark.parametrize("form", IDS_IN_ALL_FORMS)
def test_token_ids_in_all_forms_are_the_same_ids(form):
    ids = collect(IDS_IN_ALL_FORMS[form], "calibration", 4)
    assert torch.equal(ids, IDS)
    assert ids.dtype == torch.int64


TEXTS_IN_ALL_FORMS = {
    "list": STORIES,
    "tuple": tuple(STORIES),
    "numpy": np.array(STORIES),
    "rows": [{"id": "x", "text": story} for story in STORIES],
    "DataLoader of texts": DataLoader(STORIES, batch_size=3),
    "DataLoader of dicts": loader(text=STORIES),
    "DataLoader left alone": DataLoader(STORIES, batch_size=3, collate_fn=tuple),
}


@pytest.mark.parametrize("form", TEXTS_IN_ALL_FORMS)
def test_texts_in_all_forms_are_the_same_documents(form):
    given = collect(TEXTS_IN_ALL_FORMS[form], "calibration", 1)  # which counts samples of ids
    assert isinstance(given, Texts)
    assert given.documents("calibration", None, None).texts == STORIES


def test_chats_and_one_chat():
    said = [f"Tell me.\n\n{story}" for story in STORIES]
    for form in (CHATS, [{"messages": chat} for chat in CHATS]):
        documents = collect(form, "calibration").documents("calibration", None, None)
        assert documents.texts == said
    assert collect(CHATS[0], "text").documents("calibration", None, None).texts == said[:1]


def test_data_sets_and_data_frames():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"id": list("abcdefg"), "text": STORIES})
    for form in (rows, rows["text"], rows.to_pandas(), rows.to_pandas()["text"]):
        documents = collect(form, "calibration").documents("calibration", None, None)
        assert documents.texts == STORIES
    chats = datasets.Dataset.from_dict({"messages": CHATS})
    assert collect(chats, "text").documents("calibration", None, None).texts[0].endswith(STORIES[0])
    assert torch.equal(collect(datasets.Dataset.from_dict({"input_ids": IDS}), "text"), IDS)
    assert collect(rows, "text").documents("calibration", "id", None).texts == list("abcdefg")
    with pytest.raises(CalibrationError, match=r"DatasetDict of train\. Give one part of it"):
        collect(datasets.DatasetDict(train=rows), "calibration")
    with pytest.raises(CalibrationError, match="IterableDataset, which has no known end"):
        collect(rows.to_iterable_dataset(), "calibration")


def test_a_loader_without_an_end_gives_as_many_samples_as_are_asked_for():
    assert collect(DataLoader(Endless(IDS[0]), batch_size=3), "calibration", 5).shape == (5, 32)
    with pytest.raises(CalibrationError, match="DataLoader of texts without a known end"):
        collect(DataLoader(Endless("text"), batch_size=3), "calibration", 5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "calibration is a SOURCE .* got int"),
        (object(), "got object"),
        (b"text", "got bytes"),
        ([], "an empty list"),
        ((x for x in STORIES), "a generator, which has no known end"),
        ([1.5, 2.5], "got a list of float"),
        ([STORIES[0], 7], "give one or the other|got a list of int"),
        ([STORIES[0], IDS[0]], "token ids and text; give one or the other"),
        ([IDS[0], IDS[0, :9]], "samples of 9 to 32 tokens"),
        (IDS.float(), "has torch.float32 numbers; token ids are integers"),
        (IDS.numpy() / 2, "has torch.float64 numbers"),
        (IDS[0], r"the shape \(32,\); expected \(samples, tokens\)"),
        (IDS[None], r"the shape \(1, 4, 32\)"),
        (IDS[:0], "an empty Tensor"),
        ([{"input_ids": [1, 2], "attention_mask": [0, 1]}], "item 1 is padded"),
        (DataLoader([{"input_ids": [1, 2, 3]}] * 4), "item 1 is 3 tensors of one dimension"),
        (DataLoader(IDS.tolist()), "item 1 is 32 tensors of one dimension"),
        ({"train": STORIES}, r"a dict of train\. Give one part of it"),
        ([{"url": "x"}], "row 1: no text; expected an object"),
        (["", None], "holds no text: 2 null or empty rows"),
    ],
)
def test_type_errors_are_one_line(given, said, tiny_llama):
    model, tokenizer = tiny_llama
    with pytest.raises(CalibrationError, match=said) as raised:
        prunus.prune(model, calibration=given, tokenizer=tokenizer, **FAST)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_texts_given_are_drawn_as_those_of_a_file_are(tmp_path):
    (tmp_path / "s.csv").write_text("text\n" + "\n".join(STORIES) + "\n")
    reports = []
    for form in (STORIES, str(tmp_path / "s.csv")):
        model, tokenizer = load_tiny("llama")
        said = []
        observer = SimpleNamespace(
            say=said.append,
            **{k: lambda *a: None for k in ("block", "sample", "layer", "done")},
        )
        run = {"calibration": form, "tokenizer": tokenizer, "observer": observer}
        result = prunus.prune(model, **run, **FAST)
        reports.append(result.report)
        assert any("7 documents" in line and repr(STORIES[0][:60]) in line for line in said)
    given, file = (report.protocol for report in reports)
    assert given.sha256 == file.sha256
    assert (given.source, file.field) == ("texts given (list of 7)", "text")


def test_prune_plan_quantize_and_evaluate_take_the_same(tmp_path):
    model, tokenizer = load_tiny("llama")
    assert prunus.plan(model, calibration=CHATS, tokenizer=tokenizer, **FAST).coverage > 0.5
    by_hand = prunus.prune(model, tokens_ST=IDS, method="wanda").report.protocol
    model, _ = load_tiny("llama")
    given = prunus.prune(model, calibration=IDS.numpy(), method="wanda").report.protocol
    assert given.sha256 == by_hand.sha256
    model, _ = load_tiny("llama")
    quantised = prunus.quantize(
        model, calibration=STORIES, tokenizer=tokenizer, samples=2, length=16, group=None
    )
    assert quantised.report.protocol.samples == 2
    model, _ = load_tiny("llama")
    smaller = {"method": "goa", "sparsity": 0.3, "length": 24, "samples": 3}
    report = prunus.prune(model, calibration=STORIES, tokenizer=tokenizer, **smaller).report
    assert report.protocol.source == "texts given (list of 7)"
    with pytest.raises(InputError, match="tokens_ST and calibration are both given"):
        prunus.prune(model, tokens_ST=IDS, calibration=STORIES, method="wanda")
    with pytest.raises(InputError, match="bos and field are for text"):
        prunus.prune(model, tokens_ST=IDS, bos="yes", method="wanda")


def test_a_recipe_of_given_texts_says_that_it_cannot_be_run_again(tmp_path):
    prunus.prune(MODELS / "llama", calibration=STORIES, output=tmp_path / "a", **FAST)
    assert "calibration: texts" in (tmp_path / "a" / "recipe.yaml").read_text()
    with pytest.raises(CalibrationError, match="run on texts given in Python"):
        prunus.prune(MODELS / "llama", tmp_path / "a" / "recipe.yaml", output=tmp_path / "b")


def test_evaluate_scores_what_is_given(tiny_llama):
    model, tokenizer = tiny_llama
    whole = tokenizer("\n\n".join(STORIES)).input_ids
    length, windows = 128, len(whole) // 128
    assert windows > 2
    found = prunus.evaluate(model, STORIES, length=length, tokenizer=tokenizer)
    assert (found.windows, found.bos, found.source) == (windows, "auto", "texts given (list of 7)")
    rows = torch.tensor(whole[: windows * length]).view(windows, length)
    for ids in (torch.tensor(whole), np.array([whole]), whole, rows):
        assert prunus.evaluate(model, ids, length=length).perplexity == found.perplexity
    assert prunus.evaluate(model, rows).perplexity == found.perplexity
    assert prunus.evaluate(model, whole[:20]).length == 20
    with pytest.raises(InputError, match=f"rows of {length} tokens, a window each, and length is"):
        prunus.evaluate(model, rows, length=9)
    with pytest.raises(InputError, match="bos and field are for text"):
        prunus.evaluate(model, rows, bos="no")
    with pytest.raises(CalibrationError, match="text is a SOURCE"):
        prunus.evaluate(model, 5)


def test_evaluate_with_and_without_the_first_token(tiny_llama):
    """By hand: windows of 16 tokens that begin with it have 15 of the text."""
    model, tokenizer = tiny_llama
    bos = tokenizer.bos_token_id
    words = tokenizer("\n\n".join(STORIES)).input_ids
    assert words[0] == bos
    words = words[1:]
    for kind, size, before in (("yes", 15, [bos]), ("no", 16, [])):
        losses = []
        for start in range(0, len(words) - size + 1, size):
            ids = torch.tensor([before + words[start : start + size]])
            with torch.no_grad():
                losses.append(float(model(input_ids=ids, labels=ids).loss))
        expected = float(np.exp(np.mean(losses)))
        found = prunus.evaluate(model, STORIES, length=16, tokenizer=tokenizer, bos=kind)
        assert found.perplexity == pytest.approx(expected, rel=1e-5)
        assert (found.windows, found.bos) == (len(losses), kind)


def test_bos_of_calibration_is_recorded(tiny_llama):
    model, tokenizer = tiny_llama
    said = []
    observer = SimpleNamespace(
        say=said.append, **{k: lambda *a: None for k in ("block", "sample", "layer", "done")}
    )
    run = {"calibration": STORIES, "tokenizer": tokenizer, "observer": observer, **FAST}
    protocol = prunus.prune(model, bos="yes", **run).report.protocol
    assert protocol.bos == "yes"
    assert any("bos yes; seed 0" in line for line in said)
    with pytest.raises(InputError, match="--bos no cannot be used with --calibration self"):
        prunus.prune(model, **{**run, "calibration": "self", "bos": "no"})
