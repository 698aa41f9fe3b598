"""Texts as people have them: dialects of rows, formats of files, splits, the first token."""

import csv
import gzip
import hashlib
import io
import json
import random
import sys
from pathlib import Path

import pytest
import torch

from helpers.models import MODELS, load_tiny
from prunus.base.errors import CalibrationError, InputError, UnknownNameError
from prunus.text import Documents, read_documents, sample_windows
from prunus.text.bos import missing_bos, stream_with
from prunus.text.dialects import RowReader
from prunus.text.sampling import digest
from prunus.text.tokens import tokenize

PROSE = "Once upon a time a miller had three sons."
CHAT = [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": PROSE}]

DIALECTS = {  # a row, the text that it is, and the fields that are named
    "text before all": ({"content": "x", "text": PROSE, "url": "u"}, PROSE, "text"),
    "repository": ({"repo": "a/b", "path": "c.py", "content": PROSE}, PROSE, "content"),
    "crawl": ({"url": "u", "raw_content": PROSE, "digest": "d"}, PROSE, "raw_content"),
    "Alpaca": (
        {"instruction": "Tell me.", "input": "A fact.", "output": PROSE},
        f"Tell me.\n\nA fact.\n\n{PROSE}",
        "instruction+input+output",
    ),
    "Alpaca without input": (
        {"instruction": "Tell me.", "input": "", "output": PROSE},
        f"Tell me.\n\n{PROSE}",
        "instruction+input+output",
    ),
    "Dolly": (
        {"instruction": "Tell me.", "context": "", "response": PROSE, "category": "qa"},
        f"Tell me.\n\n{PROSE}",
        "instruction+context+response",
    ),
    "ShareGPT": (
        {
            "id": "identity_0",
            "conversations": [
                {"from": "human", "value": "Tell me."},
                {"from": "gpt", "value": PROSE},
            ],
        },
        f"Tell me.\n\n{PROSE}",
        "conversations",
    ),
    "OpenAI": ({"messages": CHAT, "source": "s"}, f"Tell me.\n\n{PROSE}", "messages"),
    "OpenAI in parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "See."}]},
                {"role": "assistant", "content": PROSE},
            ]
        },
        f"See.\n\n{PROSE}",
        "messages",
    ),
    "messages in a string": ({"messages": json.dumps(CHAT)}, f"Tell me.\n\n{PROSE}", "messages"),
    "UltraChat": ({"id": "7", "data": ["Tell me.", PROSE]}, f"Tell me.\n\n{PROSE}", "data"),
    "UltraChat 200k": (
        {"prompt": "Tell me.", "prompt_id": "7", "messages": CHAT},
        f"Tell me.\n\n{PROSE}",
        "messages",
    ),
    "Capybara": (
        {"source": "s", "conversation": [{"input": "Tell me.", "output": PROSE}]},
        f"Tell me.\n\n{PROSE}",
        "conversation",
    ),
    "prompt and completion": (
        {"prompt": "Once upon", "completion": " a time"},
        "Once upon a time",
        "prompt+completion",
    ),
    "prompt and completion without a space": (
        {"prompt": "Tell me.", "completion": PROSE},
        f"Tell me.\n\n{PROSE}",
        "prompt+completion",
    ),
    "preferences": (
        {"prompt": "Tell me.", "chosen": CHAT, "rejected": CHAT[:1]},
        f"Tell me.\n\n{PROSE}",
        "prompt+chosen",
    ),
    "preferences, the answer alone": (
        {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": []},
        f"Tell me.\n\n{PROSE}",
        "prompt+chosen",
    ),
    "preferences as text": ({"chosen": PROSE, "rejected": "No."}, PROSE, "chosen"),
    "OpenOrca": (
        {"id": "i", "system_prompt": "Be kind.", "question": "Why?", "response": "So."},
        "Be kind.\n\nWhy?\n\nSo.",
        "system_prompt+question+response",
    ),
    "GSM8K": ({"question": "How many?", "answer": "12"}, "How many?\n\n12", "question+answer"),
    "BoolQ": (
        {"question": "is it", "passage": PROSE, "answer": True},
        f"{PROSE}\n\nis it\n\nyes",
        "passage+question+answer",
    ),
    "SQuAD": (
        {
            "id": "i",
            "title": "t",
            "context": PROSE,
            "question": "How many sons?",
            "answers": {"text": ["three", "3"], "answer_start": [31, 31]},
        },
        f"{PROSE}\n\nHow many sons?\n\nthree",
        "context+question+answers",
    ),
    "MMLU": (
        {"question": "How many?", "choices": ["1", "2", "3"], "answer": 1, "subject": "s"},
        "How many?\n\n2",
        "question+choices+answer",
    ),
    "ARC": (
        {
            "id": "i",
            "question": {"stem": "How many?", "choices": [{"text": "one", "label": "A"}]},
            "answerKey": "A",
        },
        "How many?\n\none",
        "question+answerKey",
    ),
    "HellaSwag": (
        {"ind": 4, "ctx": "He", "endings": ["sat.", "ran."], "label": "1"},
        "He\n\nran.",
        "ctx+endings+label",
    ),
}


