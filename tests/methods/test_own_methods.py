"""Methods from outside of the package: objects, registered names, plug-ins."""

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from typer.testing import CliRunner

import prunus
from helpers.models import MODELS, load_tiny
from prunus.base.errors import (
    InputError,
    PluginWarning,
    PrunusError,
    TakenNameError,
    UnknownNameError,
)
from prunus.cli.main import app
from prunus.maths.contracts import Pruned
from prunus.maths.patterns import NM, Unstructured
from prunus.maths.pruners import Compose, EachLayer
from prunus.maths.scores import OBS, RIA, Wanda
from prunus.methods import registry
from prunus.methods.own import check_merges, code_of, natural, spelled
from prunus.methods.table import METHODS
from prunus.recipe import Recipe
from prunus.run.observer import Silent

LLAMA = MODELS / "llama"
FEW = {"samples": 3, "length": 24}


class ColumnMax:
    """A statistic that the package does not have."""

    def __init__(self, features, device):
        self.max_I = torch.zeros(features, device=device)

    def update(self, inputs_TI):
        self.max_I = torch.maximum(self.max_I, inputs_TI.float().abs().amax(0))


@dataclass(frozen=True)
class Peak:
    """|W| · max|X|^power."""

    power: float = 1.0
    needs: ClassVar = (ColumnMax,)

    def __call__(self, weight_OI, stats):
        return weight_OI.float().abs() * stats[ColumnMax].max_I ** self.power


class Plain:
    """As people write one at first: no dataclass, a repr with an address."""

    needs = ()
    pattern = Unstructured("row")

    def __init__(self, sign=1):
        self.sign = sign

    def __call__(self, weight_OI, stats):
        return self.sign * weight_OI.float().abs()


class HalfOfEachRow:
    """A layer pruner that is no composition."""

    needs = ()
    pattern = Unstructured("row")

    def __call__(self, weight_OI, stats, sparsity):
        mask_OI = self.pattern.mask(weight_OI.float().abs(), sparsity)
        return Pruned(weight_OI.masked_fill(~mask_OI, 0), mask_OI)


class LastLayer:
    """A block pruner that leaves layers out."""

    needs = ()
    ordering = None

    def pattern(self, layer):
        return Unstructured("row")

    def check(self, block, plan):
        pass

    def __call__(self, block, stats, plan):
        for layer in block.planned(plan)[-1:]:
            yield layer, HalfOfEachRow()(layer.weight_OI, stats, plan[layer.name])


@pytest.fixture
def table():
    """The table is as it was afterwards, whatever was registered."""
    before, origins = dict(METHODS), dict(registry._origins)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)
    registry._origins.clear()
    registry._origins.update(origins)
    registry.load_plugins.cache_clear()


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def pruned_by(method, **fields):
    model, tokenizer = load_tiny("llama")
    result = prunus.prune(model, method=method, tokenizer=tokenizer, **{**FEW, **fields})
    return weights(model), result


@pytest.mark.parametrize("pattern", [None, "row", "1:4"])
def test_a_score_of_the_package_as_an_object_is_the_row_of_its_name(pattern):
    found, result = pruned_by(Wanda(), pattern=pattern)
    expected, by_name = pruned_by("wanda", pattern=pattern)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert result.report.pruner == by_name.report.pruner
    assert result.report.requested == by_name.report.requested


def test_an_own_score_with_an_own_statistic_keeps_what_it_says():
    _, result = pruned_by(Compose(Peak(), NM(1, 4)))
    assert result.report.requested == result.report.sparsity == 0.75
    assert result.report.pattern == "1:4"
    assert result.report.method == f"{__name__}.Peak"
    model, _ = load_tiny("llama")
    dense, ids = weights(model), torch.arange(40).view(2, 20)
    seen = []
    first = model.model.layers[0].self_attn.q_proj
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for sample in ids:
            model(input_ids=sample[None])
    peak_I = torch.cat(seen).abs().flatten(0, 1).amax(0)
    prunus.prune(model, method=Peak(2.0), sparsity=0.25, tokens_ST=ids)
    old = dense["model.layers.0.self_attn.q_proj.weight"]
    score = old.abs() * peak_I**2.0
    lowest = score.flatten().argsort(stable=True)[: score.numel() // 4]
    expected = old.flatten().index_fill(0, lowest, 0).view_as(old)
    assert torch.equal(first.weight, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"update": "least-squares"},
        {"refine": "swaps"},
        {"allocation": "owl"},
        {"pattern": "2:4", "bits": 4, "group": 16},
        {"settings": {"score.power": "0.5"}},
        {"mlp_only": True, "true_sequential": True},
    ],
    ids=str,
)
def test_options_apply_to_an_own_score(fields):
    _, result = pruned_by(Peak(), **fields)
    assert 0.49 < result.report.sparsity < 0.6
    if "settings" in fields:
        assert "Peak(power=0.5)" in result.report.pruner


