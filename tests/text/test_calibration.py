import gzip
import json
import random

import pytest
import torch

from helpers.models import load_tiny
from prunus.base.errors import CalibrationError, UnknownNameError
from prunus.text import Documents, generate, read_documents, sample_windows
from prunus.text.sampling import digest


def characters(text):
    return [ord(c) for c in text]


def papers_loop(texts, samples, length, seed):
    """The authors' loop, as FACTS describes it: draw until longer, then a random window."""
    random.seed(seed)
    windows = []
    for _ in range(samples):
        while True:
            ids = characters(texts[random.randint(0, len(texts) - 1)])
            if len(ids) > length:
                break
        start = random.randint(0, len(ids) - length - 1)
        windows.append(ids[start : start + length])
    return torch.tensor(windows)


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_windows_are_the_papers_draw_for_draw(seed):
    maker = random.Random(5)
    texts = ["".join(maker.choices("abcdefgh", k=maker.randint(1, 60))) for _ in range(40)]
    ids_ST, protocol = sample_windows(
        Documents("d", texts), characters, samples=12, length=30, seed=seed
    )
    assert torch.equal(ids_ST, papers_loop(texts, 12, 30, seed))
    assert protocol.sha256 == digest(ids_ST)
    assert (protocol.documents, protocol.concatenated) == (40, False)


def one_text_loop(ids, samples, length, seed):
    """The authors' loop over WikiText-2 or Penn Treebank: one stream of ids, no document drawn."""
    random.seed(seed)
    starts = [random.randint(0, len(ids) - length - 1) for _ in range(samples)]
    return starts, torch.tensor([ids[start : start + length] for start in starts])


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_one_document_uses_no_random_number_up(seed):
    """Of 90,000 starts the first three of seed 0 are those of Wanda's and SparseGPT's code."""
    text = "".join(map(chr, random.Random(1).choices(range(32, 5000), k=90_100)))
    ids_ST, protocol = sample_windows(
        Documents("d", [text]), characters, samples=6, length=100, seed=seed
    )
    starts, expected_ST = one_text_loop(characters(text), 6, 100, seed)
    assert torch.equal(ids_ST, expected_ST)
    assert seed or starts[:3] == [50494, 55125, 5306]
    assert (protocol.documents, protocol.documents_used, protocol.concatenated) == (1, 1, False)


@pytest.mark.parametrize("texts", [["abcdefghijklm"], ["abcdefghijklm", "nopqrstuvw", "x"]])
def test_tokens_that_several_windows_have_are_counted_once(texts):
    """Every character of the texts is another one, so that those of all windows can be counted."""
    for seed in range(20):
        ids_ST, protocol = sample_windows(
            Documents("d", texts), characters, samples=3, length=5, seed=seed
        )
        assert protocol.distinct == len(ids_ST.unique()) / ids_ST.numel()
        assert (protocol.distinct < 0.9) == ("overlap" in str(protocol))


def test_one_document_of_just_a_window_is_that_window():
    ids_ST, protocol = sample_windows(
        Documents("d", ["abcdef"]), characters, samples=2, length=6, seed=0
    )
    assert ids_ST.tolist() == [characters("abcdef")] * 2
    assert protocol.concatenated


def test_a_document_must_be_longer_than_the_window_not_equal():
    documents = Documents("d", ["a" * 10, "b" * 11])
    ids_ST, _ = sample_windows(documents, characters, samples=5, length=10, seed=0)
    assert set(ids_ST.flatten().tolist()) == {ord("b")}


def test_short_documents_are_run_together_and_it_says_so():
    documents = Documents("d", ["ab", "cd", "ef"])
    ids_ST, protocol = sample_windows(documents, characters, samples=4, length=5, seed=0)
    assert ids_ST.shape == (4, 5)
    assert protocol.concatenated
    assert "from 3 of 3 documents run together, since none is longer" in str(protocol)
    whole, _ = sample_windows(documents, characters, samples=1, length=6, seed=0)
    assert sorted(whole[0].tolist()) == characters("abcdef")


def test_too_little_text_names_the_cure():
    with pytest.raises(CalibrationError, match="has 6 tokens in all, fewer than one window of 7"):
        sample_windows(Documents("d", ["abc", "def"]), characters, samples=1, length=7, seed=0)


