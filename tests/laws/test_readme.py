"""Every command and every Python block that README and docs show runs as it stands there.

A reader's files are stood in for: a tiny model in a folder, as a GGUF and in a hub cache, and texts
of a few kilobytes. Commands run in the order of the document, in one folder, so that later ones
find what earlier ones wrote.
"""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.main import get_command
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS
from prunus.base.errors import InputError
from prunus.cli.main import app

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEMPLATES = ("…", "HOST:")  # what a reader has to fill in
HERE = ["--data-dir", "texts"]  # as files, where there is no network
ELSEWHERE = {"c4": HERE, "wikitext2": HERE, "wikitext2-raw": HERE, "lambada": HERE}
DIFFERS = {"diff": 1}  # the exit code where two checkpoints are not the same
FEWER = {  # added, so that it does not take minutes
    **{name: ["--samples", "8"] for name in ("prune", "quantize", "plan")},
    "compare": ["--samples", "4", "--length", "32", "--windows", "2"],
    "bench": ["--prompt", "8", "--new", "4", "--repeats", "1"],
}


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a document in that language; "" is none."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(path: Path) -> list[list[str]]:
    """The arguments of every ``prunus …`` of a document; of torchrun, what each process runs."""
    lines = [line for block in blocks(path, "") for line in block.splitlines()]
    found = []
    for line in lines:
        if line.startswith(("prunus ", "torchrun ")) and not any(x in line for x in TEMPLATES):
            words = shlex.split(line, comments=True)
            found.append(words[words.index("prunus") + 1 :])
    return found


@pytest.fixture
def desk(tmp_path, monkeypatch, hub):
    """A folder with what the documents take for granted, and no network."""
    folder = tmp_path / "desk"
    folder.mkdir()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "llama")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=80,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for made in (folder / "model", folder / "path" / "to" / "model"):
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    hub("org/model", folder / "model")
    prunus.write_gguf(folder / "model", folder / "model.gguf")
    words = " ".join(f"word {i} of a text about plums and their stones." for i in range(300))
    (folder / "wiki.test.raw").write_text(words)
    (folder / "my.jsonl").write_text('{"text": "' + words + '"}\n')
    (folder / "texts" / "c4").mkdir(parents=True)
    (folder / "texts" / "c4" / "c4.jsonl").write_text('{"text": "' + words + '"}\n')
    (folder / "texts" / "wikitext2").mkdir()
    (folder / "texts" / "wikitext2" / "wiki.test.raw").write_text(words)
    (folder / "texts" / "lambada_test.jsonl").write_text('{"text": "plums have stones"}\n')
    monkeypatch.chdir(folder)
    return folder