def write(folder: Path, rows, name="rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_is_read_by_the_names_of_its_fields(name, tmp_path):
    row, text, field = DIALECTS[name]
    documents = read_documents(write(tmp_path, [row, row]), "calibration")
    assert documents.texts == [text, text]
    assert documents.field == field
    assert f"2 documents, field {field}; the first begins {text[:60]!r}" in documents.lines()[0]


@pytest.mark.parametrize(
    "row",
    [
        {"id": "row1", "url": "http://example.org/1"},
        {"file_name": "a.png", "caption": PROSE},
        {"instruction": "Tell me."},
        {"premise": PROSE, "hypothesis": PROSE, "label": 1},
    ],
)
def test_anything_else_stops_and_asks_for_the_field(row, tmp_path):
    with pytest.raises(CalibrationError, match="Say which holds the text: --field NAME") as said:
        read_documents(write(tmp_path, [row]), "calibration")
    assert ", ".join(row) in str(said.value)


def test_a_named_field_is_read_and_no_other(tmp_path):
    rows = [{"caption": PROSE, "text": "no"}, {"caption": None, "text": "no"}, {"text": "no"}]
    source = write(tmp_path, rows)
    documents = read_documents(source, "calibration", field="caption")
    assert (documents.texts, documents.field, documents.skipped) == ([PROSE], "caption", 2)
    with pytest.raises(CalibrationError, match=r"no field 'capton'; it has caption, text\."):
        read_documents(source, "calibration", field="capton")
    (tmp_path / "plain.txt").write_text(PROSE)
    with pytest.raises(CalibrationError, match="has no fields, so --field text"):
        read_documents(str(tmp_path / "plain.txt"), "calibration", field="text")
    lines = write(tmp_path, [{"lines": ["a", "b"], "n": 1}], "lines.jsonl")
    assert read_documents(lines, "calibration", field="lines").texts == ["a\nb"]
    with pytest.raises(CalibrationError, match="the field n holds int, which is no text"):
        read_documents(lines, "calibration", field="n")


def test_null_and_empty_rows_are_counted(tmp_path):
    rows = [{"text": PROSE}, {"text": None}, {"text": " \n"}, None, {"messages": []}]
    documents = read_documents(write(tmp_path, rows), "calibration")
    assert (documents.texts, documents.skipped) == ([PROSE], 4)
    assert "4 null or empty rows skipped" in documents.lines()[0]
    # scored text keeps its blank rows, as the papers join them
    scored = read_documents(write(tmp_path, rows), "evaluation")
    assert (scored.texts, scored.skipped) == ([PROSE, " \n"], 3)


def test_rows_that_are_all_null_are_no_text(tmp_path):
    rows = [{"id": f"row{i}", "text": None} for i in range(30)]
    with pytest.raises(CalibrationError, match="30 null or empty rows in the field text"):
        read_documents(write(tmp_path, rows), "calibration")
    with pytest.raises(CalibrationError, match=r"rows\.jsonl holds no text"):
        read_documents(write(tmp_path, []), "calibration")


def test_rows_of_several_kinds_are_each_read_and_named(tmp_path):
    rows = [{"text": "a"}, {"content": "b"}, "c", {"text": "d"}, CHAT]
    documents = read_documents(write(tmp_path, rows), "calibration")
    assert documents.texts == ["a", "b", "c", "d", f"Tell me.\n\n{PROSE}"]
    assert documents.field == "text, content"
    with pytest.raises(CalibrationError, match="line 2: no text; expected an object"):
        read_documents(write(tmp_path, [{"text": "a"}, {"id": "b"}]), "calibration")
    with pytest.raises(CalibrationError, match="line 1: the field text holds int"):
        read_documents(write(tmp_path, [{"text": 5, "body": PROSE}]), "calibration")


class Template:
    """A tokenizer with a chat template that refuses systems."""

    bos_token, bos_token_id, chat_template = "<s>", 0, "yes"

    def __init__(self, adds):
        self.adds = adds

    def __call__(self, text):
        return type("Ids", (), {"input_ids": [0, 5] if self.adds else [5]})

    def apply_chat_template(self, messages, tokenize):
        assert not tokenize
        if messages[0]["role"] == "system":
            raise ValueError("no systems")
        return "<s>" + "".join(f"[{m['role']}]{m['content']}" for m in messages)


def test_chats_go_through_the_template_with_one_first_token(tmp_path):
    system = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Why?"}]
    source = write(tmp_path, [{"messages": CHAT}, {"conversations": system}])
    said = f"[user]Tell me.[assistant]{PROSE}"
    documents = read_documents(source, "calibration", tokenizer=Template(adds=False))
    assert documents.texts == [f"<s>{said}", "Be kind.\n\nWhy?"]
    assert documents.lines()[1].startswith("the chat template refuses 1 of the chats")
    documents = read_documents(source, "calibration", tokenizer=Template(adds=True))
    assert documents.texts[0] == said  # the tokenizer puts its own before it


def test_a_real_chat_template(tmp_path):
    _, tokenizer = load_tiny("llama")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    texts = read_documents(
        write(tmp_path, [{"messages": CHAT}]), "calibration", tokenizer=tokenizer
    ).texts
    assert texts == [f"<user>Tell me.<assistant>{PROSE}"]
    assert tokenize(tokenizer, texts[0]).count(tokenizer.bos_token_id) == 1


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    if name.endswith(".zst"):
        if sys.version_info >= (3, 14):
            from compression import zstd

            return zstd.compress(content[:9]) + zstd.compress(content[9:])
        zstandard = pytest.importorskip("zstandard")
        return zstandard.compress(content[:9]) + zstandard.compress(content[9:])  # two frames
    return content


LONG = 'He said "yes, no",\nand more. ' * 8000  # longer than the cell that Python's csv allows


def as_csv(delimiter=","):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\r\n")
    writer.writerows([["id", "text"], ["1", LONG], ["2", ""], ["3", "é"]])
    return file.getvalue().encode()


ROWS = [{"id": 1, "text": LONG}, {"id": 2, "text": None}, {"id": 3, "text": "é"}]
LINES = "\n".join(map(json.dumps, ROWS)).encode()
CONTENT = {
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".JSON": LINES,  # as C4 names its lines
    ".jsonl": LINES,
    ".csv": as_csv(),
    ".tsv": as_csv("\t"),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
@pytest.mark.parametrize("press", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", CONTENT)
def test_every_format_compressed_or_not(kind, press, mark, tmp_path):
    path = tmp_path / f"rows{kind}{press}"
    path.write_bytes(packed(path.name, mark + CONTENT[kind]))
    documents = read_documents(str(path), "calibration")
    assert documents.texts == [LONG, "é"]
    assert (documents.field, documents.skipped) == ("text", 1)
    plain = tmp_path / f"plain.txt{press}"
    plain.write_bytes(packed(plain.name, mark + b"one\r\ntwo"))
    assert read_documents(str(plain), "evaluation").texts == ["one\r\ntwo"]


def test_a_byte_order_mark_within_a_row_is_no_text_either(tmp_path):
    assert read_documents(write(tmp_path, [{"text": "\ufeffa"}]), "calibration").texts == ["a"]


def test_one_object_in_a_json_file_is_one_row(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"text": PROSE}, indent=2))
    assert read_documents(str(tmp_path / "one.json"), "calibration").texts == [PROSE]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[{"text": "x"},', "a.json: not JSON"),
        ("a.json", b"{\n", "line 1: not JSON"),
        ("a.json", b"[1]", "row 1: no text; a row is a string, a chat, or an object"),
        ("a.csv", b"id,text\n1,a, b\n", "line 2: more cells than the 2 columns"),
        ("a.csv", b'id,text\n1,"a\n', "not a table"),
        ("a.csv", b"id;text\n1;a\n", "it has id;text. Say which"),
        ("a.csv", b"id,text\n", "holds no text"),
        ("a.csv", b"", "holds no text"),
        ("a.json", b"", "holds no text"),
        ("a.txt.gz", b"plain", "damaged"),
    ],
)
def test_bad_files_each_have_a_sentence(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=said):
        read_documents(str(tmp_path / name), "calibration")


