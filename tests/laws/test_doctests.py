"""The examples in docstrings run: those that state a value give it."""

import doctest
import importlib
import pkgutil

import pytest

import prunus

ON_A_MODEL = {  # run in test_readme, or too slow; why
    "prunus.api": "test_readme runs them on a model",
    "prunus.runtime.load": "test_readme runs them on a model",
    "prunus.report.picture": "test_readme runs them on a model",
    "prunus.storage.gguf": "test_readme runs them on a model",
    "prunus.storage.packed_export": "test_readme runs them on a model",
    "prunus.run.finish": "needs pandas and a result",
    "prunus.judge.bench": "measures two models",
    "prunus.judge.diff": "test_readme runs it on a model",
    "prunus.compare.run": "prunes and judges four models",
    "prunus.methods.registry": "leaves out the body of its class",
}


class Stated(doctest.OutputChecker):
    """Compares the values that an example states; one that states none has to run."""

    def check_output(self, want, got, optionflags):
        return want == "" or super().check_output(want, got, optionflags)


def examples():
    names = [found.name for found in pkgutil.walk_packages(prunus.__path__, "prunus.")]
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in names:
        if not name.endswith("__main__"):
            module = importlib.import_module(name)
            yield from (test for test in finder.find(module, name) if test.examples)


EXAMPLES = {test.name: test for test in examples()}


def module_of(test):
    return test.globs["__name__"]


@pytest.mark.parametrize("name", [n for n, x in EXAMPLES.items() if module_of(x) not in ON_A_MODEL])
def test_an_example_runs_and_gives_what_it_states(name):
    said = []
    runner = doctest.DocTestRunner(checker=Stated())
    result = runner.run(EXAMPLES[name], out=said.append, clear_globs=False)
    assert result.failed == 0, "".join(said)


def test_there_are_examples_and_all_of_the_mathematics_run():
    modules = {module_of(test) for test in EXAMPLES.values()}
    assert set(ON_A_MODEL) <= modules
    assert len([x for x in modules if x.startswith("prunus.maths.")]) >= 3
    assert not any(name.startswith("prunus.maths.") for name in ON_A_MODEL)


def test_a_wrong_value_is_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(checker=Stated()).run(test, out=lambda _: None).failed == 1