def test_every_file_format(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\r\ntwo é".encode())
    (tmp_path / "b.raw").write_text("raw")
    (tmp_path / "c.jsonl").write_text(
        '{"text": "first", "url": "x"}\n\n"second"\n{"body": "3rd"}\n'
    )
    with gzip.open(tmp_path / "d.json.gz", "wt") as file:
        file.write(json.dumps({"text": "zipped"}) + "\n")
    read = {p.name: read_documents(str(p), "calibration").texts for p in tmp_path.iterdir()}
    assert read == {
        "a.txt": ["one\r\ntwo é"],
        "b.raw": ["raw"],
        "c.jsonl": ["first", "second", "3rd"],
        "d.json.gz": ["zipped"],
    }
    (tmp_path / "ignored.png").write_bytes(b"\x89")
    together = read_documents(str(tmp_path), "evaluation")
    assert together.texts == ["one\r\ntwo é", "raw", "first", "second", "3rd", "zipped"]
    assert together.joined().startswith("one\r\ntwo é\n\nraw")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"id": [1, 2], "text": ["x", "y"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read_documents(str(tmp_path / "t.parquet"), "calibration").texts == ["x", "y"]
    words = pyarrow.array(["p", "q", "p"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": words}), tmp_path / "coded.parquet")
    assert read_documents(str(tmp_path / "coded.parquet"), "calibration").texts == ["p", "q", "p"]
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(CalibrationError, match="not a parquet file"):
        read_documents(str(tmp_path / "bad.parquet"), "calibration")


def test_known_names_below_a_data_folder(tmp_path):
    folder = tmp_path / "wikitext2"
    folder.mkdir()
    (folder / "wiki.test.raw").write_text("test text")
    (folder / "wiki.train.raw").write_text("train text")
    (folder / "wiki.valid.raw").write_text("validation text")
    (tmp_path / "c4-sample.jsonl").write_text('{"text": "web"}\n{"text": "page"}\n')
    assert read_documents("wikitext2", "calibration", tmp_path).texts == ["train text"]
    found = read_documents("wikitext2", "evaluation", tmp_path)
    assert found.texts == ["test text"]
    assert found.name == "wikitext2 (wikitext2/wiki.test.raw)"
    assert len(found.lines()) == 1
    web = read_documents("c4", "evaluation", tmp_path)
    assert web.joined() == "web page"
    assert "c4-sample.jsonl, so calibration and evaluation read the same" in web.lines()[1]
    (folder / "wiki.test.raw").unlink()
    assert read_documents("wikitext2", "evaluation", tmp_path).texts == ["validation text"]
    (folder / "wiki.train.raw").unlink()
    with pytest.raises(
        CalibrationError, match=r"only wiki\.valid\.raw, by their names the other split"
    ):
        read_documents("wikitext2", "calibration", tmp_path)


LINES = [" \n", " = Plums = \n", " \n", " Plums are fruit . \n", " = = Stones = = \n", " \n"]
ROWS = ["", " = Plums = \n", "", " Plums are fruit . \n", " = = Stones = = \n", ""]  # on the hub
JOINED = "\n\n = Plums = \n\n\n\n\n Plums are fruit . \n\n\n = = Stones = = \n\n\n"


@pytest.mark.parametrize("where", ["file", "windows file", "rows", "hub"])
def test_wikitext_is_the_papers_text_from_the_hub_and_from_its_file(where, tmp_path, monkeypatch):
    """The rows of ``datasets`` are lines with their ends, blank ones empty; papers join those."""
    data_dir = None if where == "hub" else tmp_path
    (tmp_path / "wikitext2").mkdir()
    for split in ("train", "test"):
        content = "".join(LINES).replace("\n", "\r\n" if "windows" in where else "\n")
        name = f"wiki.{split}.raw"
        if where == "rows":  # a download of the hub's rows
            name = f"{split}.jsonl"
            content = "".join(json.dumps({"text": row}) + "\n" for row in ROWS)
        (tmp_path / "wikitext2" / name).write_bytes(content.encode())
    if where == "hub":
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: {"text": ROWS})
    scored = read_documents("wikitext2", "evaluation", data_dir)
    assert scored.texts == ROWS
    assert scored.joined() == JOINED
    assert scored.reading == "6 rows joined by blank lines"
    assert read_documents("wikitext2", "calibration", data_dir).texts == [" ".join(ROWS)]
    if "windows" not in where:  # whose ends are part of how the text lies
        for split in ("evaluation", "calibration"):
            found = read_documents("wikitext2-raw", split, data_dir)
            assert (found.texts, found.reading) == (["".join(LINES)], "as it lies")


def test_a_file_by_its_path_is_scored_as_it_lies_and_says_so(tmp_path):
    path = tmp_path / "wiki.test.raw"
    path.write_text("".join(LINES))
    found = read_documents(str(path), "evaluation")
    assert (found.joined(), found.reading) == ("".join(LINES), "as it lies")
    assert found.lines()[1:] == [
        "wiki.test.raw is scored as it lies; papers join the rows of WikiText-2 by blank lines: "
        "--text wikitext2"
    ]
    assert len(read_documents(str(path), "calibration").lines()) == 1


@pytest.mark.parametrize("where", ["file", "hub"])
def test_penn_treebank_is_its_stripped_lines_joined_by_spaces(where, tmp_path, monkeypatch):
    data_dir = None if where == "hub" else tmp_path
    for split in ("train", "test"):
        (tmp_path / f"ptb.{split}.txt").write_text(" no it was n't \n it 's <unk> \n")
    if where == "hub":
        pytest.importorskip("datasets")
        rows = {"sentence": ["no it was n't", "it 's <unk>"]}
        monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: rows)
    scored = read_documents("ptb", "evaluation", data_dir)
    assert scored.joined() == "no it was n't it 's <unk>"
    assert scored.reading == "2 rows joined by spaces"
    calibration = read_documents("ptb", "calibration", data_dir)
    assert calibration.texts == ["no it was n't it 's <unk>"]


def test_lambada_is_never_calibrated_on_what_is_scored(tmp_path, monkeypatch):
    (tmp_path / "lambada_test.jsonl").write_text('{"text": "the test passage"}\n')
    with pytest.raises(CalibrationError, match=r"only lambada_test\.jsonl, .*Give the file's own"):
        read_documents("lambada", "calibration", tmp_path)
    own = read_documents(str(tmp_path / "lambada_test.jsonl"), "calibration")
    assert (own.texts, own.split) == (["the test passage"], "test")
    (tmp_path / "lambada_test_plain_text.txt").write_text("the test passage , again\n")
    (tmp_path / "lambada_development_plain_text.txt").write_text("one passage\nanother\n")
    scored = read_documents("lambada", "evaluation", tmp_path)
    assert (scored.texts, scored.split, scored.last_word) == (["the test passage"], "test", True)
    other = read_documents("lambada", "calibration", tmp_path)
    assert (other.texts, other.split) == (["one passage", "another"], "validation")
    pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *a, **k: asked.append((*a, k["split"])) or {"text": ["p"]}
    )
    assert "cimec/lambada" in read_documents("lambada", "calibration").name
    read_documents("lambada", "evaluation")
    assert asked == [("cimec/lambada", "validation"), ("EleutherAI/lambada_openai", "test")]


def test_a_data_folder_is_the_only_place_looked_at(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: 1 / 0)
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CalibrationError, match="holds no folder c4/ and no file"):
            read_documents("c4", "calibration", folder)