def test_a_zst_file_that_was_cut_off_is_no_shorter_text(tmp_path):
    path = tmp_path / "a.txt.zst"
    whole = packed(path.name, bytes(range(97, 123)) * 999)
    for content in (whole[:-6], b"none" + whole):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match="damaged"):
            read_documents(str(path), "calibration")


def test_zst_without_its_package_names_the_cure(tmp_path, monkeypatch):
    if sys.version_info >= (3, 14):
        pytest.skip("Python reads .zst by itself")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.txt.zst").write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"pip install 'prunus\[zst\]'"):
        read_documents(str(tmp_path / "a.txt.zst"), "calibration")


def test_parquet_of_every_string_type_and_of_chats(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    words, path = ["p", None, "q"], str(tmp_path / "t.parquet")
    kinds = [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()]
    if hasattr(pyarrow, "string_view"):
        kinds.append(pyarrow.string_view())
    columns = [pyarrow.array(words, type=kind) for kind in kinds]
    columns.append(pyarrow.array(words).dictionary_encode())
    for column in columns:
        ids = pyarrow.array(["x", "y", "z"])
        parquet.write_table(pyarrow.table({"id": ids, "text": column}), path)
        documents = read_documents(path, "calibration")
        assert (documents.texts, documents.skipped) == (["p", "q"], 1), column.type
    chats = pyarrow.array([CHAT, [{**CHAT[0], "tool_calls": "t"}]])
    parquet.write_table(pyarrow.table({"id": pyarrow.array([1, 2]), "messages": chats}), path)
    assert read_documents(path, "calibration").texts == [f"Tell me.\n\n{PROSE}", "Tell me."]
    parquet.write_table(pyarrow.table({"id": ["a"], "html": ["b"]}), path)
    with pytest.raises(CalibrationError, match=r"it has id, html\. Say which"):
        read_documents(path, "calibration")
    assert read_documents(path, "calibration", field="html").texts == ["b"]
    with pytest.raises(CalibrationError, match="no field 'text'; it has id, html"):
        read_documents(path, "calibration", field="text")


def test_tables_beside_other_texts_of_a_folder_are_not_read_and_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "info.json").write_text('{"splits": 2}')
    documents = read_documents(str(tmp_path), "calibration")
    assert documents.texts == ["a"]
    assert documents.lines()[1].endswith("so these files are not read: info.json")
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "info.json").write_text('[{"text": "b"}]')
    assert read_documents(str(tmp_path), "calibration").texts == ["b"]