def given(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def interrupted(words: list[str], monkeypatch) -> None:
    """Run the command up to its second block, where someone presses Ctrl-C."""

    with monkeypatch.context() as patched:
        patched.setattr(
            "prunus.storage.journal.Journal.write",
            press_second(prunus.storage.journal.Journal.write),
        )
        found = CliRunner().invoke(app, [word for word in words if word != "--resume"])
    assert found.exit_code == 130, found.output


def press_second(write):
    def pressed(self, block, *args, **kwargs):
        if block.index == 1:
            raise KeyboardInterrupt
        return write(self, block, *args, **kwargs)

    return pressed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_runs(path, desk, forked, monkeypatch):
    for words in commands(path):
        named = given(words, "--calibration") or given(words, "--text") or ""
        words += [] if "--data-dir" in words else ELSEWHERE.get(named, [])
        words += FEWER.get(words[0], [])
        output = given(words, "--output")
        if output and (desk / output).is_dir():  # an earlier line is another way to the same
            shutil.rmtree(desk / output)
        if "--resume" in words:
            interrupted(words, monkeypatch)
        found = CliRunner().invoke(app, words)
        expected = DIFFERS.get(words[0], 0)
        assert found.exit_code == expected, f"prunus {shlex.join(words)}: {found.output}"
        assert "Traceback" not in found.output
        if output and words[0] != "plan":
            assert (desk / output).exists(), words


def test_the_documents_show_every_command_and_the_readme_the_first_ones():
    shown = {words[0] for path in DOCUMENTS for words in commands(path)}
    targets = (ROOT / "Makefile").read_text()
    assert shown | {"demo"} == {command.name for command in app.registered_commands}
    assert "prunus demo --yes --output" in targets
    made = re.findall(r"^make (\w+)", "\n".join(blocks(ROOT / "README.md", "")), re.MULTILINE)
    assert made == ["demo", "test"]
    assert all(f"\n{target}:" in targets for target in made)
    assert {"prune", "verify", "eval", "compare"} == {
        words[0] for words in commands(ROOT / "README.md")
    }
    assert sum(len(commands(path)) for path in DOCUMENTS) > 25


def links(path: Path) -> list[tuple[Path, str]]:
    """The files that a document links to, each with the heading that it names, if any."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    found = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text)
    return [(path.parent / name if name else path, heading) for name, heading in found]


@pytest.mark.parametrize(
    "path",
    [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"],
    ids=lambda path: path.stem,
)
def test_every_link_leads_to_a_file_and_a_heading(path):
    for target, heading in links(path):
        assert target.is_file(), f"{path.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", x.lower()).replace(" ", "-") for x in titles}


def test_every_page_is_reached_from_the_readme():
    readme = ROOT / "README.md"
    linked = {target.resolve() for target, _ in links(readme)}
    beyond = {target.resolve() for path in linked & {*DOCUMENTS} for target, _ in links(path)}
    papers = {path for path in DOCUMENTS if path.parent.name == "papers"}
    assert {*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"} - papers - {
        readme
    } <= linked
    assert len(papers) == 5
    assert papers <= beyond
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 150


def examples() -> list[list[str]]:
    """What ``--help`` shows below the options of each command."""
    shown = [command.epilog or "" for command in app.registered_commands]
    lines = [line for text in shown for line in re.findall(r"`prunus (.*?)`", text)]
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("words", examples(), ids=shlex.join)
def test_the_examples_of_help_have_options_that_there_are(words):
    command = get_command(app).commands[words[0]]
    assert command.make_context(words[0], words[1:]).params


def python_blocks() -> list[tuple[str, str]]:
    return [(path.stem, block) for path in DOCUMENTS for block in blocks(path, "python")]


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block[0])
def test_every_python_block_runs(block, desk):
    generator = torch.Generator().manual_seed(0)
    names = {
        "prunus": prunus,
        "inputs_TI": torch.randn(40, 16, generator=generator),
        "weight_OI": torch.randn(8, 16, generator=generator),
    }
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(block[1], names)
    if "print(" in block[1]:
        assert said.getvalue().startswith("0.5 ")
        assert names["result"].verification.ok
    if "weight_OI" in block[1]:
        assert (names["pruned"].weight_OI == 0).float().mean() == 0.5


def docstrings() -> list[str]:
    """The calls that the docstrings of the public functions show, in an order that works."""
    functions = [prunus.plan, prunus.prune, prunus.quantize, prunus.evaluate, prunus.load]
    functions += [prunus.evaluate_all, prunus.plot, prunus.write_gguf]
    functions += [prunus.write_packed_checkpoint, prunus.diff]
    return [
        line for f in functions for line in re.findall(r"^\s*>>> (.*)$", f.__doc__, re.MULTILINE)
    ]


def test_the_calls_in_docstrings_run(desk):
    names = {
        "prunus": prunus,
        "diff": prunus.diff,
        "write_gguf": prunus.write_gguf,
        "write_packed_checkpoint": prunus.write_packed_checkpoint,
        "model": prunus.load("model"),
        "tokenizer": AutoTokenizer.from_pretrained("model"),
    }
    prunus.prune("model", method="goa", output="smaller", samples=2)
    ran = 0
    for line in docstrings():
        line = line.replace("length=2048", "length=64")  # of a tiny context
        if "cuda" in line and not torch.cuda.is_available():
            with pytest.raises(InputError, match="sees no CUDA device"):
                eval(line, names)
        else:
            eval(line, names)
            ran += 1
    assert ran >= 8