def test_bad_sources_each_have_a_sentence(tmp_path):
    with pytest.raises(UnknownNameError, match=r"'wikitxt2'\. Did you mean 'wikitext2'"):
        read_documents("wikitxt2", "calibration")
    with pytest.raises(CalibrationError, match="does not exist"):
        read_documents("no/such.txt", "calibration")
    for name, content, message in [
        ("empty.txt", b" \n", "holds no text"),
        ("latin.txt", b"\xff\xfe\xfa", "not UTF-8"),
        ("bad.jsonl", b'{"text": "ok"}\n{', "line 2: not JSON"),
        ("none.jsonl", b'{"n": 1}\n', "no text; expected an object"),
        ("x.png", b"", "cannot read .png"),
        ("half.jsonl", b'{"text": "\\ud800"}', "an unpaired surrogate"),
        ("deep.jsonl", b"[" * 200_000, "damaged"),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999)[:40], "damaged"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CalibrationError, match=message):
            read_documents(str(tmp_path / name), "calibration")
    (tmp_path / "sub").mkdir()
    with pytest.raises(CalibrationError, match="holds no text file"):
        read_documents(str(tmp_path / "sub"), "calibration")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise ConnectionError("no route\nsecond line")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(CalibrationError, match=r"could not be read from the hub: no route\. Give"):
        read_documents("c4", "calibration")


