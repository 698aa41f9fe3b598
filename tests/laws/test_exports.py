import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import prunus
from prunus.base import errors
from prunus.maths import orders as permutation
from prunus.maths import pruners, refinements, scores, updates


def test_the_public_names():
    assert prunus.__all__ == sorted(prunus.__all__, key=lambda n: (not n[0].isupper(), n))
    assert {"prune", "evaluate", "load", "verify", "Recipe", "PrunusError"} < set(prunus.__all__)
    assert {"register", "Silent", "Result", "quantize", "plan"} < set(prunus.__all__)
    assert {*prunus.__all__, "patterns", "scores"} < set(dir(prunus))
    assert not {"Any", "TYPE_CHECKING", "import_module"} & set(dir(prunus))
    for name in prunus.__all__:
        assert getattr(prunus, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = prunus.prun


def test_names_that_users_rely_on():
    assert {"OBS", "DaSS", "Magnitude", "RIA", "RelativeImportance", "Wanda"} <= {*scores.__all__}
    layerwise = {"MRP", "Compose", "DaSS", "EachLayer", "InOrder", "SparseGPT"}
    assert layerwise | {"OnGrid", "ActivationAware"} <= set(pruners.__all__)
    assert {"Keep", "LeastSquares", "SparseGPTSweep"} <= set(updates.__all__)
    assert {"Assignment", "Greedy", "Heuristic", "Retained"} <= set(permutation.__all__)
    assert "Swaps" in refinements.__all__
    for folder in (scores, pruners, updates, permutation, refinements):
        assert all(hasattr(folder, name) for name in folder.__all__)
    assert prunus.maths.patterns.NM(2, 4).group_size == 4
    assert callable(prunus.maths.stats.gather)


def test_parts_are_there_without_another_import_and_pictures_wait():
    names = "allocation errors patterns permutation pruners refinements scores stats updates"
    said = f"import prunus; [getattr(prunus, n) for n in '{names}'.split()]"
    said += "; import sys, prunus.cli.main, prunus.api; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", said], check=True)


def test_every_module_imports_and_says_what_it_is():
    for module in pkgutil.walk_packages(prunus.__path__, "prunus."):
        assert importlib.import_module(module.name).__doc__, module.name


def drawn(text):
    """The files that the tree of docs/code.md draws, as paths within the package."""
    tree = text.split("\nsrc/prunus/\n")[1].split("\nbenchmarks/")[0]
    folders, found = [], set()
    for line in filter(None, tree.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        names = line.strip().partition("  ")[0].split(", ")
        folders = folders[:depth]
        if names[0].endswith("/"):
            folders.append(names[0])
        else:
            found |= {"".join([*folders, name]) for name in names}
    return found


def test_the_map_of_the_code_draws_every_module_where_it_is():
    text = (Path(__file__).parent.parent.parent / "docs" / "code.md").read_text(encoding="utf-8")
    root = Path(prunus.__file__).parent
    files = {path.relative_to(root) for path in root.rglob("[!_]*.py")}
    assert drawn(text) == {path.as_posix() for path in files if path.parts[0] != "cli"}


def test_one_error_tree_drawn_at_its_top():
    found = [
        c for c in vars(errors).values() if isinstance(c, type) and c.__module__ == errors.__name__
    ]
    for error in found:
        if issubclass(error, Warning):
            continue
        assert issubclass(error, errors.PrunusError)
        assert error.__name__ in errors.__doc__
    assert issubclass(errors.InputError, ValueError)