def test_a_known_name_is_never_a_folder(tmp_path, monkeypatch):
    here, elsewhere = tmp_path / "here", tmp_path / "data"
    for folder, text in ((here, "here"), (elsewhere, "data")):
        (folder / "wikitext2").mkdir(parents=True)
        for part in ("test", "train", "valid"):
            (folder / "wikitext2" / f"wiki.{part}.raw").write_text(f"{text} {part}")
    monkeypatch.chdir(here)
    for split, part in (("calibration", "train"), ("evaluation", "test")):
        documents = read_documents("wikitext2", split, elsewhere)
        assert (documents.texts, documents.split) == ([f"data {part}"], part)
        assert f"split {part}" in documents.lines()[0]
    folder = read_documents("./wikitext2", "calibration", elsewhere)
    assert folder.texts == ["here test", "here train", "here valid"]
    assert folder.split == "test and train and validation"
    assert "is read as a whole, test and train and validation" in folder.lines()[1]
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: {"text": ["hub"]})
    documents = read_documents("wikitext2", "calibration")
    assert (documents.texts, documents.split) == (["hub"], "train")
    assert read_documents("wikitext2", "evaluation").split == "test"
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: 1 / 0)
    with pytest.raises(CalibrationError, match=r"The folder wikitext2/ here is \./wikitext2"):
        read_documents("wikitext2", "calibration")