def test_natural_patterns():
    assert natural(Wanda()) == Unstructured("row")
    assert natural(RIA()) == Unstructured("layer")
    assert natural(Peak()) == natural(OBS()) == Unstructured("layer")
    assert natural(Plain()) == Unstructured("row")  # as its class says


def test_a_checkpoint_its_recipe_and_the_same_again(tmp_path):
    output, again = tmp_path / "out", tmp_path / "again"
    method = Compose(Peak(2.0), NM(2, 4))
    result = prunus.prune(LLAMA, method=method, output=output, **FEW)
    assert result.verification.ok
    said = (output / "recipe.yaml").read_text()
    assert yaml.safe_load(said)["method"] == f"{__name__}.Peak"
    assert "Give it again" in said
    assert "Peak(power=2.0)" in said
    assert "an own method" in (output / "README.md").read_text()
    with pytest.raises(InputError, match="was an object of Python, which a recipe names"):
        prunus.prune(LLAMA, output / "recipe.yaml", output=again)
    line = ["prune", str(LLAMA), "--recipe", str(output / "recipe.yaml"), "--output", str(again)]
    ended = CliRunner().invoke(app, line)
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    prunus.prune(LLAMA, output / "recipe.yaml", method=method, output=again)
    name = "model.safetensors"
    assert (output / name).read_bytes() == (again / name).read_bytes()
    assert prunus.plan(LLAMA, output / "recipe.yaml", method=method).coverage > 0.5


def test_another_pattern_beside_another_object_is_that_of_the_object():
    first = Recipe.of(method=Compose(Peak(), NM(1, 4)))
    assert first.replaced(samples=5).build()[2] == 0.75
    assert first.replaced(method=Compose(Peak(), NM(2, 4))).build()[2] == 0.5
    assert first.replaced(method="ria", pattern="layer").build()[0] == METHODS["ria"].build(None)
    with pytest.raises(InputError, match="Peak has the pattern 1:4, but pattern=row is requested"):
        first.replaced(pattern="row").build()


class Stops(Silent):
    """Ends a run after some blocks."""

    def block(self, index, total, name, step):
        if index == 2:
            raise KeyboardInterrupt


def test_resume_wants_the_same_settings_and_the_same_code(tmp_path, monkeypatch):
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(LLAMA, method=Plain(), output=output, observer=Stops(), **FEW)
    with pytest.raises(InputError, match=r"its method was .*Plain\(sign=1\).*Plain\(sign=-1\)"):
        prunus.prune(LLAMA, method=Plain(-1), output=output, resume=True, **FEW)
    with monkeypatch.context() as changed:
        changed.setattr("inspect.getsource", lambda kind: "another")
        with pytest.raises(InputError, match="its method's code was"):
            prunus.prune(LLAMA, method=Plain(), output=output, resume=True, **FEW)
    result = prunus.prune(LLAMA, method=Plain(), output=output, resume=True, **FEW)
    assert result.verification.ok


def test_spelled_without_addresses():
    assert spelled(EachLayer(Compose(Plain(3), NM(2, 4)))).count("Plain(sign=3)") == 1
    assert " at 0x" not in spelled(EachLayer(Compose(Plain(lambda: 0), NM(2, 4))))
    assert code_of(EachLayer(Compose(Wanda(), NM(2, 4)))) is None
    assert code_of(EachLayer(Compose(Peak(), NM(2, 4)))) != code_of(Plain())


