"""Each folder imports only from those below it, and no test imports another: by syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import prunus

ROOT = Path(prunus.__file__).parent
TESTS = Path(__file__).parent.parent
BELOW = {
    "base": [],
    "maths": ["base"],
    "model": ["base", "maths"],
    "text": ["base", "maths", "model"],
    "report": ["base", "maths", "text"],
    "storage": ["base", "maths", "model", "report"],
    "methods": ["base", "maths"],
    "recipe": ["base", "maths", "methods"],
    "runtime": ["base", "maths", "model", "report", "storage"],
}
BELOW["judge"] = [*BELOW, "recipe"]
BELOW["run"] = [*BELOW]
BELOW["api"] = [*BELOW]
BELOW["compare"] = [*BELOW]
BELOW["reproduce"] = [*BELOW]
BELOW["cli"] = [*BELOW]
EVERYWHERE = {"_version"}
EXCEPTIONS: set[tuple[str, str]] = set()
"""Pairs of modules that may break the table. It is empty, and is to stay so."""

MATHS = {"torch", "scipy"}  # beside the standard library


def imports(path, root=ROOT):
    """Every absolute name that a file imports, at any depth, also for type checkers alone."""
    package = [root.name, *path.relative_to(root).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*stem, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def folder(name):
    """The folder, or the file in the root, of a dotted name within the package."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def upwards(root=ROOT):
    """Every import that the table forbids: (module, what it imports)."""
    found = set()
    for path in root.rglob("*.py"):
        module = ".".join([root.name, *path.relative_to(root).with_suffix("").parts])
        own = folder(module)
        if own in BELOW:
            for name in imports(path, root):
                other = folder(name)
                if name.startswith(f"{root.name}.") and other not in {
                    own,
                    *BELOW[own],
                    *EVERYWHERE,
                }:
                    found.add((module, name))
    return found


def test_nothing_points_upwards():
    assert upwards() == EXCEPTIONS == set()


def test_an_import_turned_around_is_found(tmp_path):
    root = tmp_path / "prunus"
    for name, line in {
        "maths/gram.py": "def late():\n    from ..model import blocks\n",
        "storage/journal.py": "if TYPE_CHECKING:\n    from ..run.loop import prune_blocks\n",
        "report/card.py": "import prunus.api\n",
        "run/loop.py": "from ..judge import verify\nfrom . import gather\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(line)
    assert upwards(root) == {
        ("prunus.maths.gram", "prunus.model.blocks"),
        ("prunus.storage.journal", "prunus.run.loop.prune_blocks"),
        ("prunus.report.card", "prunus.api"),
    }


def test_every_folder_is_in_the_table_and_says_what_it_is():
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(BELOW) - {"api", "recipe"}
    for path in ROOT.rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert said, path
        assert said.splitlines()[0].endswith("."), path
    assert len([*ROOT.glob("*.py")]) <= 6


def test_the_mathematics_imports_torch_and_scipy_alone():
    allowed = {*sys.stdlib_module_names, *MATHS, "prunus"}
    for path in (ROOT / "maths").rglob("*.py"):
        for name in imports(path):
            assert name.partition(".")[0] in allowed, (path, name)


PARTS = ["maths.scores", "maths.pruners", "maths.orders", "maths.shares", "scores", "updates"]
HEAVY = ["transformers", "accelerate", "safetensors", "huggingface_hub", "pydantic", "typer"]
EARLIER = {
    "calibration": "text",
    "scores": "maths.scores", "patterns": "maths.patterns", "updates": "maths.updates",
    "pruners": "maths.pruners", "permutation": "maths.orders", "stats": "maths.stats",
    "allocation": "maths.shares", "quantization": "maths.grids",
    "refinements": "maths.refinements", "errors": "base.errors", "parallel": "base.team",
    "evaluation": "judge.perplexity", "export": "storage.gguf", "simulator": "judge.vitcod",
}  # fmt: skip


def test_a_part_loads_no_model_library():
    """In a fresh process: a notebook that tries a formula does not wait for transformers."""
    code = f"""
import importlib, sys
for part in {PARTS}:
    importlib.import_module("prunus." + part)
    print(part, *[x for x in {HEAVY} if x in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == PARTS


def test_earlier_names_give_the_same_modules():
    """Imported first under the earlier name, in a fresh process."""
    code = f"""
import importlib
for earlier, home in {EARLIER}.items():
    first = importlib.import_module("prunus." + earlier)
    assert importlib.import_module("prunus." + home) is first, earlier
    assert importlib.import_module("prunus." + earlier) is first, earlier
    assert first.__spec__.name == "prunus." + home, earlier
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parts_of_earlier_names_are_the_same_objects():
    import prunus.maths.scores.wanda
    import prunus.permutation.orders
    import prunus.scores.wanda

    assert prunus.scores.wanda is prunus.maths.scores.wanda
    assert prunus.scores.Wanda is prunus.maths.scores.wanda.Wanda
    assert prunus.permutation.orders.Orders.__module__ == "prunus.maths.orders.orders"


def from_tests(path, root=TESTS):
    """What a file takes from a test or from conftest."""
    return {
        name
        for name in imports(path, root)
        if any(part == "conftest" or part.startswith("test_") for part in name.split("."))
    }


def test_no_test_imports_another():
    found = {path: from_tests(path) for path in TESTS.rglob("*.py")}
    assert len(found) > 60
    assert {path: names for path, names in found.items() if names} == {}


def test_a_test_that_imports_another_is_found(tmp_path):
    path = tmp_path / "laws" / "test_new.py"
    path.parent.mkdir()
    path.write_text(
        "from conftest import MODELS\n"
        "import tests.maths.test_scores\n"
        "from ..run.test_loop import layers\n"
        "from helpers.models import MODELS\n"
    )
    assert from_tests(path, tmp_path) == {
        "conftest.MODELS",
        "tests.maths.test_scores",
        f"{tmp_path.name}.run.test_loop.layers",
    }