def test_token_ids_of_defaults_are_those_of_before_there_were_dialects(tmp_path):
    """SHA-256 computed by the version before ``field`` and ``bos`` existed."""
    maker = random.Random(5)
    texts = [
        " ".join(
            "".join(maker.choices("abcdefgh", k=maker.randint(1, 9)))
            for _ in range(maker.randint(1, 60))
        )
        for _ in range(40)
    ]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == "a945702efd5da5c5"
    rows = write(tmp_path, [{"url": "x", "text": t} for t in [*texts[:3], " ", *texts[3:]]])
    (tmp_path / "plain.txt").write_bytes("\r\n".join(texts).encode())
    plain = str(tmp_path / "plain.txt")
    _, tokenizer = load_tiny("llama")

    def drawn(source, length):
        documents = read_documents(source, "calibration")
        words = lambda text: tokenize(tokenizer, text)  # noqa: E731
        return sample_windows(documents, words, samples=6, length=length, seed=3)[1].sha256

    def scored(source):
        ids = tokenize(tokenizer, read_documents(source, "evaluation").joined())
        return digest(torch.tensor(ids))

    assert drawn(rows, 40)[:16] == "9ed60d3eed558e65"
    assert drawn(rows, 900)[:16] == "72fd426413d1dae5"  # documents run together
    one = tokenize(tokenizer, "\r\n".join(texts))  # no document is drawn, so it starts elsewhere
    draw = random.Random(3)
    starts = [draw.randint(0, len(one) - 40 - 1) for _ in range(6)]
    assert drawn(plain, 40) == digest(torch.tensor([one[start : start + 40] for start in starts]))
    assert scored(rows)[:16] == "7d0024dc5d37de76"
    assert scored(plain)[:16] == "2193985cf50eda8e"


@pytest.mark.parametrize("long", [True, False], ids=["long", "run together"])
def test_windows_with_and_without_the_first_token(long):
    _, tokenizer = load_tiny("llama")
    bos = tokenizer.bos_token_id
    documents = Documents("d", ["words and more of them " * (60 if long else 2)] * 20)

    def drawn(kind, first=None):
        words = lambda text: tokenize(tokenizer, text, kind)  # noqa: E731
        ids_ST, protocol = sample_windows(
            documents, words, samples=32, length=64, seed=0, first=first
        )
        assert ids_ST.shape == (32, 64)
        assert (protocol.length, protocol.sha256) == (64, digest(ids_ST))
        return ids_ST

    auto_ST, yes_ST, no_ST = drawn("auto"), drawn("yes", bos), drawn("no")
    assert (auto_ST[:, 0] == bos).sum() < 32
    assert bool((yes_ST[:, 0] == bos).all())
    assert int((yes_ST == bos).sum()) == 32
    assert int((no_ST == bos).sum()) == 0