def test_a_layer_pruner_of_ones_own():
    found, _ = pruned_by(HalfOfEachRow())
    expected, _ = pruned_by("magnitude", pattern="row")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for option, message in (
        ({"update": "sparsegpt"}, "so --update does not apply"),
        ({"refine": "swaps"}, "so --refine does not apply"),
        ({"pattern": "2:4"}, "has the pattern row, but pattern=2:4 is requested"),
    ):
        with pytest.raises(InputError, match=message):
            Recipe.of(method=HalfOfEachRow(), **option).build()


class FirstHalf(Unstructured):
    """A pattern that the package does not know."""


class ByFirstHalf(HalfOfEachRow):
    pattern = FirstHalf("row")


def test_a_pattern_that_cannot_be_verified_is_for_memory_alone(tmp_path):
    _, result = pruned_by(ByFirstHalf())
    assert result.report.sparsity == 0.5
    with pytest.raises(InputError, match="q_proj would have the pattern FirstHalf, which"):
        prunus.prune(LLAMA, method=ByFirstHalf(), output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_statistic_that_cannot_be_merged_is_for_one_process():
    with pytest.raises(InputError, match=r"ColumnMax has no merge\(team\)"):
        check_merges(EachLayer(Compose(Peak(), NM(2, 4))))
    check_merges(EachLayer(Compose(Wanda(), NM(2, 4))))


def test_a_block_pruner_must_prune_all_that_is_planned():
    with pytest.raises(PrunusError, match="the pruner left this layer out"):
        pruned_by(LastLayer())
    with pytest.raises(InputError, match="LastLayer has patterns of its own"):
        Recipe.of(method=LastLayer(), pattern="row").build()


class Wrong:
    needs = ()

    def __init__(self, returned):
        self.returned = returned

    def __call__(self, weight_OI, stats):
        return self.returned


class WrongLayer(HalfOfEachRow):
    def __call__(self, weight_OI, stats, sparsity):
        return weight_OI * 0


def test_what_an_own_method_returns_is_checked():
    with pytest.raises(InputError, match=r"Wrong returned torch.Size\(\[3\]\)"):
        pruned_by(Wrong(torch.ones(3)))
    with pytest.raises(InputError, match="Wrong returned NoneType"):
        pruned_by(Wrong(None))
    with pytest.raises(PrunusError, match=r"q_proj: a pruner returns Pruned.* returned Tensor"):
        pruned_by(WrongLayer())


class NotATuple(Plain):
    needs = ColumnMax


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Peak, r"method is the class Peak; give an object of it: Peak\(…\)"),
        (5, "method is a name, a Score, a LayerPruner or a BlockPruner; got an int"),
        (lambda weight, stats: weight, "got a function. A Score has needs"),
        (NotATuple(), r"NotATuple.needs is a tuple of statistics.*such as \(ColumnNorm,\)"),
    ],
)
def test_what_is_no_method_is_said_in_one_sentence(method, message):
    with pytest.raises(InputError, match=message) as raised:
        Recipe.of(method=method)
    assert "\n" not in str(raised.value)


def test_permutation_wants_statistics_that_can_be_reordered():
    with pytest.raises(InputError, match=r"ColumnMax has no reordered\(order_I\)"):
        Recipe.of(method=Compose(Peak(), NM(2, 4)), permutation="free").build()
    pruned_by(Compose(Plain(), NM(2, 4)), permutation="fold")


def test_a_registered_name_is_a_row_like_the_others(table, tmp_path):
    prunus.register("peak", paper="Author 2027", url="https://a.b", allocation="owl")(Peak)
    output = tmp_path / "out"
    line = "--method peak --pattern row --sparsity 0.6 --set score.power=2 --samples 3 --length 24"
    ended = CliRunner().invoke(app, ["prune", str(LLAMA), "--output", str(output), *line.split()])
    assert ended.exit_code == 0, ended.output
    report = json.loads((output / "pruning_report.json").read_text())
    assert report["method"] == "peak"
    assert report["allocation"].startswith("OWL(")
    assert "Peak(power=2.0), pattern=Unstructured(group='row')" in report["pruner"]
    card = (output / "README.md").read_text()
    assert "`peak` (Author 2027, <https://a.b>)" in card
    assert yaml.safe_load((output / "recipe.yaml").read_text())["method"] == "peak"
    shown = CliRunner().invoke(app, ["methods", "--json"])
    row = json.loads(shown.stdout)["peak"]
    assert row["needs"] == "ColumnMax"
    assert row["allocation"] == "owl"
    assert "peak\n  paper    Author 2027" in CliRunner().invoke(app, ["methods"]).stdout
    with pytest.raises(UnknownNameError, match=r"Did you mean 'peak'"):
        Recipe.of(method="peek").build()