def test_a_hub_data_set_is_read_as_the_papers_read_it(monkeypatch):
    pytest.importorskip("datasets")
    asked = []

    def load(path, **arguments):
        asked.append((path, arguments))
        return {"text": ["a", "", "b"]}

    monkeypatch.setattr("datasets.load_dataset", load)
    assert read_documents("wikitext2", "calibration").texts == ["a  b"]
    # blank rows are joined too: every window after them would move
    assert read_documents("wikitext2", "evaluation").joined() == "a\n\n\n\nb"
    assert read_documents("c4", "calibration").texts == ["a", "b"]
    assert read_documents("c4", "evaluation").windows == 256
    assert asked[0] == ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "train"})


def test_builtin_text_is_split_into_halves_that_do_not_meet():
    calibration = read_documents("builtin", "calibration")
    evaluation = read_documents("builtin", "evaluation")
    for held_out in evaluation.texts:  # Python stores some topics twice, some inside of others
        assert not any(held_out.strip() in text for text in calibration.texts)
        assert not any(text.strip() in held_out for text in calibration.texts)
    assert len(calibration.texts) > 3 * len(evaluation.texts)
    assert len(evaluation.joined()) > 50_000


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # with and without a first token
def test_the_model_writes_its_own_text(family):
    model, tokenizer = load_tiny(family)
    before = torch.random.get_rng_state()
    ids_ST, protocol = generate(model, tokenizer, samples=18, length=40, seed=3)
    assert ids_ST.shape == (18, 40)
    assert torch.equal(before, torch.random.get_rng_state())
    again, _ = generate(model, tokenizer, samples=18, length=40, seed=3)
    other, _ = generate(model, tokenizer, samples=18, length=40, seed=4)
    assert torch.equal(ids_ST, again)
    assert not torch.equal(ids_ST, other)
    assert len({tuple(ids_T.tolist()) for ids_T in ids_ST}) == 18
    assert "written by the model" in str(protocol)


def test_the_checkpoints_own_generation_settings_do_not_shape_the_text(tiny_llama):
    model, tokenizer = tiny_llama
    plain, _ = generate(model, tokenizer, samples=4, length=40, seed=0)
    theirs = model.generation_config
    theirs.update(temperature=0.05, top_p=0.1, repetition_penalty=5.0, no_repeat_ngram_size=1)
    again, _ = generate(model, tokenizer, samples=4, length=40, seed=0)
    assert torch.equal(plain, again)
    assert model.generation_config is theirs


def test_the_model_writes_from_its_whole_distribution(tiny_llama):
    """At temperature 1 and no top-k, text is as surprising to the model as its own entropy says."""
    model, tokenizer = tiny_llama
    ids_ST, _ = generate(model, tokenizer, samples=32, length=120, seed=0)
    with torch.no_grad():
        log_p = model(input_ids=ids_ST).logits[:, :-1].log_softmax(-1)
    entropy = float(-(log_p.exp() * log_p).sum(-1).mean())
    surprise = float(-log_p.gather(2, ids_ST[:, 1:, None]).mean())
    assert surprise == pytest.approx(entropy, rel=0.03)


def test_what_the_model_writes_is_likelier_than_noise(tiny_llama):
    model, tokenizer = tiny_llama
    ids_ST, _ = generate(model, tokenizer, samples=4, length=100, seed=0)
    noise_ST = torch.randint(0, 500, (4, 100))
    with torch.no_grad():
        written, random_text = (
            float(model(input_ids=x, labels=x).loss) for x in (ids_ST, noise_ST)
        )
    assert written < random_text / 2