def test_every_window_of_a_stream_begins_with_the_first_token():
    assert stream_with(torch.arange(1, 8), 0, 4).tolist() == [0, 1, 2, 3, 0, 4, 5, 6, 0, 7]
    assert stream_with(torch.tensor([5, 6]), 0, 2).tolist() == [0, 5, 0, 6]


def test_gemma_is_warned_of_windows_without_it():
    model, tokenizer = load_tiny("gemma")
    windows_NL = torch.tensor([[tokenizer.bos_token_id, 5], [6, 7], [8, 9]])
    said = missing_bos(model, tokenizer, windows_NL, "auto")
    assert said is not None
    assert "2 of 3 windows begin without it. --bos yes" in said
    assert missing_bos(model, tokenizer, windows_NL[:1], "auto") is None
    assert missing_bos(model, tokenizer, windows_NL, "no") is None  # asked for
    llama, words = load_tiny("llama")
    assert missing_bos(llama, words, windows_NL, "auto") is None


def test_the_reader_reads_a_column_only_where_a_table_has_it():
    reader = RowReader()
    assert reader.columns("t", ["id", "url", "messages", "prompt"]) == ["messages"]
    assert RowReader("url").columns("t", ["id", "url"]) == ["url"]
    assert RowReader("html").columns("t", ["id", "url"]) == []


def test_values_of_bos(tmp_path):
    from prunus.recipe import Recipe
    from prunus.text.bos import first_token

    _, tokenizer = load_tiny("llama")
    assert first_token(tokenizer, "yes") == tokenizer.bos_token_id
    assert first_token(tokenizer, "auto") is first_token(tokenizer, "no") is None
    tokenizer.bos_token = None
    with pytest.raises(InputError, match="no beginning-of-text token"):
        first_token(tokenizer, "yes")
    with pytest.raises(UnknownNameError, match="value of bos 'maybe'"):
        first_token(tokenizer, "maybe")
    (tmp_path / "r.yaml").write_text("method: ria\nbos: no\nfield: caption\n")
    recipe = Recipe.read(tmp_path / "r.yaml")  # YAML's no is false
    assert (recipe.bos, recipe.field) == ("no", "caption")
    (tmp_path / "r.yaml").write_text(recipe.to_yaml("m"))
    assert Recipe.read(tmp_path / "r.yaml") == recipe
    with pytest.raises(InputError, match="bos: Input should be 'auto', 'yes' or 'no'"):
        Recipe.of(method="ria", bos="maybe")


def test_the_command_line_reads_a_field_and_begins_windows_with_bos(tmp_path):
    from typer.testing import CliRunner

    from prunus.cli.main import app

    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    source = write(tmp_path, [{"id": "i", "caption": PROSE * 9}, {"id": "j", "caption": None}])
    model = MODELS / "llama"
    prune = ["prune", model, "--method", "wanda", "--samples", 2, "--length", 16]
    prune += ["--calibration", source, "--output", tmp_path / "out"]
    refused = run(*prune)
    assert refused.exit_code == 2
    assert "it has id, caption. Say which holds the text: --field NAME" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = run(*prune, "--field", "caption", "--bos", "yes")
    assert done.exit_code == 0, done.stderr
    assert "1 document, field caption, 1 null or empty row skipped; the first" in done.stderr
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())["protocol"]
    recorded = {name: report[name] for name in ("field", "split", "skipped", "bos")}
    assert recorded == {"field": "caption", "split": None, "skipped": 1, "bos": "yes"}
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "field: caption" in recipe
    assert "bos: 'yes'" in recipe
    score = ["eval", tmp_path / "out", "--text", source, "--length", 16, "--json"]
    said = run(*score, "--field", "caption", "--bos", "no")
    assert said.exit_code == 0, said.stderr
    assert "field caption" in said.stderr
    assert {"field": "caption", "split": None, "bos": "no"}.items() <= json.loads(
        said.stdout
    ).items()
    assert run(*score).exit_code == 2