def test_an_object_registered_with_a_pattern_can_be_asked_for_another(table):
    prunus.register("sharp")(Compose(Peak(3.0), NM(2, 4)))
    own = Recipe.of(method="sharp").build()[0]
    assert own == EachLayer(Compose(Peak(3.0), NM(2, 4)))
    other = Recipe.of(method="sharp", pattern="row").build()[0]
    assert other == EachLayer(Compose(Peak(3.0), Unstructured("row")))


def test_names_that_cannot_be_registered(table):
    for taken in ("ria", "goa", "quantize"):
        with pytest.raises(TakenNameError, match=f"A method {taken} already exists"):
            prunus.register(taken)(Peak)
    with pytest.raises(InputError, match="letters, digits"):
        prunus.register("a.b")
    with pytest.raises(UnknownNameError, match="allocation"):
        prunus.register("peak", allocation="most")
    with pytest.raises(InputError, match=r"Wrong cannot be made without arguments"):
        prunus.register("wrong")(Wrong)
    prunus.register("peak")(Peak)
    prunus.register("peak", paper="anew")(Peak)  # the cell of a notebook, run again
    assert table["peak"].paper == "anew"
    with pytest.raises(TakenNameError, match="register Plain of"):
        prunus.register("peak")(Plain)


def installed(folder, package, module, source, entry):
    """A package as pip leaves it: a module, and metadata with an entry point."""
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[prunus.methods]\n{entry} = {module}\n")


GOOD = """
import prunus
from prunus.scores import Magnitude
prunus.register("plugged", paper="A plug-in")(Magnitude())
"""


@pytest.fixture
def site(tmp_path, monkeypatch, table):
    """A folder of packages that Python finds."""
    monkeypatch.syspath_prepend(tmp_path)
    registry.load_plugins.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("plugin_for_a_test")]:
        del sys.modules[name]


def test_a_plug_in_is_loaded_when_its_name_is_asked_for(site):
    installed(site, "peaks-of-prunus", "plugin_for_a_test", GOOD, "plugged")
    Recipe.of(method="ria").build()
    assert "plugin_for_a_test" not in sys.modules
    assert Recipe.of(method="plugged").build()[0] == METHODS["magnitude"].build(None)
    assert "plugged" in json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)


def test_a_broken_plug_in_is_a_warning_that_names_its_package(site):
    installed(site, "broken-one", "plugin_for_a_test_1", "import nothing_of_that_name", "a")
    installed(site, "empty-one", "plugin_for_a_test_2", "", "b")
    installed(site, "good-one", "plugin_for_a_test_3", GOOD, "plugged")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Recipe.of(method="plugged").build()
    said = sorted(str(w.message) for w in caught if w.category is PluginWarning)
    assert len(said) == 2
    assert said[0].startswith("The plug-in a of the package broken-one does not load (ModuleNot")
    assert said[1] == "The plug-in b of the package empty-one registers no such method."


def test_a_plug_in_with_a_taken_name_is_an_error_that_names_its_package(site):
    source = GOOD.replace("plugged", "wanda")
    installed(site, "clash", "plugin_for_a_test", source, "wanda")
    assert Recipe.of(method="wanda").build()  # nobody asked for another
    ended = CliRunner().invoke(app, ["methods"])
    assert ended.exit_code == 2
    assert "A method wanda already exists" in ended.stderr
    assert "the plug-in wanda of the package clash" in ended.stderr


def test_the_documentation_names_the_group_of_entry_points():
    root = Path(__file__).parent.parent.parent
    text = (root / "docs" / "add_a_method.md").read_text(encoding="utf-8")
    assert f'[project.entry-points."{registry.GROUP}"]' in text
